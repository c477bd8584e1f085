"""Precision by part: what the words mean, and that weights and arithmetic are what was asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from torch import Tensor, nn

from projects.sa2va.errors import ConfigError
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.quantization import quantize_int8
from projects.sa2va.placement.precision import Precision, parse_precision
from tests.models.conftest import merged

from .precision_models import BF16, FP16, FP32, inputs, linears, loaded, predict, ready

torchao = pytest.importorskip("torchao")
bnb = pytest.importorskip("bitsandbytes")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DTYPES |= {"int8": torch.bfloat16, "nf4": torch.bfloat16}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (None, ("config", "config", "config")),
        ("config", ("config", "config", "config")),
        ("bf16", ("bf16", "bf16", "bf16")),
        ("fp32", ("fp32", "fp32", "fp32")),
        ("int8", ("int8", "bf16", "bf16")),
        ("nf4", ("nf4", "bf16", "bf16")),
        ("llm=nf4, vit=bf16 ,sam2=fp32", ("nf4", "bf16", "fp32")),
        ("sam2=int8", ("config", "config", "int8")),
        ({"vit": "fp16"}, ("config", "fp16", "config")),
        (Config(dict(p=dict(llm="fp32"))).p, ("fp32", "config", "config")),
    ],
)
def test_words(spec: Any, words: tuple[str, ...]) -> None:
    precision = parse_precision(spec)
    assert precision == Precision(*words)
    assert precision.as_dict() == dict(zip(("llm", "vit", "sam2"), words, strict=True))
    assert precision.is_config == (set(words) == {"config"})
    assert precision.merges_lora == (words[0] == "int8")
    if not precision.is_config:
        assert all(word in precision.describe() for word in words)
        assert parse_precision(precision.as_dict()) == precision


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bf61", r"precision 'bf61' \(did you mean 'bf16'"),
        ("llm=bf16,vti=fp32", r"part 'vti' \(did you mean 'vit'"),
        ("llm=nf5", r"precision of llm 'nf5' \(did you mean 'nf4'"),
        ("llm=nf4,llm=int8", "a part twice"),
        ("llm=nf4,", "part ''"),
        ("llm=", "precision of llm ''"),
        ({"sam2": 16}, "precision of sam2 16"),
    ],
)
def test_wrong_words(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_precision(spec)
    assert "llm=nf4,vit=bf16,sam2=fp32" in caught.value.fix


def test_every_weight_is_of_one_part() -> None:
    model = loaded(BF16)
    owned = [
        id(p)
        for part in model.prediction_parts().values()
        for module in part.modules
        for p in module.parameters()
    ]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    for part in model.prediction_parts().values():
        below = {id(m) for module in part.modules for m in module.modules()}
        assert part.layers and all(id(m) in below for m in (*part.layers, *part.trained))


@pytest.mark.parametrize(("mode", "merge"), [("forced", False), ("generate", True)])
def test_bf16_of_a_bf16_recipe_changes_nothing(mode: str, merge: bool) -> None:
    recipe = {**BF16, "answer_mode": mode, "max_new_tokens": 4}
    found = []
    for spec in (None, "config", "bf16"):
        model = loaded(recipe, spec)
        if merge:
            model.merge_lora()
        parse_precision(spec).apply(model)
        model.prepare_for_prediction()
        predictions = model(inputs=inputs(model), mode="predict")
        found.append((predict(model), [p.answers for p in predictions]))
    for probabilities, answers in found[1:]:
        assert torch.equal(probabilities, found[0][0]) and answers == found[0][1]
    before = loaded(recipe)
    if merge:
        before.merge_lora()
    assert torch.equal(predict(before), found[0][0])


@pytest.mark.parametrize(
    ("recipe", "spec", "other"),
    [
        (FP32, "fp32", FP32),
        (FP32, "bf16", BF16),
        (FP32, "fp16", FP16),
        (BF16, "fp32", FP32),
        (BF16, "fp16", FP16),
        (merged(BF16, dict(grounding=dict(train_mask_decoder=False))), "fp32", FP32),
    ],
)
def test_one_word_is_the_recipe_in_that_precision(
    recipe: dict[str, Any], spec: str, other: dict[str, Any]
) -> None:
    """Bit for bit what a model computes that was built so and holds the same weights."""
    start = loaded(recipe)
    built = merged(
        other, {"grounding": {k: v for k, v in recipe["grounding"].items() if k[0] == "t"}}
    )
    expected = loaded(built)
    expected.load_state_dict(start.state_dict())
    found = ready(recipe, spec)
    assert torch.equal(predict(found), predict(expected))
    if spec != "fp32" or recipe is not FP32:
        assert not torch.equal(predict(found), predict(start))
    kinds = {n: p.dtype for n, p in found.named_parameters() if not p.requires_grad}
    assert kinds == {n: p.dtype for n, p in expected.named_parameters() if not p.requires_grad}
    stored = {n for n in found.state_dict() if n in dict(found.named_buffers())}
    assert stored and all(
        found.state_dict()[n].dtype == expected.state_dict()[n].dtype for n in stored
    )


def test_fp32_is_as_near_to_float64_as_float32_gets() -> None:
    exact = loaded(BF16).double()
    exact.autocast_dtype = None
    expected = predict(exact)
    assert (predict(ready(BF16, "fp32")) - expected).abs().max() < 2e-6
    assert (predict(ready(BF16, "bf16")) - expected).abs().max() > 1e-4


def _watch(model: Sa2VAModel) -> dict[str, set[tuple[Any, ...]]]:
    """Autocast dtype (without autocast that of the weights) and TF32 around every module of a part,
    and dtypes of linear outputs."""
    seen: dict[str, set[tuple[Any, ...]]] = {}
    for name, part in model.prediction_parts().items():
        arithmetic, outputs = seen.setdefault(name, set()), seen.setdefault(f"{name} out", set())

        def watch(
            module: nn.Module, args: Any, output: Any, a: Any = arithmetic, o: Any = outputs
        ) -> None:
            dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
            if torch.is_autocast_enabled("cpu"):
                dtypes = {torch.get_autocast_dtype("cpu")}
            a.update((dtype, torch.backends.cudnn.allow_tf32) for dtype in dtypes)
            # A layer of torchao or bitsandbytes answers in the dtype that it was asked in.
            if type(module) in (nn.Linear, nn.Conv2d) and type(module.weight.data) is Tensor:
                o.add((output.dtype,))

        for whole in part.modules:
            for module in whole.modules():
                module.register_forward_hook(watch)
    return seen


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        (("fp32", "bf16", "fp16"), BF16),
        (("fp16", "fp32", "bf16"), BF16),
        (("int8", "fp16", "fp32"), BF16),
        (("bf16", "int8", "nf4"), FP32),
        (("nf4", "fp32", "int8"), FP32),
        (("config", "nf4", "config"), BF16),
        (("config", "fp32", "config"), FP32),
    ],
)
def test_each_part_computes_in_its_own_dtype(
    words: tuple[str, str, str], recipe: dict[str, Any]
) -> None:
    spec = dict(zip(("llm", "vit", "sam2"), words, strict=True))
    model = ready(recipe, spec)
    seen = _watch(model)
    predict(model)
    of_recipe = torch.bfloat16 if recipe is BF16 else torch.float32
    for part, word in spec.items():
        dtype = DTYPES.get(word, of_recipe)
        tf32 = torch.backends.cudnn.allow_tf32 and word != "fp32"
        assert seen[part] == {(dtype, tf32)}, part
        assert seen[f"{part} out"] == {(dtype,)}, part
        modules = model.prediction_parts()[part]
        kept = {id(p) for m in modules.trained for p in m.parameters()}
        frozen = {
            p.dtype
            for m in modules.modules
            for p in m.parameters()
            if not p.requires_grad and id(p) not in kept
        }
        assert frozen == ({dtype, torch.uint8} if word == "nf4" else {dtype}), part
    assert torch.backends.cudnn.allow_tf32  # as before


@pytest.mark.parametrize("word", ["int8", "nf4"])
@pytest.mark.parametrize(("part", "count"), [("llm", 14), ("vit", 6), ("sam2", 23)])
def test_which_layers_are_quantized(part: str, count: int, word: str) -> None:
    model = ready(BF16, {part: word})
    small = {
        name: {n for n, m in linears(model, name).items() if _is_small(m)}
        for name in ("llm", "vit", "sam2")
    }
    assert {name: len(found) for name, found in small.items() if found} == {part: count}
    core = model.mllm._core
    assert type(core.get_input_embeddings().weight.data) is Tensor
    assert type(core.lm_head.weight.data) is Tensor
    decoder = model.grounding.model.mask_decoder
    assert not any(_is_small(m) for m in decoder.modules())


def _is_small(module: nn.Module) -> bool:
    from torchao.quantization import Int8Tensor

    return isinstance(module, bnb.nn.Linear4bit) or isinstance(
        getattr(module, "weight", None), Int8Tensor
    )


def _check_int8(found: Tensor, weight: np.ndarray) -> np.ndarray:
    """Symmetric, one scale a row, from the definition; returns what the integers stand for.

    A quotient half-way between two integers, to rounding, may become either.
    """
    scale = np.abs(weight).max(axis=1, keepdims=True).astype(np.float64) / 127.5
    scale = np.maximum(scale, np.finfo(np.float32).eps)
    np.testing.assert_allclose(found.scale.numpy(), scale, rtol=1e-5)
    quotient = weight / scale
    integers, qdata = np.clip(np.rint(quotient), -128, 127), found.qdata.numpy()
    assert qdata.dtype == np.int8 and found.qdata.shape == found.shape
    half_way = np.abs(np.abs(quotient - np.floor(quotient)) - 0.5) < 1e-3
    assert (np.abs(qdata - integers) <= half_way).all()
    return qdata * scale


def test_int8_is_lora_in_the_weights_and_then_rows_of_integers() -> None:
    start, model = loaded(BF16), ready(BF16, "llm=int8")
    found = dict(model.mllm._core.model.language_model.layers.named_modules())
    checked = 0
    for name, layer in start.mllm._core.model.language_model.layers.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        a, b = (x["default"].weight.detach().numpy() for x in (layer.lora_A, layer.lora_B))
        base = layer.base_layer.weight.detach()
        delta = b @ a * layer.scaling["default"]
        # The sum is not rounded before it becomes integers.
        _check_int8(found[name].weight, base.float().numpy() + delta)
        checked += 1
    assert checked == 14
    assert not any("lora_" in n or "trainable_tokens" in n for n, _ in model.named_parameters())
    merged_model = loaded(BF16)
    merged_model.merge_lora()
    for table in ("get_input_embeddings", "get_output_embeddings"):
        tables = [getattr(m.mllm._core, table)().weight for m in (model, merged_model)]
        assert torch.equal(*tables)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(2, 9),
    seed=st.integers(0, 2**16),
    power=st.integers(-6, 6),
    bias=st.booleans(),
    half=st.booleans(),
)
def test_an_int8_layer_is_the_product_with_what_it_stands_for(
    rows: int, columns: int, seed: int, power: int, bias: bool, half: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(columns, rows, bias=bias).requires_grad_(False)
    weight = torch.randn(rows, columns, generator=generator) * 2.0**power
    if half:
        weight = weight.bfloat16().float()
    # The scales of bfloat16 weights are as exact as those of float32 ones.
    linear.weight.data = weight.bfloat16() if half else weight.clone()
    x = torch.randn(3, columns, generator=generator)
    quantize_int8(linear, torch.float32)
    stands_for = _check_int8(linear.weight, weight.numpy())
    # Half a step; the largest positive value of a row is 127.5 steps and becomes 127.
    step = linear.weight.scale.numpy()
    assert (np.abs(stands_for - weight.numpy()) <= 0.5 * step * (1 + 1e-2)).all()
    expected = x.numpy() @ stands_for.T + (linear.bias.numpy() if bias else 0)
    np.testing.assert_allclose(linear(x).numpy(), expected, rtol=1e-4, atol=1e-5 * 2.0**power)


@pytest.mark.parametrize("word", ["int8", "nf4"])
def test_quantized_predictions_are_near_those_of_bf16(word: str) -> None:
    expected = predict(ready(BF16, "bf16"))
    for part in ("llm", "vit", "sam2"):
        found = predict(ready(BF16, {part: word}))
        assert not torch.equal(found, expected), part
        assert (found - expected).abs().max() < 5e-3, part


def test_nf4_is_the_recipe_with_nf4() -> None:
    """With LoRA beside the 4-bit base, as it was trained."""
    recipe = merged(BF16, dict(mllm=dict(quantization="nf4")))
    assert torch.equal(predict(ready(BF16, "nf4")), predict(loaded(recipe)))
    assert not torch.equal(predict(loaded(recipe)), predict(loaded(BF16)))
    # And every other word takes it back.
    assert torch.equal(predict(ready(recipe, "bf16")), predict(loaded(BF16)))
    assert torch.equal(predict(ready(recipe, "sam2=bf16")), predict(loaded(recipe)))


@pytest.mark.parametrize("word", ["int8", "nf4"])
def test_layers_go_to_their_place_one_at_a_time(word: str) -> None:
    precision = parse_precision({"llm": word, "vit": word, "sam2": word})
    model = loaded(BF16, precision.as_dict())
    order: list[int] = []

    def place(layer: nn.Module) -> None:
        order.append(id(layer))
        below = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        if id(layer) not in built_small:
            assert not any(_is_small(m) for m in below)
        small = {
            id(one)
            for part in model.prediction_parts().values()
            for one in part.layers
            if any(_is_small(m) for m in one.modules())
        }
        assert small - built_small == set(order[:-1]) - built_small

    parts = model.prediction_parts()
    built_small = {id(m) for m in parts["llm"].layers} if word == "nf4" else set()
    expected = [id(layer) for part in parts.values() for layer in part.layers]
    precision.apply(model, place)
    assert sorted(order) == sorted(expected)


@pytest.mark.parametrize("part", ["llm", "vit", "sam2"])
def test_what_float16_cannot_hold_is_an_error(part: str) -> None:
    """With weights that float16 can hold; bfloat16 holds what they compute."""
    for word in ("fp16", "bf16"):
        model = ready(BF16, {part: word})
        weight = {
            "llm": model.mllm._core.model.language_model.norm.weight,
            "vit": model.mllm._core.model.multi_modal_projector.layer_norm.weight,
            "sam2": model.grounding.model.mask_decoder.upscale_layer_norm.weight,
        }[part]
        weight.data.fill_(65000.0)
        if word == "bf16":
            assert predict(model).isfinite().all()
            continue
        with pytest.raises(ConfigError, match=r"in fp16: .* are not finite") as caught:
            predict(model)
        assert f"--precision {part}=bf16" in caught.value.fix


def test_a_weight_that_float16_cannot_hold() -> None:
    model = loaded(BF16)
    model.mllm._core.model.language_model.norm.weight.data[3] = 1e5
    with pytest.raises(ConfigError, match=r"language model in fp16: 1 of 32 values of a weight"):
        parse_precision("fp16").apply(model)

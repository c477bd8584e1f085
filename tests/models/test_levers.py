"""Every lever of the recipes leaves the losses as they are, or within a tolerance stated here.

ZeRO stages: ``tests/end_to_end/test_two_processes.py``. Optimisers: ``tests/engine/test_optim.py``.
NF4: ``test_quantization.py``. Token rows as peft computes them: ``test_token_rows.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from projects.sa2va.errors import ConfigError
from projects.sa2va.models import Sa2VAModel, checkpointing

from .conftest import (
    PHRASE,
    build,
    picture,
    predict_inputs,
    total,
    train_batch,
)
from .test_sa2va import slice_batch

HALF: dict[str, Any] = dict(
    autocast="bfloat16", mllm=dict(dtype="bfloat16"), grounding=dict(dtype="bfloat16")
)
FROZEN_ENCODER = dict(grounding=dict(train_image_encoder=False))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def backward(model: Sa2VAModel, batch: dict, seed: int = 7) -> tuple[dict, dict[str, Tensor]]:
    """Losses of a batch and the gradients of all that trains; the seed decides dropout."""
    torch.manual_seed(seed)
    losses = model.train()(**batch, mode="loss")
    total(losses).backward()
    grads = {name: p.grad for name, p in trained(model).items()}
    return {name: float(value.detach()) for name, value in losses.items()}, grads


def history(model: Sa2VAModel, parameters: list[nn.Parameter], steps: int) -> list[dict]:
    """Losses of some steps of AdamW; without decay, which rows of a whole table would feel too."""
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    batch, losses = train_batch(model.processor), []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(backward(model, batch, seed=step)[0])
        optimizer.step()
    return losses


def randomise_trained(model: Sa2VAModel) -> Sa2VAModel:
    """Moves everything that trains, so that no LoRA B is zero any more."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(model).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Bytes of what autograd keeps for the backward pass, each tensor once."""
    kept: dict[int, int] = {}
    found: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
    found.append(sum(kept.values()))


# ------------------------------------------------------------------------------------ token rows


@pytest.mark.parametrize("tied", [False, True])
def test_token_rows_train_as_whole_tables_whose_other_rows_get_no_gradient(tied: bool) -> None:
    mllm = dict(config=dict(tie_word_embeddings=tied))
    rows = build(mllm=mllm)
    whole = build(mllm={**mllm, "train_token_rows": False})
    own = trained(whole)
    for name, parameter in trained(rows).items():
        if "trainable_tokens_delta" not in name:
            own[name].data.copy_(parameter.data)
    ids = torch.tensor(rows.processor.added_token_ids)
    core = whole.mllm._core
    tables = {core.get_input_embeddings().weight, core.get_output_embeddings().weight}
    assert len(tables) == (1 if tied else 2)
    before = []
    for table in tables:
        mask = torch.zeros(len(table), 1).index_fill_(0, ids, 1.0)
        table.requires_grad_(True).register_hook(lambda grad, mask=mask: grad * mask)
        before.append(table.detach().clone())
    parameters = [*own.values(), *tables]
    expected = history(whole, parameters, 6)
    found = history(rows, list(trained(rows).values()), 6)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for table, old in zip(tables, before, strict=True):
        changed = (table.detach() != old).any(dim=1).nonzero().flatten()
        assert {int(rows.processor.seg_token_id)} <= set(changed.tolist()) <= set(ids.tolist())
    assert expected[-1]["loss_language"] < expected[0]["loss_language"]


# --------------------------------------------------------------------------------- checkpointing


@pytest.fixture
def offloaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what is sent to host memory, as on a machine with a card."""
    from transformers import modeling_utils

    shapes: list[tuple[int, ...]] = []

    class Recorded(saved_tensors_hooks):
        def __init__(self, pin_memory: bool, device_type: str) -> None:
            assert pin_memory

            def pack(tensor: Tensor) -> Tensor:
                shapes.append(tuple(tensor.shape))
                return tensor.clone()

            super().__init__(pack, lambda tensor: tensor)

    monkeypatch.setattr(modeling_utils, "save_on_cpu", Recorded)
    cuda = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setattr(checkpointing, "torch", SimpleNamespace(cuda=cuda))
    return shapes


CHECKPOINTED: list[dict[str, Any]] = [dict(), HALF]


@pytest.mark.parametrize("recipe", CHECKPOINTED, ids=["float32", "bfloat16"])
def test_checkpointing_changes_nothing_bit_for_bit_and_offloads_layer_inputs_only(
    recipe: dict, offloaded: list
) -> None:
    lora = dict(lora_dropout=0.3)
    models = [
        randomise_trained(
            build(**{**recipe, "mllm": {**recipe.get("mllm", {}), "lora": lora, **where}})
        )
        for where in (
            dict(),
            dict(gradient_checkpointing=True),
            dict(gradient_checkpointing="cpu"),
        )
    ]
    batch = train_batch(models[0].processor)
    results, kept = [], []
    for model in models:
        with saved_bytes() as found:
            torch.manual_seed(7)
            losses = model.train()(**batch, mode="loss")
        kept += found
        del losses
        offloaded.clear()
        results.append(backward(model, batch))
        for name, grad in results[-1][1].items():
            assert torch.equal(grad, results[0][1][name]), name
        assert results[-1][0] == results[0][0]
    length, width = batch["inputs"]["input_ids"].shape[1], 32
    assert offloaded == [(2, length, width)] * 2, "one input of each of two layers"
    assert kept[1] < kept[0]


def test_offloading_without_cuda_is_plain_checkpointing() -> None:
    model = build(mllm=dict(gradient_checkpointing="cpu"))
    expected = backward(build(), train_batch(model.processor))[0]
    assert backward(model, train_batch(model.processor))[0] == expected


def test_unknown_place_of_checkpoints() -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing='gpu'"):
        build(mllm=dict(gradient_checkpointing="gpu"))


# ------------------------------------------------------------------------ logits, hidden, encoders


def test_logits_at_labelled_positions_are_those_of_all_positions() -> None:
    few, full = randomise_trained(build()), randomise_trained(build())

    def over_all(hidden: Tensor, labels: Tensor) -> Tensor:
        logits = full.mllm.logits(hidden[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    full._language_loss = over_all
    batch = train_batch(few.processor, (1, 3, 0))
    (losses, grads), (expected, expected_grads) = backward(few, batch), backward(full, batch)
    assert losses == pytest.approx(expected, rel=1e-6)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-6, rtol=1e-4, msg=name)
    with saved_bytes() as small:
        few(**batch, mode="loss")
    with saved_bytes() as large:
        full(**batch, mode="loss")
    vocabulary = few.processor.vocab_size
    unlabelled = int((batch["inputs"]["labels"][:, 1:] == -100).sum())
    assert large[0] - small[0] > unlabelled * vocabulary * 4


def test_the_last_hidden_state_is_the_last_of_all() -> None:
    model = randomise_trained(build()).eval()
    inputs = train_batch(model.processor)["inputs"]
    language = model.mllm._core.model.language_model
    outputs: list[Any] = []
    language.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    with torch.no_grad():
        embedded = model.mllm.embed(
            inputs["input_ids"], model.mllm.visual_tokens(inputs["pixel_values"])
        )
        last = model.mllm.hidden_states(embedded, inputs["attention_mask"])
        every = language(
            inputs_embeds=embedded,
            attention_mask=inputs["attention_mask"],
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
    assert len(every) == 3 and torch.equal(last, every[-1])
    assert set(outputs[0].keys()) == {"last_hidden_state"}


def test_frozen_encoders_leave_nothing_for_the_backward_pass() -> None:
    frozen = randomise_trained(build(**FROZEN_ENCODER))
    recorded = build(**FROZEN_ENCODER)
    for name, parameter in trained(frozen).items():
        recorded.get_parameter(name).data.copy_(parameter.data)
    recorded.grounding.train_image_encoder = True
    recorded.grounding.model.vision_encoder.requires_grad_(True)
    recorded.mllm._core.model.vision_tower.requires_grad_(True)
    batch = train_batch(frozen.processor)
    (losses, grads), (expected, others) = backward(frozen, batch), backward(recorded, batch)
    assert losses == expected
    assert all(torch.equal(grads[name], others[name]) for name in grads)
    with saved_bytes() as small:
        frozen(**batch, mode="loss")
    with saved_bytes() as large:
        recorded(**batch, mode="loss")
    assert small[0] < 0.5 * large[0]


@pytest.mark.parametrize("reference_numerics", [False, True])
def test_an_object_is_decoded_once(reference_numerics: bool) -> None:
    model = build(processor=dict(reference_numerics=reference_numerics))
    decoded: list[int] = []
    original = model.grounding.decode
    model.grounding.decode = lambda f, p: decoded.append(len(p)) or original(f, p)
    model(**train_batch(model.processor, (1, 3, 0)), mode="loss")
    assert decoded == [4]


# ----------------------------------------------------------------------------------- accumulation


def accumulated(parts: list[dict], together: dict | None) -> tuple[list[float], list[Tensor]]:
    """Mean loss, and weights after one step of SGD: of ``parts`` in turn, or of one batch."""
    model = randomise_trained(build()).train()
    before = [p.detach().clone() for p in trained(model).values()]
    batches = parts if together is None else [together]
    wrapper = OptimWrapper(
        torch.optim.SGD(trained(model).values(), lr=0.1), accumulative_counts=len(batches)
    )
    wrapper.initialize_count_status(model, 0, len(batches))
    losses = []
    for batch in batches:
        with wrapper.optim_context(model):
            loss = total(model(**batch, mode="loss"))
        wrapper.update_params(loss)
        losses.append(float(loss.detach()))
    after = [p.detach() for p in trained(model).values()]
    return losses, [new - old for new, old in zip(after, before, strict=True)]


def test_accumulation_is_a_larger_batch_where_frames_have_equally_many_phrases(processor) -> None:
    """The difference is rounding, and a batch's padding."""
    batch = train_batch(processor, (1, 1, 1, 1))
    parts = [slice_batch(batch, index) for index in range(4)]
    losses, steps = accumulated(parts, None)
    (loss,), expected = accumulated(parts, batch)
    assert sum(losses) / 4 == pytest.approx(loss, rel=1e-5)
    assert len(set(losses)) == 4
    for one, other in zip(steps, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


def test_accumulation_weighs_frames_and_a_batch_weighs_phrases(processor) -> None:
    """As DDP does: a step is the mean over batches of their means over phrases and tokens."""
    batch = train_batch(processor, (1, 3))
    parts = [slice_batch(batch, index) for index in range(2)]
    losses, _ = accumulated(parts, None)
    (loss,), _ = accumulated(parts, batch)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    by_frame = sum(losses) / 2
    by_phrase = (losses[0] + 3 * losses[1]) / 4  # every phrase has as many labelled tokens
    assert loss == pytest.approx(by_phrase, rel=1e-5)
    assert loss != pytest.approx(by_frame, rel=1e-5)


# --------------------------------------------------------------------------------------- numbers


def test_bfloat16_frozen_weights_deviate_by_less_than_one_percent() -> None:
    """Measured: mask loss 0.22 %, Dice loss 5e-6, language loss 0.05 %."""
    full, half = randomise_trained(build()), build(**HALF)
    for name, parameter in full.named_parameters():
        half.get_parameter(name).data.copy_(parameter.data)
    batch = train_batch(full.processor)
    with torch.no_grad():
        expected, found = (m.eval()(**batch, mode="loss") for m in (full, half))
    assert any(not torch.equal(expected[name], found[name]) for name in expected)
    for name in expected:
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.01), name


# ------------------------------------------------------------------------------------- prediction


def predictions(model: Sa2VAModel, mode: str) -> list[Any]:
    model.answer_mode, model.max_new_tokens = mode, 4
    inputs = predict_inputs(model.processor, [picture(3), picture(4, (40, 90))], [[PHRASE]] * 2)
    return model.eval()(inputs=inputs, mode="predict")


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("mode", ["forced", "generate"])
def test_rounding_for_prediction_changes_no_bit(quantization: str | None, mode: str) -> None:
    recipe = {**HALF, "mllm": dict(dtype="bfloat16", quantization=quantization)}
    model = randomise_trained(build(**recipe))
    # Without [SEG] in a generated answer there would be no map to compare.
    before = predictions(model, mode)
    hidden = _hidden(model)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.prepare_for_prediction()
    for one, other in zip(predictions(model, mode), before, strict=True):
        assert torch.equal(one.probabilities, other.probabilities)
        assert one.answers == other.answers
    assert torch.equal(_hidden(model), hidden)
    lora = [p for n, p in trained(model).items() if ".lora_" in n]
    assert {p.dtype for p in lora} == {torch.bfloat16}
    rest = [n for n, p in trained(model).items() if p.dtype == torch.float32]
    assert any("layer_norm" in name for name in rest)
    assert {name for name in rest if name.startswith("grounding.")} == {
        name for name in trained(model) if name.startswith("grounding.")
    }
    now = sum(p.numel() * p.element_size() for p in model.parameters())
    assert now <= size - 2 * sum(p.numel() for p in lora)


def test_what_a_best_checkpoint_keeps_predicts_the_same_bit_for_bit() -> None:
    model = randomise_trained(build(**HALF))
    expected, whole = predictions(model, "forced"), model.trained_state_dict()
    kept = model.rounded_for_prediction(whole)
    assert kept.keys() == whole.keys()
    assert {v.dtype for k, v in kept.items() if ".lora_" in k} == {torch.bfloat16}
    assert {v.dtype for k, v in kept.items() if k.startswith("grounding.")} == {torch.float32}
    fresh = build(**HALF)
    fresh.load_trained_state_dict(kept, "best.pth")
    for one, other in zip(predictions(fresh, "forced"), expected, strict=True):
        assert torch.equal(one.probabilities, other.probabilities)
    plain = build()
    state = plain.trained_state_dict()
    assert plain.rounded_for_prediction(state) is state  # nothing rounds without autocast


def _hidden(model: Sa2VAModel) -> Tensor:
    inputs = train_batch(model.processor)["inputs"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        visual = model.mllm.visual_tokens(inputs["pixel_values"])
        embedded = model.mllm.embed(inputs["input_ids"], visual)
        return model.mllm.hidden_states(embedded, inputs["attention_mask"])


def test_a_float32_model_is_left_as_it_is() -> None:
    model = build()
    before = {name: p.dtype for name, p in model.named_parameters()}
    model.prepare_for_prediction()
    assert {name: p.dtype for name, p in model.named_parameters()} == before

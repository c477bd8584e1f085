"""4-bit frozen weights (NF4): what is quantized, that it trains, how far it is from bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from projects.sa2va import versions
from projects.sa2va.checkpoints.whole_weights import WholeWeights
from projects.sa2va.errors import ConfigError, SetupError
from projects.sa2va.models import Sa2VAModel, parameter_table

from .conftest import build, picture, predict_inputs, total, train_batch

pytest.importorskip("bitsandbytes")

RECIPE: dict[str, Any] = dict(
    autocast="bfloat16", mllm=dict(dtype="bfloat16"), grounding=dict(dtype="bfloat16")
)


def nf4(**changes: Any) -> Sa2VAModel:
    recipe = {**RECIPE, "mllm": {**RECIPE["mllm"], "quantization": "nf4"}}
    return build(**{**recipe, **changes})


def small_layers(model: Sa2VAModel) -> dict[str, nn.Module]:
    import bitsandbytes as bnb

    return {n: m for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}


def test_the_decoder_layers_and_nothing_else() -> None:
    model = nf4()
    names = small_layers(model)
    assert len(names) == 2 * 7  # two layers of q, k, v, o, gate, up, down
    assert all(".language_model.layers." in name for name in names)
    assert all(m.weight.dtype == torch.uint8 for m in names.values())
    others = [p for n, p in model.named_parameters() if "base_layer.weight" not in n]
    assert torch.uint8 not in {p.dtype for p in others}
    assert model.mllm._core.lm_head.weight.dtype == torch.bfloat16


def test_a_quarter_of_the_bytes_and_the_table_says_so() -> None:
    def of(model: Sa2VAModel) -> int:
        layers = model.mllm._core.model.language_model.layers
        return sum(
            p.numel() * p.element_size()
            for n, p in layers.named_parameters()
            if "base_layer.w" in n
        )

    whole, small = build(**RECIPE), nf4()
    assert of(small) * 4 == of(whole)
    lines = [
        next(x for x in parameter_table(m).splitlines() if x.startswith("MLLM language"))
        for m in (whole, small)
    ]
    counts = [line.removeprefix("MLLM language model").split()[0] for line in lines]
    assert counts[0] == counts[1]
    assert "uint8" in lines[1]


def test_the_base_is_still_that_base() -> None:
    """A checkpoint of a 4-bit run loads over the base in bfloat16, and the other way round."""
    whole, small = build(**RECIPE), nf4()
    assert small.base_fingerprint == whole.base_fingerprint
    other = nf4(mllm=dict(dtype="bfloat16", quantization="nf4", seed=5))
    assert other.base_fingerprint != whole.base_fingerprint
    whole.load_trained_state_dict(small.trained_state_dict(), "iter_1.pth")


def test_loss_deviates_from_bfloat16_by_less_than_five_percent() -> None:
    """Measured on this model: language loss 0.8 %, mask loss 1e-6, Dice loss not at all (an
    untrained [SEG] projector hardly looks at its input)."""
    whole, small = build(**RECIPE), nf4()
    batch = train_batch(whole.processor)
    with torch.no_grad():
        expected, found = (model.eval()(**batch, mode="loss") for model in (whole, small))
    assert any(not torch.equal(expected[name], found[name]) for name in expected)
    for name in expected:
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.05), name


def test_it_trains_and_the_base_stays() -> None:
    model = nf4().train()
    batch = train_batch(model.processor)
    frozen = {n: m.weight.clone() for n, m in small_layers(model).items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    history = []
    for _ in range(25):
        loss = total(model(**batch, mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in trained)
        optimizer.step()
        history.append(float(loss))
    assert history[-1] < 0.8 * history[0]
    assert all(torch.equal(m.weight, frozen[n]) for n, m in small_layers(model).items())


def test_a_checkpoint_reloads_to_the_same_prediction() -> None:
    model = nf4().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
    again = nf4().eval()
    inputs = predict_inputs(model.processor, [picture(3)], [["blood vessel"]])
    before = again(inputs=inputs, mode="predict")[0].probabilities
    again.load_trained_state_dict(model.trained_state_dict(), "iter_1.pth")
    expected, found = (m(inputs=inputs, mode="predict")[0].probabilities for m in (model, again))
    assert not torch.equal(before, expected)
    assert torch.equal(found, expected)


def test_checkpointed_activations_give_the_same_losses() -> None:
    plain = nf4().train()
    saving = nf4(mllm=dict(dtype="bfloat16", quantization="nf4", gradient_checkpointing=True))
    batch = train_batch(plain.processor)
    gradients = []
    for model in (plain, saving.train()):
        total(model(**batch, mode="loss")).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_it_is_not_exported() -> None:
    with pytest.raises(ConfigError, match="4 bits") as caught:
        WholeWeights(nf4(), merge=True, dtype=None)
    assert "model.mllm.quantization=None" in caught.value.fix


def test_an_unknown_method() -> None:
    with pytest.raises(ConfigError, match=r"quantization='nf5' \(did you mean 'nf4'"):
        build(mllm=dict(quantization="nf5"))


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(also: list[str]) -> None:
        raise SetupError(f"no {also[0]}")

    monkeypatch.setattr("projects.sa2va.models.quantization.check_versions", missing)
    with pytest.raises(SetupError, match="no bitsandbytes"):
        build(mllm=dict(quantization="nf4"))


def test_versions_know_it() -> None:
    assert versions.REQUIRED["bitsandbytes"]

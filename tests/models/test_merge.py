"""LoRA and token rows merged into the weights predict as beside them."""

from __future__ import annotations

import pytest
import torch

from projects.sa2va.errors import ConfigError
from projects.sa2va.models import Sa2VAModel

from .conftest import build, picture, predict_inputs


def trained(**changes: object) -> Sa2VAModel:
    model = build(**changes).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def predict(model: Sa2VAModel) -> torch.Tensor:
    inputs = predict_inputs(model.processor, [picture(1)], [["blood vessel", "wire"]])
    return model(inputs=inputs, mode="predict")[0].probabilities


@pytest.mark.parametrize("tied", [False, True])
def test_the_same_prediction_with_fewer_tensors(tied: bool) -> None:
    model = trained(mllm=dict(config=dict(tie_word_embeddings=tied)))
    untrained = predict(build(mllm=dict(config=dict(tie_word_embeddings=tied))).eval())
    before, names = predict(model), [n for n, _ in model.named_parameters()]
    assert any("lora_" in name for name in names)
    model.mllm.merge_lora()
    after, names = predict(model), [n for n, _ in model.named_parameters()]
    assert not any("lora_" in name or "trainable_tokens" in name for name in names)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert (before - untrained).abs().max() > 1e-3


def test_bfloat16_deviates_by_the_rounding_of_the_weights() -> None:
    recipe = dict(autocast="bfloat16", mllm=dict(dtype="bfloat16"))
    model = trained(**recipe)
    before = predict(model)
    model.mllm.merge_lora()
    assert (predict(model) - before).abs().max() < 0.05
    assert {p.dtype for p in model.mllm._core.model.language_model.parameters()} == {torch.bfloat16}


def test_a_model_without_lora_stays_as_it_is() -> None:
    model = build(mllm=dict(lora=None, train_token_rows=False)).eval()
    before = predict(model)
    model.mllm.merge_lora()
    assert torch.equal(predict(model), before)


def test_four_bits_are_refused() -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ConfigError, match="4 bits") as caught:
        build(mllm=dict(dtype="bfloat16", quantization="nf4")).mllm.merge_lora()
    assert "model.mllm.quantization=None" in caught.value.fix

"""What a precision changes before the model is built, and what it needs to be installed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from mmengine.config import Config

from projects.sa2va.errors import ConfigError, SetupError
from projects.sa2va.placement.precision import WORDS, Precision, parse_precision
from tests.models.conftest import merged

from .precision_models import BF16, FP32, config, loaded, ready

pytest.importorskip("torchao")
pytest.importorskip("bitsandbytes")


def test_apply_needs_what_before_build_did() -> None:
    with pytest.raises(ValueError, match="before_build"):
        parse_precision("nf4").apply(loaded(BF16))
    with pytest.raises(ValueError, match="before_build"):
        parse_precision("bf16").apply(loaded(merged(BF16, dict(mllm=dict(quantization="nf4")))))


PUBLISHED = dict(mllm=dict(pretrained="folder", config=None), grounding=dict(pretrained="folder"))


@pytest.mark.parametrize(
    ("recipe", "spec", "mllm", "grounding", "quantization"),
    [
        (PUBLISHED, "fp32", "float32", "float32", None),
        (PUBLISHED, "bf16", "bfloat16", "bfloat16", None),
        (PUBLISHED, "sam2=fp16", "bfloat16", "float32", None),
        (PUBLISHED, "llm=nf4,vit=fp32", "bfloat16", "bfloat16", "nf4"),
        (dict(pretrained="folder"), "fp32", "float32", "float32", None),
        # In another dtype random weights would be others.
        ({}, "fp32", "bfloat16", "bfloat16", None),
    ],
)
def test_what_is_built(
    recipe: dict[str, Any], spec: str, mllm: str, grounding: str, quantization: str | None
) -> None:
    cfg = config(**merged(BF16, recipe))
    parse_precision(spec).before_build(cfg)
    assert (cfg.model.mllm.dtype, cfg.model.grounding.dtype) == (mllm, grounding)
    assert cfg.model.mllm.get("quantization") == quantization
    expected = "sdpa" if "fp32" in spec else "auto"
    assert cfg.model.mllm.get("attn_implementation", "auto") == expected


@pytest.mark.parametrize("word", WORDS)
def test_config_leaves_the_config_alone(word: str) -> None:
    cfg = config(**merged(BF16, dict(mllm=dict(quantization="nf4"))))
    before = cfg.pretty_text
    parse_precision(word).before_build(cfg)
    assert (cfg.pretty_text == before) == (word in ("config", "nf4"))


def test_published_float32_weights_are_not_rounded(tmp_path: Any) -> None:
    start = loaded(FP32)
    start.grounding.model.save_pretrained(tmp_path)
    published = dict(grounding=dict(pretrained=str(tmp_path), config=None))
    models = [ready(merged(BF16, published), spec) for spec in ("fp32", "bf16")]
    assert models[0].base_fingerprint == models[1].base_fingerprint
    expected = start.grounding.model.vision_encoder.state_dict()
    equal = [
        all(
            torch.equal(v.float(), expected[n])
            for n, v in m.grounding.model.vision_encoder.state_dict().items()
        )
        for m in models
    ]
    assert equal == [True, False]


def test_flash_attention_has_no_float32() -> None:
    cfg = config(**merged(BF16, dict(mllm=dict(attn_implementation="flash_attention_2"))))
    with pytest.raises(ConfigError, match="flash_attention_2") as caught:
        parse_precision("vit=fp32").before_build(cfg)
    assert "model.mllm.attn_implementation=sdpa" in caught.value.fix
    parse_precision("sam2=fp32").before_build(cfg)


def test_a_model_without_these_parts() -> None:
    cfg = Config(dict(model=dict(type="FrangiVesselness")))
    parse_precision("config").before_build(cfg)
    with pytest.raises(ConfigError, match="FrangiVesselness"):
        parse_precision("bf16").before_build(cfg)


@pytest.mark.parametrize(
    ("spec", "needed"), [("int8", ["torchao"]), ("sam2=nf4,vit=int8", ["bitsandbytes", "torchao"])]
)
def test_packages_are_asked_for(
    spec: str, needed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(also: list[str]) -> None:
        raise SetupError(f"no {also}")

    monkeypatch.setattr("projects.sa2va.placement.precision.check_versions", missing)
    with pytest.raises(SetupError) as caught:
        parse_precision(spec).before_build(config(**BF16))
    assert str(needed) in str(caught.value)
    parse_precision("llm=fp32,vit=bf16,sam2=fp16").before_build(config(**BF16))


def test_torchao_talks_of_what_matters_only(caplog: pytest.LogCaptureFixture) -> None:
    from torchao.quantization import Granularity

    logging.getLogger("torchao").warning("Failed to load _C.so: no such library")
    logging.getLogger("torchao").warning("an operator is missing")
    pytree = logging.getLogger("torch.utils._pytree")
    with caplog.at_level(logging.WARNING, pytree.name):
        pytree.addHandler(caplog.handler)
        pytree.warning("%s is an Enum subclass", Granularity)
        pytree.warning("%s is an Enum subclass", Precision)
        pytree.removeHandler(caplog.handler)
    said = {record.getMessage() for record in caplog.records}
    assert said == {"an operator is missing", f"{Precision} is an Enum subclass"}


def test_four_bits_are_of_a_frozen_language_model() -> None:
    cfg = config(**merged(FP32, dict(mllm=dict(lora=None, train_token_rows=False))))
    parse_precision("nf4").before_build(cfg)
    whole = dict(mllm=dict(lora=None, train_token_rows=False, train_language_model=True))
    for spec in ("nf4", "llm=nf4"):
        with pytest.raises(ConfigError, match="train_language_model") as caught:
            parse_precision(spec).before_build(config(**merged(FP32, whole)))
        assert "--precision llm=int8" in caught.value.fix
    parse_precision("int8").before_build(config(**merged(FP32, whole)))

"""Tiny models in a precision, as the tools make them: config, build, load, apply."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from projects.sa2va.models import Sa2VAModel
from projects.sa2va.placement.precision import parse_precision
from tests.models.conftest import merged, picture, predict_inputs, settings

BF16: dict[str, Any] = dict(
    autocast="bfloat16",
    mllm=dict(dtype="bfloat16"),
    grounding=dict(dtype="bfloat16", train_image_encoder=False),
)
FP32: dict[str, Any] = dict(grounding=dict(train_image_encoder=False))
FP16 = merged(
    BF16, dict(autocast="float16", mllm=dict(dtype="float16"), grounding=dict(dtype="float16"))
)


def config(**recipe: Any) -> Config:
    """The model's part of a config."""
    return Config(dict(model=dict(type="Sa2VAModel", **settings(**recipe))))


def loaded(recipe: dict[str, Any], spec: Any = None) -> Sa2VAModel:
    """Built as ``spec`` wants it, with trained weights that are not those of the start."""
    cfg = config(**recipe)
    parse_precision(spec).before_build(cfg)
    arguments = {k: v for k, v in cfg.model.to_dict().items() if k != "type"}
    model = Sa2VAModel(**arguments).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def ready(recipe: dict[str, Any], spec: Any = None) -> Sa2VAModel:
    """Ready to predict in ``spec``."""
    model = loaded(recipe, spec)
    parse_precision(spec).apply(model)
    model.prepare_for_prediction()
    return model


def inputs(model: Sa2VAModel) -> dict[str, Any]:
    """Two images of different sizes, three phrases."""
    images = [picture(1), picture(2, (48, 64))]
    return predict_inputs(model.processor, images, [["blood vessel", "wire"], ["vessel"]])


def predict(model: Sa2VAModel) -> torch.Tensor:
    """All probabilities, float32 [P]."""
    found = model(inputs=inputs(model), mode="predict")
    return torch.cat([p.probabilities.flatten() for p in found])


def linears(model: Sa2VAModel, part: str) -> dict[str, nn.Linear]:
    """Linear layers of a part by name, quantized ones too."""
    return {
        f"{index}.{name}": m
        for index, module in enumerate(model.prediction_parts()[part].modules)
        for name, m in module.named_modules()
        if isinstance(m, nn.Linear)
    }

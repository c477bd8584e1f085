"""Building the base models, and the joint model, from the fixtures of shared/reference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projects.sa2va.models import Sa2VAModel, building, grounding, internvl
from tests.models.reference_model import model_config

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
THEIR_HEAD = "language_model.lm_head.weight"
THEIR_EMBEDDING = "language_model.model.embed_tokens.weight"


def build(kind: str, pretrained: Any, config: dict | None = None) -> building.Built:
    """One of the base models, in float32."""
    return building.build_weights(
        {"mllm": internvl, "grounding": grounding}[kind].part_kind(),
        pretrained=str(pretrained),
        config=copy.deepcopy(config),
        dtype=torch.float32,
        attn_implementation="sdpa",
        seed=0,
        device="cpu",
    )


def model(reference: Path, sizes: dict, **changes: Any) -> Sa2VAModel:
    """The joint model; ``mllm``, ``grounding`` and ``processor`` are updated, not replaced."""
    base = model_config(reference)
    parts = {name: {**base[name], "config": None} for name in ("mllm", "grounding")}
    parts["grounding"]["config"] = copy.deepcopy(sizes)
    parts["processor"] = base["processor"]
    for name in parts:
        parts[name] |= changes.pop(name, {})
    return Sa2VAModel(autocast=None, **parts, **changes)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.float(), other[name].float()), name


def state(part: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}

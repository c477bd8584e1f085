"""A toy model, configs of others like it, and a checkpoint of it, built once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from projects.sa2va.checkpoints import load_trained, provenance, read_checkpoint
from projects.sa2va.config import load_config
from projects.sa2va.models import Sa2VAModel
from tests.tiny_experiment import write_experiment

from .over_reference import SMALL, checkpoint_path, over


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The resolved config of the tiny experiment."""
    return load_config(write_experiment(tmp_path_factory.mktemp("experiment"), frames=(2, 1, 1)))


def build(config: Config, **changes: Any) -> Sa2VAModel:
    """Builds the config's model with keys overridden, dots written as double underscores."""
    cfg = copy.deepcopy(config)
    cfg.merge_from_dict({key.replace("__", "."): value for key, value in changes.items()})
    return MODELS.build(cfg.model).eval()


@pytest.fixture(scope="session")
def trained(tiny_config: Config) -> Sa2VAModel:
    """A model whose trained parts are not those of a fresh one. Read it only."""
    model = build(tiny_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def payload(trained: Sa2VAModel, tiny_config: Config, tmp_path: Path) -> dict[str, Any]:
    """What the runner puts into a checkpoint, without training state."""
    meta = provenance(trained, tmp_path)
    meta.update(cfg=tiny_config.pretty_text, iter=3, epoch=0, seed=0, world_size=1)
    return {"state_dict": trained.trained_state_dict(), "meta": meta, "layout": "trainable"}


@pytest.fixture(scope="session")
def reference(shared_dir: Path) -> Path:
    return shared_dir / "reference"


@pytest.fixture(scope="session")
def base(reference: Path) -> Sa2VAModel:
    """The reference's tiny model with LoRA, for small pictures. Copy it before changing it."""
    return over(reference, processor=SMALL)


@pytest.fixture(scope="session")
def f7(reference: Path) -> dict[str, Any]:
    """The reference's training checkpoint as it is read; see :func:`changed`."""
    return read_checkpoint(checkpoint_path(reference))


@pytest.fixture(scope="session")
def loaded(base: Sa2VAModel, f7: dict[str, Any], reference: Path) -> Sa2VAModel:
    """``base`` with the checkpoint of the reference in it. Read it only."""
    model = copy.deepcopy(base)
    load_trained(model, f7, checkpoint_path(reference))
    return model

"""Experiments to prepare, and a guard that preparing builds no model."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from projects.sa2va.checkpoints.store import FORMAT
from projects.sa2va.engine.start import prepare_training
from projects.sa2va.models import Sa2VAModel


@pytest.fixture
def no_model(monkeypatch):
    """Building a model, or a part of one, fails the test: preparing must not need any."""

    @functools.wraps(Sa2VAModel.__init__)  # the check of the config reads its signature
    def refuse(*args, **kwargs):
        pytest.fail("a model was built before everything was checked")

    monkeypatch.setattr(MODELS, "build", refuse)
    monkeypatch.setattr(Sa2VAModel, "__init__", refuse)


def save(path: Path, *, training_state: bool = True, **meta) -> Path:
    """A checkpoint as far as preparing looks into it."""
    content = {"state_dict": {}, "meta": {"format": FORMAT, "seed": 0, "world_size": 1, **meta}}
    if training_state:
        content |= {"optimizer": {}, "message_hub": {}, "param_schedulers": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def resume(experiment: Path, run: Path, value: str = "auto", **more):
    """Prepares a run that goes on."""
    return prepare_training(str(experiment), work_dir=str(run), resume=value, **more)

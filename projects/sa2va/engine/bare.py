"""The model inside its wrappers."""

from __future__ import annotations

from typing import Any

from projects.sa2va.models import SegmentationModel


def bare_model(model: Any) -> SegmentationModel:
    """The SegmentationModel inside mmengine's, torch's or DeepSpeed's wrapper."""
    while not isinstance(model, SegmentationModel):
        model = model.module
    return model

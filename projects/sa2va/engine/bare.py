"""The model inside its wrappers."""

from __future__ import annotations

from typing import Any

from projects.sa2va.models import Sa2VAModel


def bare_model(model: Any) -> Sa2VAModel:
    """The Sa2VAModel inside mmengine's, torch's or DeepSpeed's wrapper."""
    while not isinstance(model, Sa2VAModel):
        model = model.module
    return model

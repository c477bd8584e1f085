"""Synthetic X-ray coronary angiograms with exact vessel masks."""

from projects.sa2va.datasets.synthetic.dataset import PATIENT_PATTERN, write_dataset
from projects.sa2va.datasets.synthetic.parameters import AngiogramParams
from projects.sa2va.datasets.synthetic.render import (
    GENERATOR_VERSION,
    Layers,
    render,
    render_layers,
)

__all__ = [
    "GENERATOR_VERSION",
    "PATIENT_PATTERN",
    "AngiogramParams",
    "Layers",
    "render",
    "render_layers",
    "write_dataset",
]

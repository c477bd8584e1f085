"""Synthetic X-ray coronary angiograms with exact vessel masks."""

from projects.sa2va.datasets.synthetic.dataset import PATIENT_PATTERN, write_dataset
from projects.sa2va.datasets.synthetic.parameters import AngiogramParams
from projects.sa2va.datasets.synthetic.pretraining_frame import (
    PRETRAINING_VERSION,
    Frame,
    render_frame,
)
from projects.sa2va.datasets.synthetic.pretraining_params import PretrainingParams
from projects.sa2va.datasets.synthetic.real_background import RealBackground
from projects.sa2va.datasets.synthetic.render import (
    GENERATOR_VERSION,
    Layers,
    render,
    render_layers,
)

__all__ = [
    "GENERATOR_VERSION",
    "PATIENT_PATTERN",
    "PRETRAINING_VERSION",
    "AngiogramParams",
    "Frame",
    "Layers",
    "PretrainingParams",
    "RealBackground",
    "render",
    "render_frame",
    "render_layers",
    "write_dataset",
]

"""Data sets, samplers and collation; importing this registers them with mmengine."""

from .coco import CocoVesselDataset
from .collate import sa2va_collate
from .folder import FolderVesselDataset
from .sa2va_json import Sa2VAJsonDataset
from .sampler import EpochSampler, ExactSampler

__all__ = [
    "CocoVesselDataset",
    "EpochSampler",
    "ExactSampler",
    "FolderVesselDataset",
    "Sa2VAJsonDataset",
    "sa2va_collate",
]

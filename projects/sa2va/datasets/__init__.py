"""Data sets, samplers and collation; importing this registers them with mmengine."""

from .coco import CocoVesselDataset
from .collate import sa2va_collate
from .folder import FolderVesselDataset
from .referring import ReferringVesselDataset
from .sa2va_json import Sa2VAJsonDataset
from .sampler import EpochSampler, ExactSampler
from .synthetic.on_the_fly import SyntheticVesselDataset

__all__ = [
    "CocoVesselDataset",
    "EpochSampler",
    "ExactSampler",
    "FolderVesselDataset",
    "ReferringVesselDataset",
    "Sa2VAJsonDataset",
    "SyntheticVesselDataset",
    "sa2va_collate",
]

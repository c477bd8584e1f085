"""The joint model, its two adapters and its losses."""

from .grounding import GroundingAdapter, ImageFeatures, Sam2Adapter
from .losses import MaskLoss
from .mllm import InternVLAdapter, MLLMAdapter
from .outputs import Prediction
from .parameters import fingerprint, parameter_table, part_of
from .sa2va import Sa2VAModel, is_sharded
from .segmentation import SegmentationModel

__all__ = [
    "GroundingAdapter",
    "ImageFeatures",
    "InternVLAdapter",
    "MLLMAdapter",
    "MaskLoss",
    "Prediction",
    "Sa2VAModel",
    "Sam2Adapter",
    "SegmentationModel",
    "fingerprint",
    "is_sharded",
    "parameter_table",
    "part_of",
]

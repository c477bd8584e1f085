"""The joint model, its two adapters and its losses."""

from .answering import is_sharded
from .grounding import GroundingAdapter, ImageFeatures, Sam2Adapter
from .internvl import InternVLAdapter
from .losses import MaskLoss
from .masked_image import MaskedImageModel
from .mllm import MLLMAdapter
from .outputs import Prediction
from .parameters import fingerprint, parameter_table, part_of
from .sa2va import Sa2VAModel
from .segmentation import SegmentationModel

__all__ = [
    "GroundingAdapter",
    "ImageFeatures",
    "InternVLAdapter",
    "MLLMAdapter",
    "MaskLoss",
    "MaskedImageModel",
    "Prediction",
    "Sa2VAModel",
    "Sam2Adapter",
    "SegmentationModel",
    "fingerprint",
    "is_sharded",
    "parameter_table",
    "part_of",
]

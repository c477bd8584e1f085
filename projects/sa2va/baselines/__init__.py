"""Baselines in the same harness: networks of images alone, and a filter without weights."""

from .base import BaselineModel
from .frangi import FrangiVesselness
from .segmentation import SegmentationBaseline

__all__ = ["BaselineModel", "FrangiVesselness", "SegmentationBaseline"]

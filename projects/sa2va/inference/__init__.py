"""Prediction: images in, probability maps, masks and answers out. See docs/inference.md."""

from .inferencer import Sa2VAInferencer, inference_model, init_model
from .questions import DEFAULT_TEXT
from .results import InferenceResult

__all__ = [
    "DEFAULT_TEXT",
    "InferenceResult",
    "Sa2VAInferencer",
    "inference_model",
    "init_model",
]

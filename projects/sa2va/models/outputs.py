"""What the model gives back for one image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Prediction:
    """Prediction for the K phrases of one image.

    Attributes:
        probabilities: float32 [K, H, W] in [0, 1], on the CPU, at the original image size. No
            threshold has been applied.
        answers: the K answers as text.
        seg_emitted: whether each answer held [SEG]; where it did not, the map is all zero.
    """

    probabilities: Tensor
    answers: list[str]
    seg_emitted: list[bool]

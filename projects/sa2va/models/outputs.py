"""What the model gives back for one image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

DEFAULT_PRESENCE_THRESHOLD = 0.5
"""Of ``model.presence_threshold``: the likelier answer is the one that is given."""


@dataclass
class Prediction:
    """Prediction for the K phrases of one image.

    Attributes:
        probabilities: float32 [K, H, W] in [0, 1], on the CPU, at the original image size. No
            threshold has been applied.
        answers: the K answers as text; phrases of one question have the same.
        seg_emitted: whether each answer held [SEG] for its phrase; where it did not, the map is
            all zero.
        presence: probability that each phrase is in the image, in [0, 1], of answers that were
            chosen; None where nothing was chosen.
        mapped: whether each answer says which [SEG] is its phrase's; False only for several phrases
            in one question, whose maps are then all zero. None: all are.
    """

    probabilities: Tensor
    answers: list[str]
    seg_emitted: list[bool]
    presence: list[float] | None = None
    mapped: list[bool] | None = None

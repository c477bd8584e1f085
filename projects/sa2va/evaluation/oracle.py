"""The ceiling that the decoder's grid sets: the truth itself, pushed through it and back.

SAM2 draws its masks on a grid of a quarter of its input (256 x 256 for 1024). The truth is shrunk
to that grid by area, enlarged again bilinearly as the logits are, and scored as a prediction, cut
at 0.5: the middle between all and nothing of a pixel, whatever threshold suits the model. It is
the score of a decoder that draws the true share of vessel in every cell, an estimate of what can
be reached and no strict bound. It never touches a prediction.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

ORACLE_THRESHOLD = 0.5


def through_grid(truth: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The truth as the grid holds it.

    Args:
        truth: bool [H, W].
        grid: rows and columns of the decoder's logits.

    Returns:
        float32 [H, W] in [0, 1].
    """
    area = torch.from_numpy(truth).float()[None, None]
    coarse = F.interpolate(area, grid, mode="area")
    # Rounding may leave the interval by one unit in the last place.
    return F.interpolate(coarse, truth.shape, mode="bilinear")[0, 0].clamp_(0, 1).numpy()

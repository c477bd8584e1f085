"""Thick skeletons of masks, for the skeleton recall loss.

Source: Kirchhoff et al., 2024 (Skeleton Recall Loss; nnU-Net's ``SkeletonTransform``): the skeleton
of the label, dilated by two pixels and kept inside the label, so that a prediction that runs a
little beside the centreline still counts.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

_RADIUS = 2  # pixels, as in the paper


def thick_skeletons(masks: np.ndarray) -> np.ndarray:
    """Skeletons of masks, two pixels wider on each side.

    Args:
        masks: uint8 {0, 1} [K, H, W].

    Returns:
        uint8 {0, 1} [K, H, W]; empty where a mask is.
    """
    out = np.zeros_like(masks)
    for index, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        # Thinning costs time for every pixel, and vessels fill part of a frame only.
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        part = np.pad(mask[box].astype(bool), 1)
        wide = ndimage.binary_dilation(skeletonize(part), iterations=_RADIUS) & part
        out[index][box] = wide[1:-1, 1:-1]
    return out

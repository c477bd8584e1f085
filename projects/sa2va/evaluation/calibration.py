"""Whether probabilities mean what they say: of the pixels called 0.7, are 70 % vessel?

With n_b pixels in bin b, their mean probability conf_b and the share of them that is vessel freq_b:

    ECE   = sum over b of n_b / n |freq_b - conf_b|
    MCE   = max over b of |freq_b - conf_b|, bins without pixels left out
    Brier = mean over all pixels of (probability - truth)^2

(Naeini et al., AAAI 2015; Guo et al., ICML 2017; Brier, Monthly Weather Review 78:1, 1950.) All
pixels of all rows count, as if they were one image. ``equal_width`` has 15 bins of one width;
``equal_mass`` has about as many with about as many pixels each, cut between the steps of a fine
grid (:data:`EDGES`), so that it tells apart what one wide bin near 0 hides. Vessels fill a few
percent of an image, so the bin near 0 holds most pixels and rules the ECE: read it together with
the diagram.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from .overlap import ratio

BINS = 15
WIDE = np.arange(1, BINS) / BINS
"""Inner edges of the bins of one width."""
EDGES = np.unique(np.concatenate([WIDE, expit(np.linspace(-12, 12, 193))]).astype(np.float32))
"""Inner edges of the fine bins, float32: steps of 1/8 of the logit, and those of the wide bins."""
_STARTS = np.concatenate([[0], np.searchsorted(EDGES, WIDE.astype(np.float32)) + 1])


def calibration_parts(negatives: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """What is summed over rows.

    Args:
        negatives, positives: sorted probabilities off and on the truth, float32 [N] in [0, 1]
            (:func:`.ranking.split`).

    Returns:
        float64 [bins, 4] for each fine bin: pixels, those that are vessel, sum of the
        probabilities, sum of the squared errors. A bin holds its lower edge.
    """
    found = np.zeros((len(EDGES) + 1, 4))
    for target, values in ((0.0, negatives), (1.0, positives)):
        if not len(values):
            continue
        ends = np.append(np.searchsorted(values, EDGES, "left"), len(values))
        count = np.diff(ends, prepend=0)
        filled = np.flatnonzero(count)
        # Sums of slices, which reduceat takes from one start to the next: no bin may be empty.
        starts = (ends - count)[filled]
        column = values.astype(np.float64)
        found[filled, 2] += np.add.reduceat(column, starts)
        column -= target  # in place, as memory that is new costs more than the arithmetic
        found[filled, 3] += np.add.reduceat(np.square(column, out=column), starts)
        found[:, :2] += np.stack([count, count * target], axis=1)
    return found


def wide_bins(parts: np.ndarray) -> np.ndarray:
    """Fine bins [..., F, 4] summed to those of equal width, [..., 15, 4]."""
    return np.add.reduceat(parts, _STARTS, axis=-2)


def mass_bins(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fine bins [F, 4] joined to bins of about n / 15 pixels each.

    Returns:
        The bins [M, 4], M <= 15, and the index of the first fine bin of each.
    """
    before = np.concatenate([[0], np.cumsum(parts[:, 0])[:-1]])
    total = parts[:, 0].sum()
    # A fine bin belongs where the middle of its pixels falls; one with many fills several alone.
    number = np.floor((before + parts[:, 0] / 2) / max(total, 1) * BINS).astype(int)
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return np.add.reduceat(parts, starts, axis=0), starts


def errors(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ECE and MCE of bins [..., B, 4]; float64 [...] each, ``nan`` without a pixel."""
    counts, positives, confidence = (bins[..., column] for column in range(3))
    gap = np.abs(positives - confidence)
    apart = np.nan_to_num(ratio(gap, counts))
    total = counts.sum(-1)
    return ratio(gap.sum(-1), total), np.where(total > 0, apart.max(-1), np.nan)

"""Average precision: how well the probabilities rank vessel above background, at no threshold.

AP = sum over n of (R_n - R_(n-1)) P_n, over the distinct probabilities as thresholds from high to
low: the step-wise area under the precision-recall curve, without interpolation, as scikit-learn's
``average_precision_score`` has it. A map that says the same everywhere gets the truth's share of
pixels.

    truth    prediction   average_precision
    empty    any          undefined (there is nothing to rank above the rest)
    some     all 0        the truth's share of the image
    full     any          1

A row's value is exact. Over all rows together nothing can be sorted, so the pooled value counts
pixels in 256 bins, those of an 8-bit PNG (round(255 p)); probabilities within one bin are tied.
"""

from __future__ import annotations

import math

import numpy as np

from .overlap import ratio

RANKING_NAMES = ("average_precision",)
BINS = 256


def split(probability: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts a map's probabilities, float [H, W] in [0, 1], into those off and on the bool truth."""
    negatives, positives = probability[~truth], probability[truth]
    negatives.sort()
    positives.sort()
    return negatives, positives


def average_precision(negatives: np.ndarray, positives: np.ndarray) -> float:
    """Exact average precision of one map, from :func:`split`; ``nan`` without a positive pixel."""
    if not len(positives):
        return math.nan
    # Only thresholds at which recall moves have a weight, so the negatives need no thresholds.
    levels, first = np.unique(positives, return_index=True)
    tp = len(positives) - first
    fp = len(negatives) - np.searchsorted(negatives, levels, side="left")
    gained = tp - np.append(tp[1:], 0)
    return float(np.sum(gained * (tp / (tp + fp))) / len(positives))


def level_counts(negatives: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Pixels by level round(255 p), from :func:`split`: int64 [2, 256], background and truth."""
    levels = np.arange(BINS)
    ends = [
        np.searchsorted(np.rint(side * 255), levels, "right") for side in (negatives, positives)
    ]
    return np.diff(ends, axis=1, prepend=0)


def pooled_ranking(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Average precision of summed level counts.

    Args:
        counts: [..., 2, 256] of :func:`level_counts`.

    Returns:
        float64 [...]; ``nan`` without a positive pixel.
    """
    from_high = np.asarray(counts, float)[..., ::-1]
    negatives, positives = from_high[..., 0, :], from_high[..., 1, :]
    tp, fp = positives.cumsum(-1), negatives.cumsum(-1)
    weighted = np.divide(positives * tp, tp + fp, out=np.zeros_like(tp), where=positives > 0)
    return {"average_precision": ratio(weighted.sum(-1), positives.sum(-1))}

"""Distances between the outlines of two masks.

An outline is the mask's pixels with a 4-neighbour outside; d(A, B) are the distances of the pixels
of outline A to the nearest one of outline B.

    hd95 = max(95th percentile of d(P, T), 95th percentile of d(T, P))
    assd = mean of d(P, T) and d(T, P) taken together

as MONAI's ``compute_hausdorff_distance(percentile=95)`` and
``compute_average_surface_distance(symmetric=True)`` have them; percentiles are interpolated
linearly. In px; ``hd95_mm`` and ``assd_mm`` in mm for the frames whose pixel spacing is known.
Pooled, the distances of all rows are put together first.

    truth    prediction   all of them
    empty    any          undefined
    some     empty        undefined

No distance leads to an empty outline, and no number stands in its place. A model that answers
nothing therefore loses no mean distance: read the number of undefined rows, and recall, beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from .geometry import MaskGeometry, nearest
from .overlap import ratio

SURFACE_NAMES = ("hd95", "assd")
SURFACE_MM_NAMES = ("hd95_mm", "assd_mm")
_PERCENTILE = 95


class SurfaceDistances:
    """The distances of one row, as histograms of their distinct values (there are few).

    Args:
        to_truth: float [N], d(P, T); empty where undefined.
        to_prediction: float [M], d(T, P); empty where undefined.
    """

    def __init__(self, to_truth: np.ndarray, to_prediction: np.ndarray) -> None:
        sides = (to_truth, to_prediction)
        self.histograms = [np.unique(side, return_counts=True) for side in sides]

    @classmethod
    def between(
        cls, prediction: MaskGeometry, truth: MaskGeometry, spacing: np.ndarray
    ) -> SurfaceDistances:
        """Measures; ``spacing`` float [2] of rows and columns, in px or mm."""
        ours, theirs = prediction.edges, truth.edges
        if not len(ours) or not len(theirs):
            return cls(np.empty(0), np.empty(0))
        return cls(nearest(ours, theirs, spacing), nearest(theirs, ours, spacing))

    def scaled(self, factor: float) -> SurfaceDistances:
        """The same with all distances times ``factor`` (square pixels: px to mm)."""
        scaled = SurfaceDistances(np.empty(0), np.empty(0))
        scaled.histograms = [(values * factor, counts) for values, counts in self.histograms]
        return scaled

    def sums(self) -> np.ndarray:
        """float64 [2]: sum and number of all distances, both directions."""
        return np.array(
            [
                sum(float(values @ counts) for values, counts in self.histograms),
                sum(int(counts.sum()) for _, counts in self.histograms),
            ]
        )

    def hd95(self) -> float:
        """Of this row, ``nan`` where undefined."""
        return pooled_hd95([self])


def pooled_hd95(rows: Iterable[SurfaceDistances]) -> float:
    """hd95 of all distances of ``rows`` together; ``nan`` if there is none."""
    sides = zip(*(row.histograms for row in rows), strict=True)
    return max((_percentile(side) for side in sides), default=math.nan)


def pooled_assd(sums: np.ndarray) -> np.ndarray:
    """assd from summed [..., 2] of :meth:`SurfaceDistances.sums`; ``nan`` without distances."""
    return ratio(sums[..., 0], sums[..., 1])


def _percentile(histograms: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The 95th percentile of all of them, interpolated as ``numpy.percentile`` does."""
    values, counts = (np.concatenate(part) for part in zip(*histograms, strict=True))
    total = int(counts.sum())
    if total == 0:
        return math.nan
    order = np.argsort(values, kind="stable")
    values, ends = values[order], np.cumsum(counts[order])
    rank = (total - 1) * _PERCENTILE / 100
    low = int(rank)
    below, above = values[np.searchsorted(ends, [low, min(low + 1, total - 1)], side="right")]
    return float(below + (above - below) * (rank - low))

"""Means of a metric over patients, of several runs on the same frames, and of patients drawn again.

What a comparison of two runs (:mod:`.compare`) and the table of a sweep (``sweeps/statistics.py``)
have in common: how a metric is averaged, and how its bootstrap is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .compare_phrases import OVER_PHRASES, OverPhrases


class RunMeans(Protocol):
    """The means of R runs over the C patients for whom all of them define the metric."""

    def contributions(self) -> np.ndarray:
        """What each patient adds: float64 [R, C], whose mean over patients is that of the run."""

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """The means, float64 [R, B], of patients drawn as often as ``weights`` [B, C] says."""


@dataclass(frozen=True)
class OverPatients:
    """Each patient weighs as one.

    Attributes:
        means: float64 [R, C], of the frames of a patient.
    """

    means: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, groups: np.ndarray) -> OverPatients:
        """Of ``values`` float64 [R, rows], ``nan`` where undefined, and patients ``groups``."""
        defined = ~np.isnan(values).any(axis=0)
        return cls(np.array([cluster_means(own[defined], groups[defined]) for own in values]))

    def contributions(self) -> np.ndarray:
        """See :class:`RunMeans`."""
        return self.means

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """See :class:`RunMeans`."""
        # Run by run: equal runs then have equal sums to the last bit, and no difference.
        return np.array([weights @ own for own in self.means]) / self.means.shape[1]


def run_means(
    metric: str, values: np.ndarray, groups: np.ndarray, keys: Sequence[tuple[str, str]]
) -> RunMeans:
    """The means of a metric.

    Args:
        metric: its name, which says whether the mean is one over phrases.
        values: float64 [R, rows] of R runs, ``nan`` where undefined; a row that is undefined in one
            run is left out of all.
        groups: int64 [rows], the number of each row's patient.
        keys: frame and phrase of each row.
    """
    if metric.endswith(OVER_PHRASES):
        return OverPhrases.of(values, groups, keys)
    return OverPatients.of(values, groups)


def cluster_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean of ``values`` [N] in each group that occurs in ``groups`` int [N]."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return np.bincount(inverse, values, len(counts)) / counts

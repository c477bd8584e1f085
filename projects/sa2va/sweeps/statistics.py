"""The numbers of a row: over patients, over seeds, and against the baseline.

``values`` is float64 [S, N]: a metric of S seeds (runs of one row) on the same N frames and
phrases, ``nan`` where it is undefined. A frame that is undefined for one seed is left out for all
of them, and counted, so that every number of a row is about the same frames. The unit is the
patient (the frame where no patient ids are known), as in tools/compare.py: V [S, P] is the mean of
a seed over the frames of a patient.

* the mean is that of V; the spread is that of its S row means, with n - 1;
* the interval is the percentile bootstrap over patients of the mean of V over seeds: it speaks of
  other patients and these very trainings;
* from :data:`MIN_SEEDS` seeds on, seeds are drawn too, independently of patients (the pigeonhole
  bootstrap for crossed factors: Owen, Annals of Applied Statistics 1:386, 2007, whose variance is
  never below the true one by more than terms of a lower order). With fewer, resampling them would
  give an interval that is far too narrow: two seeds have three distinct resamples;
* a difference is paired: the same patients are drawn for both rows, frames must be defined in both.
  Seeds are drawn independently, because seed 0 of one row and of another share no randomness that
  would make their results alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..evaluation.bootstrap import Interval, draw_weights, percentile_interval
from ..evaluation.compare import cluster_means

MIN_SEEDS = 5
LEVEL = 0.95
_PATIENTS, _SEEDS, _BASELINE_SEEDS = 0, 1, 2  # of the random draws


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two.

    Attributes:
        value: ``nan`` if no frame defines it.
        seed_values: of each seed; empty for a difference.
        interval: 95 %, or None with fewer than two patients.
        seeds_drawn: whether the interval covers seeds, too.
        units: patients (or frames).
        left_out: frames that are undefined for a seed.
    """

    value: float
    seed_values: tuple[float, ...]
    interval: Interval | None
    seeds_drawn: bool
    units: int
    left_out: int

    @property
    def seed_sd(self) -> float:
        """Standard deviation over seeds; ``nan`` with one seed."""
        return float(np.std(self.seed_values, ddof=1)) if len(self.seed_values) > 1 else math.nan


def estimate(values: np.ndarray, groups: np.ndarray, resamples: int) -> Estimate:
    """The mean of a row.

    Args:
        values: float64 [S, N].
        groups: int [N], the number of each frame's patient.
        resamples: of the bootstrap.
    """
    defined = ~np.isnan(values).any(axis=0)
    means = _means(values, groups, defined)
    drawn = len(values) >= MIN_SEEDS
    interval = None
    if means.shape[1] > 1:
        per_patient = _over_seeds(means, resamples, _SEEDS, drawn)
        interval = _interval(per_patient, resamples)
    own = tuple(float(value) for value in means.mean(axis=1)) if defined.any() else ()
    value = float(means.mean()) if defined.any() else math.nan
    return Estimate(value, own, interval, drawn, means.shape[1], int((~defined).sum()))


def difference(
    values: np.ndarray, baseline: np.ndarray, groups: np.ndarray, resamples: int
) -> Estimate:
    """Row minus baseline, paired by frames.

    Args:
        values: float64 [S, N] of the row.
        baseline: float64 [T, N] of the baseline.
        groups: int [N].
        resamples: of the bootstrap.
    """
    defined = ~(np.isnan(values).any(axis=0) | np.isnan(baseline).any(axis=0))
    a, b = _means(baseline, groups, defined), _means(values, groups, defined)
    drawn = min(len(a), len(b)) >= MIN_SEEDS
    interval = None
    if a.shape[1] > 1:
        own = _over_seeds(b, resamples, _SEEDS, drawn)
        other = _over_seeds(a, resamples, _BASELINE_SEEDS, drawn)
        interval = _interval(own - other, resamples)
    value = float(b.mean() - a.mean()) if defined.any() else math.nan
    return Estimate(value, (), interval, drawn, a.shape[1], int((~defined).sum()))


def _means(values: np.ndarray, groups: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """[S, P], patients without a defined frame left out."""
    if not defined.any():
        return np.zeros((len(values), 0))
    return np.stack([cluster_means(seed[defined], groups[defined]) for seed in values])


def _over_seeds(means: np.ndarray, resamples: int, draw: int, drawn: bool) -> np.ndarray:
    """Means over seeds of each patient, [B, P] with seeds drawn again, else [1, P]."""
    if not drawn:
        return means.mean(axis=0, keepdims=True)
    return draw_weights(len(means), resamples, draw) @ means / len(means)


def _interval(per_patient: np.ndarray, resamples: int) -> Interval | None:
    """Of the mean over patients, drawn again; ``per_patient`` is [B, P] or [1, P]."""
    count = per_patient.shape[1]
    weights = draw_weights(count, resamples, _PATIENTS)
    return percentile_interval((weights * per_patient).sum(axis=1) / count, LEVEL)

"""The numbers of a row: over patients, over seeds, and against the baseline.

``values`` is float64 [S, N]: a metric of S seeds (runs of one row) on the same N frames and
phrases, ``nan`` where it is undefined. A frame that is undefined for one seed is left out for all
of them, and counted, so that every number of a row is about the same frames. The unit is the
patient (the frame where no patient ids are known), as in tools/compare.py, whose means and
resamples these are (``evaluation/run_means.py``): V [S, P] is what a patient adds to the mean of a
seed, which is the mean over the patient's frames but for a mean over phrases.

* the mean is that of V; the spread is that of its S row means, with n - 1;
* the interval is the percentile bootstrap over patients of the mean over seeds: it speaks of other
  patients and these very trainings. A mean over phrases is taken anew in each resample;
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
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..evaluation.bootstrap import Interval, draw_weights, percentile_interval
from ..evaluation.run_means import RunMeans

MIN_SEEDS = 5
LEVEL = 0.95
_PATIENTS, _SEEDS, _BASELINE_SEEDS = 0, 1, 2  # of the random draws
Over = Callable[[np.ndarray], RunMeans]
"""How values [R, N] of runs become means."""


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


def estimate(values: np.ndarray, over: Over, resamples: int) -> Estimate:
    """The mean of a row.

    Args:
        values: float64 [S, N].
        over: how they are averaged.
        resamples: of the bootstrap.
    """
    means = over(values)
    own = means.contributions()
    drawn = len(values) >= MIN_SEEDS
    sampled = _resampled(means, own.shape[1], resamples)
    interval = None
    if sampled is not None:
        interval = percentile_interval(_over_seeds(sampled, _SEEDS, drawn), LEVEL)
    of_seeds = tuple(float(value) for value in own.mean(axis=1)) if own.size else ()
    value = float(own.mean()) if own.size else math.nan
    return Estimate(value, of_seeds, interval, drawn, own.shape[1], _left_out(values))


def difference(values: np.ndarray, baseline: np.ndarray, over: Over, resamples: int) -> Estimate:
    """Row minus baseline, paired by frames.

    Args:
        values: float64 [S, N] of the row.
        baseline: float64 [T, N] of the baseline.
        over: how they are averaged.
        resamples: of the bootstrap.
    """
    both, count = np.concatenate([values, baseline]), len(values)
    means = over(both)
    own = means.contributions()
    drawn = min(count, len(baseline)) >= MIN_SEEDS
    sampled = _resampled(means, own.shape[1], resamples)
    interval = None
    if sampled is not None:
        b = _over_seeds(sampled[:count], _SEEDS, drawn)
        a = _over_seeds(sampled[count:], _BASELINE_SEEDS, drawn)
        interval = percentile_interval(b - a, LEVEL)
    value = float(own[:count].mean() - own[count:].mean()) if own.size else math.nan
    return Estimate(value, (), interval, drawn, own.shape[1], _left_out(both))


def _resampled(means: RunMeans, patients: int, resamples: int) -> np.ndarray | None:
    """Means of the runs over patients drawn again, [R, B]; None with fewer than two patients."""
    if patients < 2:
        return None
    return means.resampled(draw_weights(patients, resamples, _PATIENTS))


def _over_seeds(sampled: np.ndarray, draw: int, drawn: bool) -> np.ndarray:
    """Means over the seeds of [S, B], with seeds drawn again or not."""
    if not drawn:
        return sampled.mean(axis=0)
    seeds, resamples = sampled.shape
    return (draw_weights(seeds, resamples, draw).T * sampled).sum(axis=0) / seeds


def _left_out(values: np.ndarray) -> int:
    return int(np.isnan(values).any(axis=0).sum())

"""The curve over thresholds, its confidence band, and the threshold that is chosen.

With v_k the mean of the metric at candidate k (over rows, over patients, or of pooled counts):

* the band is the pointwise bootstrap interval of v_k over patients (:mod:`.bootstrap`);
* the choice is the candidate of the largest v_k; among equal ones the simplest, then the middle;
* ``threshold_interval`` holds the middle 95 % of the thresholds that the resamples would choose;
* the plateau is the run of thresholds around the choice, post-processing unchanged, whose loss
  against the choice has an interval that reaches 0: these data do not tell them apart from it.

The score at the choice is the best of many on the same frames, so it is too good for other frames:
it is for choosing, and the test on other frames is the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, suggest
from .bootstrap import FEW_CLUSTERS, Interval, draw_weights, percentile_interval
from .overlap import ratio
from .threshold_sweep import SWEEP_METRICS, Candidate, score

AVERAGES = ("frames", "patients", "pooled")
_TIE = 1e-12
_LEVEL = 0.95


@dataclass(frozen=True)
class Target:
    """What is maximised.

    Args:
        metric: 'dice', 'iou', 'fbeta' or 'cldice'.
        beta: of F-beta; recall weighs ``beta`` times as much as precision.
        average: 'frames' (mean over rows), 'patients' (mean over patients of their mean) or
            'pooled' (of summed counts).

    Raises:
        ConfigError: it is none of these.
    """

    metric: str = "dice"
    beta: float = 1.0
    average: str = "frames"

    def __post_init__(self) -> None:
        for name, known in (("metric", SWEEP_METRICS), ("average", AVERAGES)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    found=f"{name} {value!r}{suggest(str(value), known)}",
                    expected="one of " + ", ".join(known),
                    fix=f"--{name} {known[0]}",
                )
        if not 0 < self.beta < float("inf"):
            raise ConfigError(
                found=f"beta {self.beta!r}",
                expected="a number above 0; 2 weighs recall twice as much as precision",
                fix="--beta 2",
            )

    @property
    def skeletons(self) -> bool:
        """Whether lengths of skeletons are needed."""
        return self.metric == "cldice"

    def describe(self) -> str:
        """For logs and pictures."""
        name = f"F{self.beta:g}" if self.metric == "fbeta" else self.metric
        over = {"frames": "mean over frames", "patients": "mean over patients"}
        return f"{name} ({over.get(self.average, self.average)})"


@dataclass(frozen=True)
class Curve:
    """The target at every candidate.

    Attributes:
        candidates: K of them.
        values: float64 [K]; ``nan`` where no row defines it.
        low, high: the band, float64 [K]; ``nan`` where there is none.
        best: index of the choice.
        threshold_interval: of the chosen threshold, or None with fewer than two clusters.
        plateau: first and last threshold that are not told apart from the choice, or None.
        gain: of the choice over the best candidate without post-processing, with its interval.
        bootstrap: ``unit``, ``clusters``, ``resamples``, ``seed``, ``level``.
        notes: what a reader must know, one line each.
    """

    candidates: tuple[Candidate, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    best: int
    threshold_interval: Interval | None
    plateau: Interval | None
    gain: tuple[float, Interval | None] | None
    bootstrap: dict[str, Any]
    notes: list[str]

    @property
    def choice(self) -> Candidate:
        """The candidate that is chosen."""
        return self.candidates[self.best]

    def interval(self, index: int) -> Interval | None:
        """The band at a candidate."""
        bounds = float(self.low[index]), float(self.high[index])
        return None if np.isnan(bounds).any() else bounds

    def records(self) -> list[dict[str, Any]]:
        """One record a candidate, by threshold: the columns of threshold_curve.csv."""
        order = sorted(
            range(len(self.candidates)),
            key=lambda k: (_settings(self.candidates[k]), self.candidates[k].threshold),
        )
        return [
            {
                "threshold": self.candidates[k].threshold,
                "low": self.candidates[k].low,
                "min_area": self.candidates[k].min_area,
                "value": float(self.values[k]),
                "band_low": float(self.low[k]),
                "band_high": float(self.high[k]),
                "chosen": k == self.best,
            }
            for k in order
        ]


def _settings(candidate: Candidate) -> tuple[int, float]:
    """Sorts by how much is done after the cut; no hysteresis first."""
    return candidate.min_area, -1.0 if candidate.low is None else candidate.low


def curve(
    candidates: Sequence[Candidate],
    parts: np.ndarray,
    rows: Sequence[tuple[str, str | None]],
    target: Target,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Curve:
    """Computes it.

    Args:
        candidates: K of them.
        parts: int64 [R, K, 7] of :class:`~.threshold_sweep.SweepWork`.
        rows: frame and patient (or None) of the R rows.
        target: what is maximised.
        resamples, seed: of the bootstrap; 0 for no band.

    Raises:
        DataError: no row defines the metric at any threshold; a mean over patients without ids.
    """
    keys = [("patient", p) if p is not None else ("frame", f) for f, p in rows]
    if target.average == "patients":
        kept = [index for index, key in enumerate(keys) if key[0] == "patient"]
        if not kept:
            raise DataError(
                found="a mean over patients of frames without patient ids",
                expected="patient ids",
                fix="--average frames, or set `patient` of the data set and test again",
            )
        keys, parts = [keys[index] for index in kept], parts[kept]
    clusters = sorted(set(keys))
    members = [[i for i, key in enumerate(keys) if key == cluster] for cluster in clusters]
    statistic = _Statistic(parts, members, target)
    values = statistic(np.ones((1, len(clusters))))[0]
    if np.isnan(values).all():
        raise DataError(
            found=f"{target.describe()} is undefined at every threshold: truth and maps are empty",
            expected="frames with a vessel",
            fix="check the masks of the validation split and probabilities/ of the run",
        )
    best = _best(candidates, values)
    unit = "patient" if clusters[0][0] == "patient" or clusters[-1][0] == "patient" else "frame"
    about = {"unit": unit, "clusters": len(clusters), "resamples": resamples, "seed": seed}
    drawn = np.full((1, len(values)), np.nan)
    if resamples and len(clusters) > 1:
        drawn = statistic(draw_weights(len(clusters), resamples, seed))
    band = np.array([percentile_interval(c, _LEVEL) or (np.nan, np.nan) for c in drawn.T])
    found = Curve(
        candidates=tuple(candidates),
        values=values,
        low=band[:, 0],
        high=band[:, 1],
        best=best,
        threshold_interval=_chosen_interval(candidates, drawn),
        plateau=_plateau(candidates, drawn, best),
        gain=_gain(candidates, values, drawn, best),
        bootstrap={**about, "level": _LEVEL},
        notes=[],
    )
    found.notes.extend(_notes(found, clusters))
    return found


class _Statistic:
    """The target at all candidates for weights of the clusters [B, C]: float64 [B, K]."""

    def __init__(self, parts: np.ndarray, members: list[list[int]], target: Target) -> None:
        self.target, self.shape = target, parts.shape[1:]
        if target.average == "pooled":
            self.sums = np.stack([parts[rows].sum(0) for rows in members]).astype(float)
            return
        values = score(parts, target.metric, target.beta)
        self.sums = np.stack([np.nansum(values[rows], axis=0) for rows in members])
        self.defined = np.stack([(~np.isnan(values[rows])).sum(axis=0) for rows in members])
        if target.average == "patients":
            self.sums = np.nan_to_num(ratio(self.sums, self.defined))
            self.defined = self.defined > 0

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        if self.target.average == "pooled":
            drawn = weights @ self.sums.reshape(len(self.sums), -1)
            return score(drawn.reshape(-1, *self.shape), self.target.metric, self.target.beta)
        return ratio(weights @ self.sums, weights @ self.defined.astype(float))


def _best(candidates: Sequence[Candidate], values: np.ndarray) -> int:
    tied = np.flatnonzero(values >= np.nanmax(values) - _TIE)
    simplest = min(_settings(candidates[k]) for k in tied)
    left = [k for k in tied if _settings(candidates[k]) == simplest]
    left.sort(key=lambda k: candidates[k].threshold)
    return int(left[(len(left) - 1) // 2])


def _chosen_interval(candidates: Sequence[Candidate], drawn: np.ndarray) -> Interval | None:
    known = drawn[~np.isnan(drawn).all(axis=1)]
    if not len(known):
        return None
    # Equal maxima of a resample count with the mean of their thresholds.
    tied = known >= np.nanmax(known, axis=1, keepdims=True) - _TIE
    cuts = np.array([candidate.threshold for candidate in candidates])
    return percentile_interval((tied * cuts).sum(1) / tied.sum(1), _LEVEL)


def _plateau(candidates: Sequence[Candidate], drawn: np.ndarray, best: int) -> Interval | None:
    alike = [k for k, c in enumerate(candidates) if _settings(c) == _settings(candidates[best])]
    alike.sort(key=lambda k: candidates[k].threshold)
    losses = [percentile_interval(drawn[:, best] - drawn[:, k], _LEVEL) for k in alike]
    if None in losses:
        return None
    near = [bounds[0] <= _TIE for bounds in losses]
    first = last = alike.index(best)
    while first > 0 and near[first - 1]:
        first -= 1
    while last + 1 < len(alike) and near[last + 1]:
        last += 1
    return candidates[alike[first]].threshold, candidates[alike[last]].threshold


def _gain(
    candidates: Sequence[Candidate], values: np.ndarray, drawn: np.ndarray, best: int
) -> tuple[float, Interval | None] | None:
    plain = [k for k, candidate in enumerate(candidates) if not candidate.postprocess.changes]
    if len(plain) == len(candidates) or np.isnan(values[plain]).all():
        return None
    other = plain[_best([candidates[k] for k in plain], values[plain])]
    difference = drawn[:, best] - drawn[:, other]
    return float(values[best] - values[other]), percentile_interval(difference, _LEVEL)


def _notes(found: Curve, clusters: list[tuple[str, str]]) -> list[str]:
    notes, choice = [], found.choice
    cuts = sorted({candidate.threshold for candidate in found.candidates})
    largest = max(candidate.min_area for candidate in found.candidates)
    if choice.min_area == largest > 0:
        notes.append(f"min_area {largest} px is the largest that was tried: give --min-areas more")
    if len(cuts) > 1 and choice.low is None and choice.threshold in (cuts[0], cuts[-1]):
        notes.append(
            f"the best threshold, {choice.threshold:g}, is the last of the sweep: the maps are far "
            "from calibrated; see calibration.png"
        )
    spread = float(np.nanmax(found.values) - np.nanmin(found.values))
    if spread < 1e-3:
        notes.append(
            f"all thresholds are within {spread:.1g}: the maps hold 0 and 1 almost only, or nothing"
        )
    elif found.plateau is not None and found.plateau[0] < found.plateau[1]:
        notes.append(
            f"a plateau: thresholds from {found.plateau[0]:g} to {found.plateau[1]:g} are not told "
            "apart by these frames"
        )
    if found.gain is not None and choice.postprocess.changes:
        gain, bounds = found.gain
        if bounds is None or bounds[0] <= 0:
            notes.append(
                f"post-processing gains {gain:.4f} over the best threshold alone, and its interval "
                "reaches 0: leave it out"
            )
    patients = sum(kind == "patient" for kind, _ in clusters)
    if len(clusters) < 2:
        notes.append("no band: there is only one patient or frame")
    elif not patients:
        notes.append("no patient ids: frames were resampled as if independent")
    elif len(clusters) < FEW_CLUSTERS:
        notes.append(f"only {len(clusters)} patients: the true intervals are wider")
    return notes

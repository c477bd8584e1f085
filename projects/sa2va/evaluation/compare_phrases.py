"""Scores over phrases of two runs, for a comparison; the means are those of :mod:`.phrases`.

Both runs have the same truth, so the number n_p of pairs in which phrase p is present is the same,
and the difference of their means over P phrases is a sum over pairs of d / (P n_p). Summed up by
patient and multiplied by the number C of patients it is the d of a patient: its mean over patients
is the difference, and flipping a patient's sign swaps A and B for that patient. Intervals resample
patients and take each phrase's mean anew, without phrases that were not drawn, as those of a single
run do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import LOWER_IS_BETTER
from .overlap import ratio
from .phrases import MEAN_NAMES

PHRASE_MEANS = OVER_PHRASES, _, _FALSE_POSITIVES, _MISSES = tuple(f"_{n}" for n in MEAN_NAMES)
Rows = Mapping[tuple[str, str], Mapping[str, Any]]


def phrase_metrics(report: Mapping[str, Any]) -> list[str]:
    """Names of what can be compared besides the metrics, of a run with several phrases."""
    kinds = (report.get("phrases") or {}).get("means", {})
    return [kind + end for kind in kinds for end in PHRASE_MEANS]


def lower_is_better(metric: str) -> bool:
    """Of a metric of a frame, or of a mean over phrases."""
    return metric in LOWER_IS_BETTER or metric.endswith((_FALSE_POSITIVES, _MISSES))


def pair_values(
    metric: str, report: Mapping[str, Any], rows: Rows, keys: Sequence[tuple[str, str]]
) -> np.ndarray:
    """What each row adds to a mean over phrases.

    Args:
        metric: a kind and one of :data:`PHRASE_MEANS`.
        report: of the run.
        rows: of the run, by frame and phrase.
        keys: which of them.

    Returns:
        float64 [rows]: Dice of a phrase that is there, whether one that is absent got a mask, or
        whether one that is there got none; ``nan`` elsewhere, and for phrases of another kind.
    """
    (mean,) = (end for end in PHRASE_MEANS if metric.endswith(end))
    kind = metric.removesuffix(mean)
    own = {row["phrase"] for row in report["phrases"]["by_phrase"] if row["kind"] == kind}
    return np.array([_pair_value(mean, rows[key]) if key[1] in own else np.nan for key in keys])


def _pair_value(mean: str, row: Mapping[str, Any]) -> float:
    counts = row["counts"]
    is_there = counts["tp"] + counts["fn"] > 0
    if is_there == (mean == _FALSE_POSITIVES):
        return np.nan
    if mean not in (_FALSE_POSITIVES, _MISSES):
        return row["dice"]
    has_mask = counts["tp"] + counts["fp"] > 0
    return float(has_mask != is_there)


@dataclass(frozen=True)
class OverPhrases:
    """Sums of runs by patient and phrase; a :class:`~.run_means.RunMeans`.

    Attributes:
        dice: float64 [R, C, P], sums over present pairs of R runs.
        present: float64 [C, P], numbers of present pairs.
    """

    dice: np.ndarray
    present: np.ndarray

    @classmethod
    def of(
        cls, values: np.ndarray, groups: np.ndarray, keys: Sequence[tuple[str, str]]
    ) -> OverPhrases:
        """Sums up.

        Args:
            values: float64 [R, rows] of :func:`pair_values`.
            groups: int64 [rows], the patient of each row.
            keys: frame and phrase of each row.
        """
        defined = ~np.isnan(values).any(axis=0)
        _, cluster = np.unique(groups[defined], return_inverse=True)
        asked = np.array([phrase for _, phrase in keys])[defined]
        _, phrase = np.unique(asked, return_inverse=True)
        shape = (cluster.max(initial=-1) + 1, phrase.max(initial=-1) + 1)
        dice, present = np.zeros((len(values), *shape)), np.zeros(shape)
        for side, own in zip(dice, values[:, defined], strict=True):
            np.add.at(side, (cluster, phrase), own)
        np.add.at(present, (cluster, phrase), 1)
        return cls(dice, present)

    def contributions(self) -> np.ndarray:
        """What each patient adds to the means of the runs, times C: float64 [R, C]."""
        clusters, phrases = self.present.shape
        return (self.dice / self.present.sum(axis=0)).sum(axis=-1) * (clusters / max(1, phrases))

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """Means of the runs, float64 [R, B], of patients drawn as often as ``weights`` [B, C] says.

        A phrase that was not drawn is left out.
        """
        drawn = weights @ self.present
        means = np.nan_to_num(ratio(weights @ self.dice, drawn))
        return ratio(means.sum(axis=-1), (drawn > 0).sum(axis=-1))

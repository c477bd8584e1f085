"""Counts of one map at many thresholds, with what may be done to its mask, each computed once.

A candidate is a threshold with its post-processing. For every row and candidate seven numbers are
kept, of which Dice, IoU, F-beta and clDice are ratios (:func:`score`): pixels that are vessel in
both, predicted, and true; length of the predicted skeleton, and of that in the truth; length of the
true skeleton, and of that in the prediction.

* Overlap without post-processing: one histogram of the map between the thresholds.
* Else one labelling (and one skeleton) a lower threshold serves all candidates over it: what they
  keep are whole 8-connected pieces, areas are sums over pieces, and the thinning of a piece never
  looks beyond its own neighbours, so that its skeleton is the same with and without the others.

Masks are cut as in the test (float32, >=), from the stored maps. Those of 8 bits hold
round(255 p) / 255: a pixel within 1/510 of the threshold may lie on its other side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .centreline import pooled_centreline
from .geometry import MaskGeometry
from .overlap import ratio
from .postprocess import PostProcess, pieces, touched

PARTS = 7
SWEEP_METRICS = ("dice", "iou", "fbeta", "cldice")


@dataclass(frozen=True)
class Candidate:
    """A threshold and what is done after the cut; see :class:`~.postprocess.PostProcess`."""

    threshold: float
    low: float | None = None
    min_area: int = 0

    @property
    def postprocess(self) -> PostProcess:
        """What is done after the cut."""
        return PostProcess(self.low, self.min_area)

    @property
    def base(self) -> float:
        """The lower of its thresholds."""
        return self.threshold if self.low is None else self.low


@dataclass(frozen=True)
class SweepJob:
    """One row: ``probability`` float32 [H, W] and ``truth`` bool [H, W]."""

    probability: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class SweepWork:
    """Counts a row at every candidate; the same in every process.

    Attributes:
        candidates: K of them.
        skeletons: whether the four lengths are measured; else they are 0.
    """

    candidates: tuple[Candidate, ...]
    skeletons: bool = False

    def __call__(self, job: SweepJob) -> np.ndarray:
        """The parts of all candidates, int64 [K, 7]."""
        plain = not any(candidate.postprocess.changes for candidate in self.candidates)
        if plain and not self.skeletons:
            return self._by_histogram(job)
        found = np.zeros((len(self.candidates), PARTS), np.int64)
        truth = MaskGeometry(job.truth)
        found[:, 2] = np.count_nonzero(job.truth)
        if self.skeletons:
            found[:, 5] = len(truth.skeleton)
        order = sorted(range(len(self.candidates)), key=lambda k: self.candidates[k].base)
        for base, group in itertools.groupby(order, key=lambda k: self.candidates[k].base):
            self._one_base(job, truth, base, list(group), found)
        return found

    def _by_histogram(self, job: SweepJob) -> np.ndarray:
        cuts = np.array([candidate.threshold for candidate in self.candidates], np.float32)
        order = np.argsort(cuts, kind="stable")
        # How many of the sorted thresholds a pixel reaches.
        reached = np.searchsorted(cuts[order], job.probability.ravel(), side="right")
        levels = np.bincount(reached, minlength=len(cuts) + 1)
        hits = np.bincount(reached[job.truth.ravel()], minlength=len(cuts) + 1)
        found = np.zeros((len(cuts), PARTS), np.int64)
        for column, counts in ((0, hits), (1, levels)):
            found[order, column] = counts[::-1].cumsum()[::-1][1:]
        found[:, 2] = hits.sum()
        return found

    def _one_base(
        self,
        job: SweepJob,
        truth: MaskGeometry,
        base: float,
        group: Sequence[int],
        found: np.ndarray,
    ) -> None:
        mask = job.probability >= np.float32(base)
        if not mask.any():
            return
        labels, areas = pieces(mask)
        count = len(areas)
        tables = {0: np.bincount(labels[job.truth], minlength=count), 1: areas.astype(np.int64)}
        if self.skeletons:
            skeleton = MaskGeometry(mask).skeleton
            own = labels[skeleton[:, 0], skeleton[:, 1]]
            within = job.truth[skeleton[:, 0], skeleton[:, 1]]
            true = labels[truth.skeleton[:, 0], truth.skeleton[:, 1]]
            tables[3] = np.bincount(own, minlength=count)
            tables[4] = np.bincount(own[within], minlength=count)
            tables[6] = np.bincount(true, minlength=count)
        reached: dict[float, np.ndarray] = {}
        for k in group:
            candidate = self.candidates[k]
            kept = areas >= candidate.min_area
            if candidate.low is not None:
                cut = candidate.threshold
                if cut not in reached:
                    reached[cut] = touched(labels, count, job.probability >= np.float32(cut))
                kept = kept & reached[cut]
            kept[0] = False
            for column, table in tables.items():
                found[k, column] = table[kept].sum()


def score(parts: np.ndarray, metric: str, beta: float = 1.0) -> np.ndarray:
    """A metric of one row, or of summed parts.

    Args:
        parts: [..., 7].
        metric: of :data:`SWEEP_METRICS`. F-beta = (1 + b^2) P R / (b^2 P + R): recall weighs b
            times as much as precision (van Rijsbergen, "Information Retrieval", 1979).
        beta: b of F-beta.

    Returns:
        float64 [...]; ``nan`` where undefined, as in :mod:`.overlap` and :mod:`.centreline`.
    """
    both, predicted, true, *lengths = np.moveaxis(np.asarray(parts, float), -1, 0)
    if metric == "iou":
        return ratio(both, predicted + true - both)
    if metric in ("dice", "fbeta"):
        weight = 1.0 if metric == "dice" else beta * beta
        return ratio((1 + weight) * both, weight * true + predicted)
    if metric == "cldice":
        ours, in_truth, theirs, in_mask = lengths
        none = np.zeros_like(ours)
        eight = [ours, in_truth, none, theirs, in_mask, none, none, none]
        return pooled_centreline(np.stack(eight, -1))["cldice"]
    raise ValueError(f"no metric {metric!r}")


def grid(values: Iterable[float], lowest: float = 0.01, highest: float = 0.99) -> list[float]:
    """Thresholds rounded to hundredths within the sweep's range, sorted, each once."""
    rounded = {round(value, 2) for value in values}
    return sorted(value for value in rounded if lowest <= value <= highest)

"""How well presence ranks the pairs that are labelled above those that are not, at no threshold.

AUC: the probability that a labelled pair (of a phrase and a frame) has a higher presence than one
that is not, ties counting half: the Mann-Whitney statistic (Hanley & McNeil, Radiology 143:29,
1982). Three of them, because phrases differ in how often they are labelled:

* ``presence``: over all pairs;
* ``frequency``: the same of a score that never sees the frame, the share of the frames asked about
  a phrase in which it is labelled. It is counted on the very frames, which flatters it. What
  ``presence`` has beyond it comes from the image;
* ``within_phrase``: the mean, over phrases that are labelled in some frames and not in others, of
  the AUC among the pairs of one phrase. 0.5: the image is not looked at.

Intervals are those of :mod:`.bootstrap`; shares of phrases stay as they are in resamples, a phrase
that has lost one of the two classes is left out of a resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import cluster_rows, draw_weights, percentile_interval
from .overlap import ratio
from .phrases import Score
from .rows import FrameResult

_NUMBERS_AT_ONCE = 10_000_000  # float64 of a chunk of resamples: 80 MB


@dataclass(frozen=True)
class PresenceAUC:
    """The module's docstring defines the three; ``nan`` where one of the classes is empty.

    Attributes:
        presence, frequency, within_phrase: AUC.
        pairs, labelled: numbers of pairs.
        phrases, both: numbers of phrases, and of those that ``within_phrase`` is about.
    """

    presence: Score
    frequency: Score
    within_phrase: Score
    pairs: int
    labelled: int
    phrases: int
    both: int


def auc(scores: np.ndarray, labelled: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC of samples in which each pair occurs so often.

    Args:
        scores: float64 [N].
        labelled: bool [N].
        weights: float64 [B, N].

    Returns:
        float64 [B]; ``nan`` where a class is not drawn.
    """
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    drawn, there = weights[:, order], labelled[order]
    positives, negatives = (np.add.reduceat(drawn * own, starts, axis=1) for own in (there, ~there))
    below = negatives.cumsum(axis=1) - negatives / 2
    return ratio((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))


def presence_auc(
    frames: Sequence[FrameResult], *, resamples: int = 0, seed: int = 0, level: float = 0.95
) -> PresenceAUC:
    """The three of them.

    Args:
        frames: whose rows all have a presence.
        resamples, seed, level: of the bootstrap; 0 resamples for no intervals.
    """
    clusters = [rows for _, rows in cluster_rows(frames)]
    owner = np.repeat(np.arange(len(clusters)), [len(rows) for rows in clusters])
    rows = [row for own in clusters for row in own]
    scores = np.array([row.presence for row in rows], float)
    labelled = np.array([not row.counts.empty_truth for row in rows], bool)
    _, phrase = np.unique([row.phrase for row in rows], return_inverse=True)
    asked, there = np.bincount(phrase), np.bincount(phrase, labelled)
    frequency = (there / asked)[phrase]
    members = [phrase == number for number in range(len(asked))]

    def three(weights: np.ndarray) -> np.ndarray:
        """Of drawn clusters [B, C]: [B, 3]."""
        pairs = weights[:, owner]
        within = np.array([auc(scores[own], labelled[own], pairs[:, own]) for own in members])
        mean = ratio(np.nansum(within, axis=0), (~np.isnan(within)).sum(axis=0))
        return np.stack([auc(scores, labelled, pairs), auc(frequency, labelled, pairs), mean], 1)

    (values,) = three(np.ones((1, len(clusters))))
    bounds = [None] * len(values)
    if resamples and len(clusters) > 1:
        weights = draw_weights(len(clusters), resamples, seed)
        step = max(1, _NUMBERS_AT_ONCE // len(rows))
        chunks = [three(weights[start : start + step]) for start in range(0, resamples, step)]
        bounds = [percentile_interval(sampled, level) for sampled in np.concatenate(chunks).T]
    found = [Score(float(v), own) for v, own in zip(values, bounds, strict=True)]
    both = int(((there > 0) & (there < asked)).sum())
    return PresenceAUC(*found, len(rows), int(labelled.sum()), len(asked), both)

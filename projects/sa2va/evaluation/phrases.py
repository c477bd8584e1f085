"""Scores by phrase, where several phrases are asked about a frame and some of them are not there.

A pair is one phrase of one frame. It is present where its truth has a pixel, absent where it has
none (not labelled: in data that are labelled for one vessel only, it may be visible all the same).
A mask is what is left after threshold and post-processing.

* ``dice`` of a phrase: mean Dice over its present pairs; a present pair without a mask has 0.
* ``dice_over_phrases``: mean of that over the phrases that are present somewhere, so that a rare
  segment weighs as much as a frequent one.
* ``dice_over_pairs``: mean Dice over all present pairs.
* ``false_positive_rate``: share of the absent pairs that got a mask.
* ``miss_rate``: share of the present pairs that got none.

The means are of phrases of one kind (tree, segment, group), where the data set tells kinds apart.
Intervals are those of :mod:`.bootstrap`: patients, or frames, are drawn again with all their pairs.
What is undefined in a resample (a phrase that was not drawn) is left out of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..columns import columns
from .bootstrap import Interval, cluster_rows, draw_weights, percentile_interval
from .overlap import ratio
from .rows import FrameResult, Row

MEAN_NAMES = ("dice_over_phrases", "dice_over_pairs", "false_positive_rate", "miss_rate")
PHRASE_NAMES = ("dice", "false_positive_rate", "miss_rate")
UNKNOWN_KIND = "phrase"
"""The kind of phrases of data sets that do not tell kinds apart."""
_PRESENT, _DICE, _MISSED, _ABSENT, _FALSE = range(5)


@dataclass(frozen=True)
class Score:
    """A number, ``nan`` where undefined, and its interval, None where there is none."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class PhraseRow:
    """One phrase.

    Attributes:
        phrase, kind: what was asked.
        present, absent: numbers of pairs.
        scores: by :data:`PHRASE_NAMES`.
    """

    phrase: str
    kind: str
    present: int
    absent: int
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class PhraseScores:
    """All phrases, in the order of the data set, and their means by kind and name."""

    phrases: Sequence[PhraseRow]
    means: Mapping[str, Mapping[str, Score]]

    def flat(self) -> dict[str, float]:
        """For training curves: ``segment_dice_over_phrases`` and so on."""
        return {
            f"{kind}_{name}": score.value
            for kind, scores in self.means.items()
            for name, score in scores.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "means": {
                kind: {name: asdict(score) for name, score in scores.items()}
                for kind, scores in self.means.items()
            },
            "by_phrase": [
                {
                    "phrase": row.phrase,
                    "kind": row.kind,
                    "present": row.present,
                    "absent": row.absent,
                    **{name: asdict(score) for name, score in row.scores.items()},
                }
                for row in self.phrases
            ],
        }

    def table(self) -> str:
        """For the log: a line a phrase, then the means of each kind."""
        head = ("phrase", "kind", "present", "absent", "Dice", "false positives", "missed")
        lines = [
            (
                *(row.phrase, row.kind, str(row.present), str(row.absent)),
                *(score_text(row.scores[name]) for name in PHRASE_NAMES),
            )
            for row in self.phrases
        ]
        means = [
            (kind, *(score_text(scores[name]) for name in MEAN_NAMES))
            for kind, scores in self.means.items()
        ]
        heads = ("mean over", "Dice, phrases", "Dice, pairs", "false positives", "missed")
        text = io.StringIO()
        for table in ([head, *lines], [heads, *means]):
            text.writelines(f"{line}\n" for line in columns(table, right=range(2, len(table[0]))))
            text.write("\n")
        return text.getvalue().rstrip("\n")


def score_text(score: Score) -> str:
    """A score and its interval, as ``0.812 [0.790, 0.833]``."""
    if math.isnan(score.value):
        return "-"
    bounds = "" if score.interval is None else " [{:.3f}, {:.3f}]".format(*score.interval)
    return f"{score.value:.3f}{bounds}"


def phrase_scores(
    frames: Sequence[FrameResult],
    kinds: Mapping[str, str] | None = None,
    *,
    resamples: int = 0,
    seed: int = 0,
    level: float = 0.95,
) -> PhraseScores:
    """Scores every phrase; see the module's docstring.

    Args:
        frames: the frames.
        kinds: kind of each phrase; None: the data set tells none apart.
        resamples, seed, level: of the bootstrap; 0 resamples for no intervals.
    """
    asked = dict.fromkeys(row.phrase for frame in frames for row in frame.rows)
    names = [phrase for phrase in kinds or sorted(asked) if phrase in asked]
    names += [phrase for phrase in asked if phrase not in names]
    position = {phrase: number for number, phrase in enumerate(names)}
    kind_of = [(kinds or {}).get(phrase, UNKNOWN_KIND) for phrase in names]

    clusters = [rows for _, rows in cluster_rows(frames)]
    parts = np.zeros((len(clusters), len(names), 5))
    for number, rows in enumerate(clusters):
        for row in rows:
            parts[number, position[row.phrase]] += _parts(row)
    totals = parts.sum(axis=0)
    drawn = None
    if resamples and len(clusters) > 1:
        weights = draw_weights(len(clusters), resamples, seed)
        drawn = (weights @ parts.reshape(len(clusters), -1)).reshape(-1, *totals.shape)

    def scores(own: np.ndarray) -> dict[str, Score]:
        """Means over the phrases ``own`` (bool)."""
        values = _means(totals[own])
        sampled = {} if drawn is None else _means(drawn[:, own])
        return _scores(values, sampled, level)

    values = _by_phrase(totals)
    sampled = {} if drawn is None else _by_phrase(drawn)
    rows = [
        PhraseRow(
            phrase,
            kind_of[number],
            int(totals[number, _PRESENT]),
            int(totals[number, _ABSENT]),
            _scores(
                {name: value[number] for name, value in values.items()},
                {name: value[:, number] for name, value in sampled.items()},
                level,
            ),
        )
        for phrase, number in position.items()
    ]
    own_kinds = np.array(kind_of)
    means = {kind: scores(own_kinds == kind) for kind in dict.fromkeys(kind_of)}
    return PhraseScores(rows, means)


def _parts(row: Row) -> np.ndarray:
    """What one pair adds: float64 [5]."""
    counts = row.counts
    found = np.zeros(5)
    if counts.empty_truth:
        found[_ABSENT], found[_FALSE] = 1, not counts.empty_prediction
    else:
        found[_PRESENT], found[_MISSED] = 1, counts.empty_prediction
        found[_DICE] = row.scores.values()["dice"]
    return found


def _by_phrase(parts: np.ndarray) -> dict[str, np.ndarray]:
    """Of summed parts [..., P, 5] the scores [..., P]."""
    present, dice, missed, absent, false = np.moveaxis(parts, -1, 0)
    return {
        "dice": ratio(dice, present),
        "false_positive_rate": ratio(false, absent),
        "miss_rate": ratio(missed, present),
    }


def _means(parts: np.ndarray) -> dict[str, np.ndarray]:
    """Of summed parts [..., P, 5] the means over all P phrases [...]."""
    dice = _by_phrase(parts)["dice"]
    present, total, missed, absent, false = np.moveaxis(parts.sum(axis=-2), -1, 0)
    return {
        "dice_over_phrases": ratio(np.nansum(dice, axis=-1), (~np.isnan(dice)).sum(axis=-1)),
        "dice_over_pairs": ratio(total, present),
        "false_positive_rate": ratio(false, absent),
        "miss_rate": ratio(missed, present),
    }


def _scores(
    values: Mapping[str, Any], sampled: Mapping[str, np.ndarray], level: float
) -> dict[str, Score]:
    return {
        name: Score(
            float(value), percentile_interval(sampled[name], level) if name in sampled else None
        )
        for name, value in values.items()
    }

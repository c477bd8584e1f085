"""The operating curve of "is it there?": Dice and false positives at every threshold of presence.

A model with ``answer_mode="choice"`` answers that a phrase is there from a presence of
``model.presence_threshold`` on. A run at 0 draws every phrase, and its per-frame results hold all
other operating points, so that no model is run: at threshold t a pair with presence < t loses its
mask. In a test each phrase is a question of its own, so no presence depends on another answer.

The scores at a threshold are those of :mod:`.phrases` over pairs of one kind; differences between
runs are those of :mod:`.compare`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError, DataError, listing, suggest
from ..models.outputs import DEFAULT_PRESENCE_THRESHOLD
from .compare import Difference, Run, check_comparable, compare_runs
from .compare_phrases import OVER_PHRASES
from .metrics import Scores
from .overlap import Counts
from .phrases import Score, phrase_scores
from .rows import FrameResult, Row
from .writer import strict

SHOWN = (0.0, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95)
"""Thresholds of the printed table."""
MOST_POINTS = 200
"""Of more distinct presences than these the curve takes as many quantiles."""
EVERY_PRESENCE = "--cfg-options model.answer_mode=choice model.presence_threshold=0"
_RERUN = f"tools/test.py CONFIG --checkpoint FILE --out RUN {EVERY_PRESENCE}"


@dataclass(frozen=True)
class Point:
    """One threshold and the means of :mod:`.phrases` there, by :data:`.phrases.MEAN_NAMES`."""

    threshold: float
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Pairs:
    """The pairs of one kind of phrases.

    Attributes:
        run: where they come from.
        kind: of the phrases.
        kinds: the kind of every phrase of the run, in the order of the data set.
    """

    run: Run
    kind: str
    kinds: Mapping[str, str]

    @property
    def every_presence(self) -> bool:
        """Whether every threshold can be computed from the run."""
        return not _fault(self.run)

    @cached_property
    def frames(self) -> list[FrameResult]:
        """The frames as they were tested, with the rows of this kind alone."""
        return [
            replace(frame, rows=tuple(r for r in frame.rows if self.kinds[r.phrase] == self.kind))
            for frame in self._all_rows
        ]

    @cached_property
    def presences(self) -> np.ndarray:
        """Of all pairs, float64 [N]."""
        return np.array([row.presence for frame in self.frames for row in frame.rows], float)

    @cached_property
    def phrases(self) -> list[str]:
        """Those of this kind."""
        return [phrase for phrase, kind in self.kinds.items() if kind == self.kind]

    @cached_property
    def labelled(self) -> Mapping[str, int]:
        """In how many frames each phrase of this kind is labelled."""
        rows = (row for frame in self.frames for row in frame.rows)
        there = Counter(row.phrase for row in rows if not row.counts.empty_truth)
        return {phrase: there[phrase] for phrase in self.phrases}

    @property
    def absent(self) -> int:
        """The number of absent pairs."""
        return len(self.presences) - sum(self.labelled.values())

    @property
    def partly_asked(self) -> int:
        """The number of frames that were not asked about every phrase of this kind."""
        return sum(len(frame.rows) < len(self.phrases) for frame in self.frames)

    @cached_property
    def _all_rows(self) -> list[FrameResult]:
        """With the rows of other kinds, because they count as frames in the bootstrap."""
        rows: dict[tuple[str, str | None], list[Row]] = {}
        for record in self.run.report["per_frame"]:
            rows.setdefault((record["frame"], record["patient"]), []).append(_row(record))
        return [
            FrameResult(index, *names, "", tuple(own))
            for index, (names, own) in enumerate(rows.items())
        ]

    @cached_property
    def _both(self) -> list[tuple[FrameResult, list[tuple[Row, Row]]]]:
        """Each row, and the row without its mask."""
        return [(frame, [(row, _emptied(row)) for row in frame.rows]) for frame in self._all_rows]

    def at(self, threshold: float) -> list[FrameResult]:
        """The frames with what a test at this threshold would have drawn."""
        return [
            replace(
                frame,
                rows=tuple(row if row.presence >= threshold else none for row, none in rows),
            )
            for frame, rows in self._both
        ]

    def scores(self, threshold: float | None = None, resamples: int = 0) -> Mapping[str, Score]:
        """The means at a threshold; None: as it was tested."""
        frames = self._all_rows if threshold is None else self.at(threshold)
        return phrase_scores(frames, self.kinds, resamples=resamples).means[self.kind]

    def smallest_threshold(self, false_positive_rate: float) -> float | None:
        """The smallest of 0, 1 and all presences with at most this rate; None if none has."""
        candidates = np.unique([0.0, *self.presences, 1.0])
        # A higher threshold never has more masks, so the rate falls from one to the next.
        place = bisect_left(
            candidates,
            True,
            key=lambda t: self.scores(t)["false_positive_rate"].value <= false_positive_rate,
        )
        return float(candidates[place]) if place < len(candidates) else None

    def run_at(self, threshold: float) -> Run:
        """The run as at this threshold, for a comparison; overlap metrics and counts only."""
        records = [
            record if record["presence"] >= threshold else _emptied_record(record)
            for record in self.run.report["per_frame"]
        ]
        name = f"{self.run.name} at presence >= {threshold:g}"
        return Run(name, {**self.run.report, "per_frame": records})


@dataclass(frozen=True)
class Beside:
    """Another run over the same pairs, and the curve's run at the same false-positive rate.

    Attributes:
        name: of the other run.
        point: its operating point. A run at presence threshold 0 has that of the default
            threshold, any other the one that it was tested at (``threshold`` is None).
        curve: its curve, where it has every presence; else empty.
        same_rate: the smallest threshold of the curve's run whose rate is not above that of
            ``point``, or None if none is.
        difference: mean Dice over phrases, the curve's run at ``same_rate`` minus the other.
    """

    name: str
    point: Mapping[str, Score]
    threshold: float | None
    curve: Sequence[Point]
    same_rate: Point | None
    difference: Difference | None


def pairs_of(run: Run, kind: str | None = None) -> Pairs:
    """The pairs of a run from which a curve can be computed.

    Args:
        run: of a choosing model at presence threshold 0.
        kind: of the phrases; None: the kind with the most of them.

    Raises:
        DataError: the run has not every presence, or the kind not both sorts of pairs.
        ConfigError: there is no such kind.
    """
    check_comparable(run, run)  # refuses what is not valid
    fault = _fault(run)
    if fault:
        raise DataError(
            found=f"{run.name} {fault}",
            expected="a run at model.presence_threshold=0: every phrase with its mask and presence",
            fix=_RERUN,
        )
    kinds = _kinds(run)
    known = Counter(kinds.values())
    if kind is not None and kind not in known:
        raise ConfigError(
            found=f"--kind {kind}{suggest(kind, known)}",
            expected=f"a kind of phrases of {run.name}: {listing(known)}",
            fix="correct --kind",
        )
    kind = known.most_common(1)[0][0] if kind is None else kind
    found = Pairs(run, kind, kinds)
    there = Counter(not row.counts.empty_truth for frame in found.frames for row in frame.rows)
    if len(there) < 2:
        others = [name for name in known if name != kind]
        raise DataError(
            found=f"phrases of the kind {kind!r} are labelled in {there[True]} pairs of "
            f"{run.name}, and not in {there[False]}",
            expected="pairs of both sorts: without absent ones no answer is a false positive",
            fix=(f"another --kind ({listing(others)}), or " if others else "")
            + "test with a larger test_dataloader.dataset.absent",
        )
    return found


def operating_curve(pairs: Pairs, resamples: int = 0, progress: bool = False) -> list[Point]:
    """The scores over thresholds, from low to high.

    Thresholds are those of :data:`SHOWN`, 1 and all distinct presences, or :data:`MOST_POINTS`
    quantiles of the presences where these are more.

    Args:
        pairs: of a run with every presence.
        resamples: of the intervals; 0 for none.
        progress: show a bar.
    """
    distinct = np.unique(pairs.presences)
    if len(distinct) > MOST_POINTS:
        steps = np.linspace(0, 1, MOST_POINTS)
        distinct = np.quantile(pairs.presences, steps, method="inverted_cdf")
    thresholds = np.unique([*SHOWN, *distinct, 1.0]).tolist()
    bar = tqdm(thresholds, f"thresholds of {pairs.run.name}", disable=not progress)
    return [Point(t, pairs.scores(t, resamples)) for t in bar]


def check_beside(pairs: Pairs, other: Run) -> None:
    """Refuses a run that cannot be put beside that of a curve.

    Args:
        pairs: of the curve's run.
        other: any run over the same frames and phrases.

    Raises:
        DataError: it has no scores by phrase, or other phrases of this kind, or the runs are not
            comparable (:func:`.compare.check_comparable`).
    """
    again = f"test {other.name} again with tools/test.py"
    if not other.report.get("phrases"):
        raise DataError(
            found=f"{other.name} has no scores by phrase in its metrics.json",
            expected=f"a run over the phrases of {pairs.run.name}, by a version that scores them",
            fix=f"{again}, or tools/score.py where its maps were saved, and put that --beside",
        )
    theirs = [phrase for phrase, kind in _kinds(other).items() if kind == pairs.kind]
    if set(theirs) != set(pairs.phrases):
        raise DataError(
            found=f"phrases of the kind {pairs.kind!r} are {listing(pairs.phrases)} in "
            f"{pairs.run.name}, and {listing(theirs) or 'none'} in {other.name}",
            expected="the same phrases of this kind: their scores are means over them",
            fix=f"{again} on the frames, phrases and kinds of {pairs.run.name}, or leave it out of "
            "--beside",
        )
    check_comparable(pairs.run, other)


def put_beside(pairs: Pairs, other: Run, resamples: int = 0) -> Beside:
    """Compares the run of a curve with another at the other's false-positive rate.

    Args:
        pairs: of the curve's run.
        other: any run over the same frames and phrases.
        resamples: of the intervals; 0 for none.

    Raises:
        DataError: see :func:`check_beside`.
    """
    check_beside(pairs, other)
    theirs = replace(pairs, run=other)
    threshold = DEFAULT_PRESENCE_THRESHOLD if theirs.every_presence else None
    point = theirs.scores(threshold, resamples)
    curve = operating_curve(theirs) if theirs.every_presence else []
    same = pairs.smallest_threshold(point["false_positive_rate"].value)
    if same is None:
        return Beside(other.name, point, threshold, curve, None, None)
    runs = [other if threshold is None else theirs.run_at(threshold), pairs.run_at(same)]
    metric = pairs.kind + OVER_PHRASES
    (difference,) = compare_runs(runs, [metric], resamples=resamples).differences
    same_rate = Point(same, pairs.scores(same, resamples))
    return Beside(other.name, point, threshold, curve, same_rate, difference)


def _kinds(run: Run) -> dict[str, str]:
    """The kind of each phrase."""
    return {row["phrase"]: row["kind"] for row in run.report["phrases"]["by_phrase"]}


def _fault(run: Run) -> str:
    """Why not every threshold can be computed from a run; empty if it can."""
    mode, threshold = (run.report.get(key) for key in ("answer_mode", "presence_threshold"))
    if mode != "choice":
        return f"was tested with answer_mode {mode!r}, which gives no presence"
    if threshold != 0:
        said = "without a presence_threshold" if threshold is None else f"at {threshold}"
        return f"was tested {said}: what it took to be absent has no mask to be scored"
    if not run.report.get("phrases"):
        return "asks for one phrase alone"
    missing = sum(record.get("presence") is None for record in run.report["per_frame"])
    return f"has no presence in {missing} of its rows" if missing else ""


def _row(record: Mapping[str, Any]) -> Row:
    """A row of metrics.json, with its overlap metrics."""
    return Row(
        phrase=record["phrase"],
        scores=Scores(Counts(**record["counts"])),
        seg_emitted=record["seg_emitted"],
        answer=record["answer"],
        stem=record["file"],
        truth_hash=record["truth"],
        presence=record.get("presence"),
    )


def _without_mask(counts: Counts) -> Counts:
    return Counts(0, 0, counts.tp + counts.fn, counts.fp + counts.tn)


def _emptied(row: Row) -> Row:
    return replace(row, scores=Scores(_without_mask(row.counts)), seg_emitted=False)


def _emptied_record(record: Mapping[str, Any]) -> dict[str, Any]:
    counts = _without_mask(Counts(**record["counts"]))
    return {**record, **strict(counts.metrics()), "counts": asdict(counts), "seg_emitted": False}

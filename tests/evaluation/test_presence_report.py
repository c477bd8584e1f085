"""What is written and noted of an operating curve."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from projects.sa2va.evaluation import FrameResult
from projects.sa2va.evaluation.presence import (
    SHOWN,
    Pairs,
    operating_curve,
    pairs_of,
    put_beside,
)
from projects.sa2va.evaluation.presence_report import (
    beside_notes,
    curve_csv,
    curve_table,
    few_absent_notes,
    few_frames_notes,
    operating_diagram,
)
from projects.sa2va.figures import png_figure

from .presence_runs import (
    SEGMENTS,
    many,
    pair,
    run_of,
    without_presence,
)
from .test_phrases import KINDS


def with_masks(absent: list[tuple[float, bool]]) -> list[FrameResult]:
    """Frames with a labelled pair, and an absent one of a presence that has a mask or not."""
    return [
        FrameResult(
            *(k, f"f{k}", None, ""),
            (pair("a", level, 0, 3 * has_mask, 0, 9), pair("b", 0.9, 3, 0, 0, 9)),
        )
        for k, (level, has_mask) in enumerate(absent)
    ]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([(0.5, False)] * 10 + [(0.5, True)] * 10, "it marks less even when everything is drawn"),
        ([(0.5, False)] * 6 + [(0.5, True)] * 14, "it marks less even"),
        ([(0.5, True)] * 20, "many pairs share a presence"),
        ([(k / 20, True) for k in range(20)], None),
        ([(0.5, False)] * 5 + [(0.5, True)] * 15, None),  # 0.05 below, and no more
    ],
)
def test_a_rate_far_below_that_of_the_other_is_noted(own, message):
    theirs = with_masks([(0.5, True)] * 16 + [(0.5, False)] * 4)
    other = run_of(without_presence(theirs), "U-Net", answer_mode="none")
    found = put_beside(pairs_of(run_of(with_masks(own))), other)
    notes = beside_notes("RUN", [found])
    assert len(notes) == (message is not None)
    if message is not None:
        rate = found.same_rate.scores["false_positive_rate"].value
        assert message in notes[0]
        assert f"RUN has a false-positive rate of {rate:.3f} where U-Net has 0.800" in notes[0]


def test_phrases_that_are_hardly_ever_labelled_are_noted():
    def labelled(times: dict[str, int]) -> Pairs:
        rows = [
            tuple(pair(p, 0.5, *((3, 0, 0) if k < n else (0, 1, 0)), 9) for p, n in times.items())
            for k in range(8)
        ]
        frames = [FrameResult(k, f"f{k}", None, "", own) for k, own in enumerate(rows)]
        return pairs_of(run_of(frames), "segment")

    # The group is of another kind; what is labelled nowhere is not in the mean.
    (note,) = few_frames_notes(labelled({"a": 4, "b": 5, "c": 1, "ab": 2}), True)
    assert "2 of 3 phrases of the kind 'segment' are labelled in fewer than 5 frames (a, c)" in note
    assert "need not lie around it" in note
    assert few_frames_notes(labelled({"a": 5, "b": 8, "c": 0, "ab": 2}), True) == []
    (note,) = few_frames_notes(labelled({"a": 4, "b": 5, "c": 0}), False)
    assert "1 of 3" in note and "interval" not in note


def test_frames_that_were_asked_about_a_part_of_the_phrases_are_noted():
    frames = many()
    assert few_absent_notes(pairs_of(run_of(frames))) == []
    part = [
        replace(f, rows=tuple(r for r in f.rows if r.phrase != "c" or f.index > 2)) for f in frames
    ]
    own = [row for f in part for row in f.rows if row.phrase in SEGMENTS]
    absent = sum(row.counts.empty_truth for row in own)
    (note,) = few_absent_notes(pairs_of(run_of(part)))
    assert "3 of 12 frames were asked about fewer than all 3 phrases of the kind 'segment'" in note
    assert f"over {absent} absent pairs" in note and "val_dataloader.dataset.absent=all" in note
    # Phrases of another kind do not matter.
    trees = [replace(f, rows=tuple(r for r in f.rows if r.phrase != "tree")) for f in frames[:3]]
    assert few_absent_notes(pairs_of(run_of(trees + frames[3:]))) == []


def test_the_files_hold_the_curve():
    pairs = pairs_of(run_of(many()))
    curve = operating_curve(pairs, resamples=20)
    rows = list(csv.DictReader(io.StringIO(curve_csv("segment", curve).decode())))
    assert [float(row["threshold"]) for row in rows] == [point.threshold for point in curve]
    assert [row["threshold"] for row in rows if row["default"] == "True"] == ["0.5"]
    assert {row["kind"] for row in rows} == {"segment"}
    for row, point in zip(rows, curve, strict=True):
        for name, score in point.scores.items():
            found = [float(row[name + end]) for end in ("", "_low", "_high")]
            assert found == [score.value, *score.interval]
    text = curve_table(curve)
    assert len(text.splitlines()) == len(SHOWN) + 1 and "0.50 (default)" in text
    beside = put_beside(pairs, run_of(many(seed=2), "other"))
    alone, both = (
        png_figure(*operating_diagram("RUN", "segment", curve, own)) for own in ([], [beside])
    )
    assert alone.startswith(b"\x89PNG") and both != alone
    # Nothing absent, and no interval: cells are empty.
    frames = [FrameResult(0, "f", None, "", (pair("a", 0.4, 1, 0, 0), pair("b", 0.6, 1, 0, 0)))]
    curve = operating_curve(Pairs(run_of(frames), "segment", KINDS))
    bare = curve_csv("segment", curve).decode()
    assert bare.splitlines()[1].endswith(",,,,0.0,,,False")

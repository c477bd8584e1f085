"""The table of the log."""

from __future__ import annotations

from projects.sa2va.evaluation.metrics import Scores
from projects.sa2va.evaluation.overlap import OVERLAP_NAMES, Counts
from projects.sa2va.evaluation.rows import FrameResult, Row
from projects.sa2va.evaluation.summary import summarise
from projects.sa2va.evaluation.table import metrics_table


def summary_of(*counts: Counts, patient: str | None = "P1"):
    rows = [Row("vessel", Scores(c), True, "", str(k)) for k, c in enumerate(counts)]
    return summarise([FrameResult(k, str(k), patient, "", (row,)) for k, row in enumerate(rows)])


def test_holds_every_metric_and_every_mean():
    summary = summary_of(Counts(3, 1, 1, 5), Counts(1, 1, 1, 7), Counts(0, 0, 0, 10))
    text = metrics_table(summary, frames=3, rows=3, threshold=0.35, footer="the end")
    lines = text.splitlines()
    assert "mean over frames (3)" in text and "mean over patients (1)" in text
    dice = next(line for line in lines if line.startswith("| dice"))
    assert [cell.strip() for cell in dice.strip("|").split("|")] == [
        *("dice", "0.6250", "0.6250", "0.6667", "1")
    ]
    starts = [line.strip("| ").split(" ")[0] for line in lines]
    assert [start for start in starts if start in OVERLAP_NAMES] == list(OVERLAP_NAMES)
    assert lines[-2:] == ["3 frames, positive where probability >= 0.35", "the end"]
    assert text.isascii() and max(map(len, lines)) <= 120


def test_undefined_is_a_dash_and_counted_and_rows_are_named_as_such():
    summary = summary_of(Counts(0, 0, 0, 10), patient=None)
    text = metrics_table(summary, frames=2, rows=1, threshold=0.5)
    dice = next(line for line in text.splitlines() if line.startswith("| dice"))
    assert [cell.strip() for cell in dice.strip("|").split("|")] == ["dice", "-", "-", "-", "1"]
    assert "mean over rows (1)" in text and "mean over patients (0)" in text

"""Runs of a choosing model, made of counts and presences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from projects.sa2va.evaluation import Counts, FrameResult, Row, Scorer, Scores
from projects.sa2va.evaluation.compare import Run
from projects.sa2va.evaluation.overlap import OVERLAP_NAMES
from projects.sa2va.evaluation.report import Report
from projects.sa2va.evaluation.writer import strict

from .test_phrases import KINDS, written_out

SEGMENTS = tuple(phrase for phrase, kind in KINDS.items() if kind == "segment")
LEVELS = [0.0, 0.1, 0.25, 0.5, 0.5000001, 0.8, 1.0]  # few, so that there are ties


def pair(phrase: str, presence: float | None, *counts: int) -> Row:
    return Row(phrase, Scores(Counts(*counts)), True, "", phrase, presence=presence)


def run_of(
    frames: list[FrameResult],
    name: str = "RUN",
    kinds: dict[str, str] = KINDS,
    **changes: Any,
) -> Run:
    """A run as metrics.json has it."""
    provenance = {"answer_mode": "choice", "presence_threshold": 0, "split": "0" * 64}
    report = Report.of(frames, Scorer(0.5, OVERLAP_NAMES), phrase_kinds=kinds)
    content = strict(report.content({**provenance, "split_name": "val"}, []))
    return Run(name, {**content, **changes})


def many(seed: int = 0, frames: int = 12, noise: float = 0.4) -> list[FrameResult]:
    """Frames in which every phrase is asked and presence says something about the truth.

    Masks and truth depend on the frame alone; presence on ``seed``, too.
    """
    masks, own = np.random.default_rng(7), np.random.default_rng(seed)
    found = []
    for index in range(frames):
        rows = []
        for number, phrase in enumerate(KINDS):
            there = masks.random() < 0.3 + 0.1 * number
            counts = masks.integers(1, 9, 3)
            own_counts = counts if there else (0, counts[1], 0)
            level = float(np.clip(0.3 + 0.4 * there + noise * own.normal(), 0, 1))
            rows.append(pair(phrase, level, *map(int, own_counts), 9))
        found.append(FrameResult(index, f"f{index}", f"P{index // 2}", "", tuple(rows)))
    return found


def by_hand(frames: list[FrameResult], threshold: float) -> list[FrameResult]:
    """Masks of pairs below the threshold taken out."""
    found = []
    for frame in frames:
        rows = []
        for row in frame.rows:
            if row.presence < threshold:
                tp, fp, fn, tn = row.counts.array().tolist()
                row = replace(row, scores=Scores(Counts(0, 0, tp + fn, fp + tn)))
            rows.append(row)
        found.append(replace(frame, rows=tuple(rows)))
    return found


def of_segments(frames: list[FrameResult]) -> dict[str, float]:
    return written_out([row for f in frames for row in f.rows if row.phrase in SEGMENTS])


def without_presence(frames: list[FrameResult]) -> list[FrameResult]:
    return [
        replace(frame, rows=tuple(replace(row, presence=None) for row in frame.rows))
        for frame in frames
    ]

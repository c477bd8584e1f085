"""Intervals over patients: against scipy, against a plain loop, and how often they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from projects.sa2va.evaluation.bootstrap import draw_weights, intervals, percentile_interval
from projects.sa2va.evaluation.geometry import MaskGeometry
from projects.sa2va.evaluation.metrics import METRIC_NAMES, Scorer, Scores
from projects.sa2va.evaluation.overlap import OVERLAP_NAMES, Counts
from projects.sa2va.evaluation.rows import FrameResult, Row
from projects.sa2va.evaluation.summary import summarise

from .masks import vessels


def frame(index: int, patient: str | None, *scores: Scores) -> FrameResult:
    rows = [Row(f"phrase {k}", s, True, "", f"f{index}__{k}") for k, s in enumerate(scores)]
    return FrameResult(index, f"f{index}", patient, "", tuple(rows))


def with_dice(tenths: int) -> Scores:
    """Scores whose recall is ``tenths`` / 10."""
    return Scores(Counts(tenths, 0, 10 - tenths, 90))


def some_frames(patients: bool = True) -> list[FrameResult]:
    """Nine frames of four patients, scored with all metrics."""
    frames, scorer, rng = [], Scorer(0.5), np.random.default_rng(0)
    for index in range(9):
        truth = vessels(index, 48) & (index != 3)
        map_ = np.clip(0.6 * np.roll(truth, 1, 0) + 0.5 * rng.random(truth.shape), 0, 1)
        scores = scorer.score(map_.astype(np.float32), MaskGeometry(truth), (0.3, 0.3))
        frames.append(frame(index, f"P{index % 4}" if patients else None, scores))
    return frames


def test_equals_a_loop_that_draws_patients_with_all_their_frames():
    frames = some_frames()
    found = intervals(frames, METRIC_NAMES, resamples=40, seed=3)
    patients = sorted({item.patient for item in frames})
    drawn = {"mean": [], "patient_mean": [], "pooled": []}
    for times in draw_weights(len(patients), 40, 3).astype(int):
        again = []
        for patient, count in zip(patients, times, strict=True):
            for copy in range(count):
                own = [item for item in frames if item.patient == patient]
                again += [
                    frame(len(again), f"{patient}/{copy}", item.rows[0].scores) for item in own
                ]
        summary = summarise(again, METRIC_NAMES)
        for kind in drawn:
            drawn[kind].append(getattr(summary, kind))
    for kind, summaries in drawn.items():
        for name in METRIC_NAMES:
            values = np.array([summary[name] for summary in summaries])
            interval = getattr(found, kind)[name]
            if kind == "pooled" and name.startswith("hd95"):
                assert interval is None
            else:
                assert interval == pytest.approx(percentile_interval(values, 0.95)), (kind, name)
    assert (found.unit, found.clusters) == ("patient", 4) and "only 4 patients" in found.note


def test_agrees_with_scipy_where_every_patient_has_one_frame():
    rng = np.random.default_rng(0)
    frames = [frame(k, f"P{k}", with_dice(int(t))) for k, t in enumerate(rng.integers(0, 11, 60))]
    recalls = [item.rows[0].scores.values()["recall"] for item in frames]
    theirs = scipy_bootstrap(
        (recalls,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    ours = intervals(frames, OVERLAP_NAMES, resamples=20_000)
    assert ours.mean["recall"] == pytest.approx(tuple(theirs), abs=0.006)
    assert ours.patient_mean["recall"] == pytest.approx(ours.mean["recall"])


def test_frames_of_a_patient_stay_together():
    """Ten copies of every frame tell nothing new, so the interval must not shrink."""
    values = [1, 4, 5, 6, 9, 3, 8]
    once = [frame(k, f"P{k}", with_dice(v)) for k, v in enumerate(values)]
    often = [frame(k, f"P{k // 10}", with_dice(values[k // 10])) for k in range(70)]
    a, b = (intervals(frames, OVERLAP_NAMES) for frames in (once, often))
    for name in OVERLAP_NAMES:
        assert a.mean[name] == pytest.approx(b.mean[name])
        assert a.pooled[name] == pytest.approx(b.pooled[name])
    alone = [FrameResult(f.index, f.frame, None, "", f.rows) for f in often]
    naive = intervals(alone, OVERLAP_NAMES)
    width = [high - low for low, high in (a.mean["recall"], naive.mean["recall"])]
    assert width[1] < 0.5 * width[0]
    assert naive.unit == "frame" and "frames were resampled" in naive.note
    assert naive.patient_mean["recall"] is None


def test_the_order_of_frames_and_the_seed():
    frames = some_frames()
    first = intervals(frames, OVERLAP_NAMES)
    assert intervals(frames[::-1], OVERLAP_NAMES) == first
    assert intervals(frames, OVERLAP_NAMES, seed=1) != first


def test_mixed_and_single_patients():
    mixed = [
        frame(0, "P0", with_dice(3)),
        frame(1, "P1", with_dice(4)),
        frame(2, None, with_dice(9)),
    ]
    found = intervals(mixed, OVERLAP_NAMES)
    assert found.clusters == 3 and "1 frames without a patient id" in found.note
    assert found.patient_mean["recall"] == pytest.approx((0.3, 0.4))
    single = intervals([frame(k, "P0", with_dice(k)) for k in range(5)], OVERLAP_NAMES)
    assert single.mean["recall"] is None and "no intervals" in single.note
    empty = Scores(Counts(0, 0, 0, 9))
    undefined = intervals([frame(k, f"P{k}", empty) for k in range(3)], OVERLAP_NAMES)
    assert undefined.mean["recall"] is None and undefined.mean["accuracy"] == (1, 1)


def test_it_holds_the_true_mean_about_as_often_as_it_says():
    """15 patients of 1 to 4 frames that share most of their variance."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(100):
        frames = []
        for patient in range(15):
            level = rng.normal(5, 2)
            for _ in range(rng.integers(1, 5)):
                tenths = int(np.clip(round(level + rng.normal(0, 0.5)), 0, 10))
                frames.append(frame(len(frames), f"P{patient}", with_dice(tenths)))
        low, high = intervals(frames, ("recall",), resamples=300, seed=seed).patient_mean["recall"]
        held += low <= 0.5 <= high
    assert 87 <= held <= 98


def test_percentiles_leave_undefined_resamples_out():
    assert percentile_interval(np.array([math.nan, 1.0, 2.0]), 0.5) == (1.25, 1.75)
    assert percentile_interval(np.array([math.nan]), 0.95) is None

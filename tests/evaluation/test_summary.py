"""Means over rows and patients and pooled, against exact fractions."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.evaluation.geometry import MaskGeometry
from projects.sa2va.evaluation.metrics import METRIC_NAMES, Scorer, Scores
from projects.sa2va.evaluation.overlap import Counts
from projects.sa2va.evaluation.rows import FrameResult, Row, tally
from projects.sa2va.evaluation.summary import mean_defined, pool, summarise


def same(left: float, right: float, tolerance: float = 0.0) -> bool:
    return (math.isnan(left) and math.isnan(right)) or abs(left - right) <= tolerance


def frame(index: int, patient: str | None, *counts: Counts, seg: bool = True) -> FrameResult:
    rows = [Row(f"phrase {k}", Scores(c), seg, "", f"f{index}__{k}") for k, c in enumerate(counts)]
    return FrameResult(index, f"f{index}", patient, "", tuple(rows))


counts_strategy = st.builds(Counts, *[st.integers(0, 50)] * 3, st.integers(1, 500))
frames_strategy = st.lists(
    st.tuples(st.sampled_from(["P1", "P2", "P3", None]), st.lists(counts_strategy, max_size=3)),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=100)
@given(frames_strategy, st.randoms(use_true_random=False))
def test_means_equal_exact_fractions_in_any_order(drawn, shuffler):
    frames = [frame(k, patient, *counts) for k, (patient, counts) in enumerate(drawn)]
    summary = summarise(frames)

    def dice(counts: Counts) -> Fraction | None:
        below = 2 * counts.tp + counts.fp + counts.fn
        return Fraction(2 * counts.tp, below) if below else None

    def mean(values: list[Fraction | None]) -> float:
        kept = [value for value in values if value is not None]
        return float(sum(kept) / len(kept)) if kept else math.nan

    rows = [(patient, c) for patient, counts in drawn for c in counts]
    assert same(summary.mean["dice"], mean([dice(c) for _, c in rows]), 1e-12)
    assert summary.undefined["mean"]["dice"] == sum(dice(c) is None for _, c in rows)
    patients = sorted({patient for patient, _ in rows if patient})
    assert list(summary.per_patient) == patients
    for patient in patients:
        expected = mean([dice(c) for other, c in rows if other == patient])
        assert same(summary.per_patient[patient]["dice"], expected, 1e-12)
    per_patient = [summary.per_patient[patient]["dice"] for patient in patients]
    assert same(summary.patient_mean["dice"], mean_defined(per_patient), 1e-12)
    undefined = sum(math.isnan(value) for value in per_patient)
    assert summary.undefined["patient_mean"]["dice"] == undefined
    everything = [sum(getattr(c, name) for _, c in rows) for name in ("tp", "fp", "fn", "tn")]
    pooled = dice(Counts(*everything))
    assert same(summary.pooled["dice"], math.nan if pooled is None else float(pooled), 1e-12)

    shuffled = list(frames)
    shuffler.shuffle(shuffled)
    assert repr(summarise(shuffled)) == repr(summary)  # to the last bit, nan included


def test_a_patient_with_many_frames_weighs_no_more_than_one_with_few():
    good, bad = Counts(10, 0, 0, 90), Counts(0, 5, 5, 90)
    summary = summarise([frame(0, "A", good), *[frame(k, "B", bad) for k in range(1, 10)]])
    assert summary.mean["dice"] == pytest.approx(0.1)
    assert summary.patient_mean["dice"] == pytest.approx(0.5)
    assert summary.pooled["dice"] == pytest.approx(20 / (20 + 90))


def test_rows_without_a_patient_count_for_all_but_the_patient_mean():
    good, bad = Counts(10, 0, 0, 90), Counts(0, 5, 5, 90)
    summary = summarise([frame(0, "A", good), frame(1, None, bad)])
    assert summary.mean["dice"] == 0.5 and summary.patient_mean["dice"] == 1
    nobody = summarise([frame(0, None, good)])
    assert nobody.per_patient == {} and math.isnan(nobody.patient_mean["dice"])


def test_tally_counts_rows_copies_and_what_is_absent():
    copy, empty, usual = Counts(5, 0, 0, 5), Counts(0, 0, 0, 10), Counts(5, 1, 0, 4)
    frames = [frame(0, "A", copy, empty), frame(1, None, usual, seg=False), frame(2, "A")]
    assert tally(frames) == {
        "frames": 3,
        "rows": 3,
        "phrases": 2,
        "patients": 1,
        "frames_without_patient": 1,
        "frames_with_spacing": 0,
        "with_seg": 2,
        "without_seg": 1,
        "empty_truth": 1,
        "empty_prediction": 1,
        "exact_copies": 1,
    }


def test_mean_defined_is_exact_for_values_that_plain_summing_gets_wrong():
    values = [0.1] * 10 + [math.nan]
    random.Random(0).shuffle(values)
    assert mean_defined(values) == 0.1
    assert math.isnan(mean_defined([math.nan]))


def test_pooled_is_the_metric_of_all_rows_as_one_image():
    """Rows put side by side, far enough apart that none reaches into another's distances."""
    rng = np.random.default_rng(0)
    truth = rng.random((3, 12, 12)) < 0.4
    probability = (rng.integers(0, 256, truth.shape) / 255).astype(np.float32)
    scorer, gap = Scorer(0.6), 40
    rows = [
        scorer.score(p, MaskGeometry(t), (0.5, 0.2))
        for p, t in zip(probability, truth, strict=True)
    ]
    wide = [np.pad(part, ((0, 0), (0, 0), (0, gap))) for part in (probability, truth)]
    p, t = (np.concatenate(list(part), axis=1) for part in wide)
    whole = scorer.score(p, MaskGeometry(t), (0.5, 0.2)).values()
    pooled = pool(rows, METRIC_NAMES)
    # Background between the images counts as background, and topology adds up with its sign.
    for name in set(METRIC_NAMES) - {"specificity", "accuracy", "betti0_error", "betti1_error"}:
        assert pooled[name] == pytest.approx(whole[name], rel=1e-12), name
    errors = [row.values()["betti0_error"] for row in rows]
    assert pooled["betti0_error"] == pytest.approx(np.mean(errors))


def test_rows_without_a_spacing_take_no_part_in_mm():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 3] = True
    truth, scorer = MaskGeometry(np.roll(mask, 2, axis=1)), Scorer(0.5)
    known, unknown = (scorer.score(mask.astype(np.float32), truth, s) for s in ((0.2, 0.2), None))
    frames = [
        FrameResult(k, str(k), "P", "", (Row("v", scores, True, "", str(k)),))
        for k, scores in enumerate((known, unknown))
    ]
    summary = summarise(frames, METRIC_NAMES)
    assert summary.mean["assd"] == 2 and summary.mean["assd_mm"] == pytest.approx(0.4)
    assert summary.pooled["hd95_mm"] == pytest.approx(0.4)
    assert summary.undefined["mean"]["assd_mm"] == 1 and summary.undefined["mean"]["assd"] == 0

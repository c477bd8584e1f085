"""Metrics against MONAI and against plain set arithmetic, over drawn masks."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_confusion_matrix_metric, compute_dice, get_confusion_matrix

from projects.sa2va.evaluation.metrics import (
    METRIC_NAMES,
    Counts,
    FrameResult,
    Row,
    mean_defined,
    summarise,
    tally,
)

MONAI_NAMES = {
    "dice": "f1 score",
    "iou": "threat score",
    "precision": "precision",
    "recall": "sensitivity",
    "specificity": "specificity",
    "accuracy": "accuracy",
}
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
# Whole empty and whole full masks have to come often, they are where metrics are undefined.
fills = st.sampled_from([0.0, 0.2, 0.7, 1.0])


@st.composite
def mask_pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    shape, pair = draw(shapes), []
    for fill in (draw(fills), draw(fills)):
        noise = draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 0.96875, width=32)))
        pair.append(noise < fill)
    return pair[0], pair[1]


def counts_of(prediction: np.ndarray, truth: np.ndarray) -> Counts:
    return Counts.of_masks(torch.from_numpy(prediction), torch.from_numpy(truth))


def same(left: float, right: float, tolerance: float = 0.0) -> bool:
    return (math.isnan(left) and math.isnan(right)) or abs(left - right) <= tolerance


def frame(index: int, patient: str | None, *counts: Counts, seg: bool = True) -> FrameResult:
    rows = [Row(f"phrase {k}", c, seg, "", f"f{index}__{k}") for k, c in enumerate(counts)]
    return FrameResult(index, f"f{index}", patient, "", tuple(rows))


@settings(deadline=None, max_examples=150)
@given(mask_pairs())
def test_metrics_equal_monai_also_where_undefined(pair):
    prediction, truth = pair
    one_hot = [torch.from_numpy(mask)[None, None].float() for mask in pair]
    matrix = get_confusion_matrix(one_hot[0], one_hot[1])[0, 0]
    ours = counts_of(prediction, truth)
    assert (ours.tp, ours.fp, ours.tn, ours.fn) == tuple(int(value) for value in matrix)
    for name, value in ours.metrics().items():
        theirs = float(compute_confusion_matrix_metric(MONAI_NAMES[name], matrix))
        assert same(value, theirs, 1e-6), name
    if truth.any():
        assert same(ours.metrics()["dice"], float(compute_dice(*one_hot)), 1e-6)


@settings(deadline=None, max_examples=150)
@given(mask_pairs())
def test_metrics_equal_set_arithmetic(pair):
    predicted, true = ({tuple(p) for p in np.argwhere(mask)} for mask in pair)
    everywhere = {tuple(p) for p in np.argwhere(np.ones_like(pair[0]))}
    fractions = {
        "dice": (2 * len(predicted & true), len(predicted) + len(true)),
        "iou": (len(predicted & true), len(predicted | true)),
        "precision": (len(predicted & true), len(predicted)),
        "recall": (len(predicted & true), len(true)),
        "specificity": (len(everywhere - predicted - true), len(everywhere - true)),
        "accuracy": (len(everywhere) - len(predicted ^ true), len(everywhere)),
    }
    metrics = counts_of(*pair).metrics()
    assert tuple(metrics) == METRIC_NAMES
    for name, (numerator, denominator) in fractions.items():
        expected = numerator / denominator if denominator else math.nan
        assert same(metrics[name], expected), name


@settings(deadline=None)
@given(mask_pairs())
def test_bounds_symmetry_and_the_tie_of_dice_to_iou(pair):
    there, back = counts_of(*pair).metrics(), counts_of(*pair[::-1]).metrics()
    assert all(math.isnan(value) or 0 <= value <= 1 for value in there.values())
    assert same(there["dice"], back["dice"]) and same(there["iou"], back["iou"])
    assert same(there["precision"], back["recall"])
    assert same(there["dice"], 2 * there["iou"] / (1 + there["iou"]), 1e-12)


@pytest.mark.parametrize(
    ("prediction", "truth", "undefined", "zero"),
    [
        (0, 0, {"dice", "iou", "precision", "recall"}, set()),
        (1, 0, {"recall"}, {"dice", "iou", "precision"}),
        (0, 1, {"precision"}, {"dice", "iou", "recall"}),
    ],
)
def test_the_written_rule_for_undefined_values(prediction, truth, undefined, zero):
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0], masks[1, 1, 1] = bool(prediction), bool(truth)
    metrics = Counts.of_masks(masks[0], masks[1]).metrics()
    assert {name for name, value in metrics.items() if math.isnan(value)} == undefined
    assert {name for name, value in metrics.items() if value == 0} == zero


def test_specificity_is_undefined_where_the_truth_fills_the_image():
    metrics = Counts.of_masks(torch.eye(3).bool(), torch.ones(3, 3).bool()).metrics()
    assert math.isnan(metrics["specificity"])
    assert metrics["precision"] == 1 and metrics["recall"] == 1 / 3


def test_masks_of_other_shape_or_dtype_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        Counts.of_masks(torch.ones(1, 4).bool(), torch.ones(4, 1).bool())
    with pytest.raises(ValueError, match="must be bool"):
        Counts.of_masks(torch.ones(4, 4).bool(), torch.ones(4, 4))


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
        "with_seg": 2,
        "without_seg": 1,
        "empty_truth": 1,
        "exact_copies": 1,
    }


def test_mean_defined_is_exact_for_values_that_plain_summing_gets_wrong():
    values = [0.1] * 10 + [math.nan]
    random.Random(0).shuffle(values)
    assert mean_defined(values) == 0.1
    assert math.isnan(mean_defined([math.nan]))

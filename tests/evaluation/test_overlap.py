"""Overlap metrics against MONAI and against plain set arithmetic, over drawn masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_confusion_matrix_metric, compute_dice, get_confusion_matrix

from projects.sa2va.evaluation.overlap import OVERLAP_NAMES, Counts

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
    return Counts.of_masks(prediction, truth)


def same(left: float, right: float, tolerance: float = 0.0) -> bool:
    return (math.isnan(left) and math.isnan(right)) or abs(left - right) <= tolerance


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
    assert tuple(metrics) == OVERLAP_NAMES
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
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 0, 0], masks[1, 1, 1] = bool(prediction), bool(truth)
    metrics = Counts.of_masks(masks[0], masks[1]).metrics()
    assert {name for name, value in metrics.items() if math.isnan(value)} == undefined
    assert {name for name, value in metrics.items() if value == 0} == zero


def test_specificity_is_undefined_where_the_truth_fills_the_image():
    metrics = Counts.of_masks(np.eye(3, dtype=bool), np.ones((3, 3), bool)).metrics()
    assert math.isnan(metrics["specificity"])
    assert metrics["precision"] == 1 and metrics["recall"] == 1 / 3


def test_masks_of_other_shape_or_dtype_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        Counts.of_masks(np.ones((1, 4), bool), np.ones((4, 1), bool))
    with pytest.raises(ValueError, match="must be bool"):
        Counts.of_masks(np.ones((4, 4), bool), np.ones((4, 4)))

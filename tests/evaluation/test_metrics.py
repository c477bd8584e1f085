"""The choice of metrics, the scorer that puts them together, and the ceiling of the grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings

from projects.sa2va.errors import ConfigError
from projects.sa2va.evaluation.geometry import MaskGeometry
from projects.sa2va.evaluation.metrics import (
    LOWER_IS_BETTER,
    METRIC_NAMES,
    Scorer,
    choose_metrics,
)
from projects.sa2va.evaluation.oracle import through_grid
from projects.sa2va.evaluation.overlap import OVERLAP_NAMES, Counts

from .masks import mask_pairs, same, vessels


def test_sets_and_lists_of_metrics():
    assert choose_metrics("fast") == OVERLAP_NAMES
    assert choose_metrics("all") == METRIC_NAMES
    assert choose_metrics(["hd95", "cldice"]) == (*OVERLAP_NAMES, "cldice", "hd95")
    assert choose_metrics([]) == OVERLAP_NAMES


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["cl_dice"], "did you mean 'cldice'"),
        ("al", "did you mean 'all'"),
        (None, "metric_set=None"),
        ([1], r"metric_set=\[1\]"),
        ("dice", "metric_set='dice'"),
    ],
)
def test_other_metrics_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        choose_metrics(wrong)


@settings(deadline=None, max_examples=60)
@given(mask_pairs())
def test_a_list_gives_what_all_gives(pair):
    prediction, truth = pair[0].astype(np.float32), MaskGeometry(pair[1])
    everything = Scorer(0.5).score(prediction, truth, (0.2, 0.3)).values()
    assert tuple(everything) == METRIC_NAMES
    assert {k: everything[k] for k in OVERLAP_NAMES} == pytest.approx(
        Counts.of_masks(*pair).metrics(), nan_ok=True
    )
    for name in METRIC_NAMES[len(OVERLAP_NAMES) :]:
        alone = Scorer(0.5, choose_metrics([name])).score(prediction, truth, (0.2, 0.3)).values()
        assert set(alone) == {*OVERLAP_NAMES, name}
        assert same(alone[name], everything[name]), name


@settings(deadline=None, max_examples=60)
@given(mask_pairs())
def test_the_truth_itself_is_perfect_or_undefined(pair):
    truth = pair[1]
    values = Scorer(0.5).score(truth.astype(np.float32), MaskGeometry(truth), (0.2, 0.3)).values()
    for name, value in values.items():
        assert math.isnan(value) or value == (0 if name in LOWER_IS_BETTER else 1), name
    assert truth.all() or not truth.any() or not any(map(math.isnan, values.values()))


def test_without_a_spacing_there_are_no_mm():
    mask = vessels()
    shifted = np.roll(mask, 2, axis=1).astype(np.float32)
    values = Scorer(0.5).score(shifted, MaskGeometry(mask)).values()
    assert math.isnan(values["hd95_mm"]) and math.isnan(values["assd_mm"])
    in_mm = Scorer(0.5).score(shifted, MaskGeometry(mask), (0.3, 0.3)).values()
    assert in_mm["assd_mm"] == pytest.approx(0.3 * values["assd"])
    assert in_mm["hd95"] == values["hd95"] > 0


def test_the_oracle_is_the_truth_on_a_fine_grid_and_worse_on_a_coarse_one():
    truth = vessels()
    assert np.array_equal(through_grid(truth, truth.shape), truth.astype(np.float32))
    dice = [
        Scorer(0.5, OVERLAP_NAMES).score(through_grid(truth, (g, g)), MaskGeometry(truth)).counts
        for g in (96, 48, 24, 12)
    ]
    dice = [counts.metrics()["dice"] for counts in dice]
    assert dice[0] == 1 and dice == sorted(dice, reverse=True) and dice[-1] < 0.8


def test_the_oracle_averages_area_and_enlarges_bilinearly():
    truth = np.zeros((4, 4), bool)
    truth[:2, :2] = [[True, False], [True, True]]
    expected = np.array([1, 0.75, 0.25, 0])[:, None] * np.array([1, 0.75, 0.25, 0])
    assert through_grid(truth, (2, 2)) == pytest.approx(0.75 * expected)

"""Paired comparisons: against scipy and closed forms, and what is refused."""

from __future__ import annotations

import copy
import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.evaluation.compare import (
    Run,
    compare_runs,
    holm,
    sign_flip_p,
)
from projects.sa2va.evaluation.comparison_text import as_text, write_comparison
from projects.sa2va.evaluation.run_means import cluster_means

values_strategy = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=10)


def run(name: str, dice, patients=None, hd95=None, **changes) -> Run:
    """A report with one row a frame; four frames a patient unless ``patients`` says otherwise."""
    rows = [
        {
            "frame": f"f{k}",
            "phrase": "vessel",
            "patient": f"P{k // 4}" if patients is None else patients[k],
            "dice": value,
            "hd95": None if hd95 is None else hd95[k],
            "truth": f"{k:016x}",
            "spacing_mm": None,
        }
        for k, value in enumerate(dice)
    ]
    report = {
        "per_frame": rows,
        "metrics": ["dice", "hd95"],
        "valid": True,
        "invalid_because": [],
        "split": "0" * 64,
        "threshold": 0.5,
        "threshold_rule": "probability >= threshold",
        "centreline_tolerance_px": 2.0,
        "answer_mode": "forced",
    }
    return Run(name, {**report, **changes})


def by_metric(comparison, metric="dice"):
    return next(item for item in comparison.differences if item.metric == metric)


def test_numbers_of_a_pair_are_those_of_patient_means():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 40))
    found = by_metric(compare_runs([run("a", a), run("b", b)]))
    d = (b - a).reshape(10, 4).mean(1)
    assert found.difference == pytest.approx(d.mean())
    assert found.effect_size == pytest.approx(d.mean() / d.std(ddof=1))
    assert (found.improved, found.worsened) == ((d > 0).mean(), (d < 0).mean())
    assert (found.units, found.left_out) == (10, 0)
    assert found.mean_b - found.mean_a == pytest.approx(found.difference)
    theirs = permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert found.p == pytest.approx(theirs.pvalue)
    draws = np.random.default_rng(5).choice(d, (20_000, 10)).mean(1)
    assert found.interval == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.01)


def test_drawn_signs_agree_with_all_signs():
    d = np.random.default_rng(1).normal(0.4, 1, 16)
    signs = 1 - 2 * (np.arange(2**16)[:, None] >> np.arange(16) & 1)
    exact = (np.abs(signs @ d) >= abs(d.sum()) - 1e-12).mean()
    assert sign_flip_p(d, 40_000, np.random.default_rng(0)) == pytest.approx(exact, abs=0.01)


def test_closed_forms_of_p():
    rng = np.random.default_rng(0)
    assert sign_flip_p(np.ones(5), 100, rng) == 2 / 2**5  # only all plus and all minus
    assert sign_flip_p(np.zeros(5), 100, rng) == 1
    assert math.isnan(sign_flip_p(np.empty(0), 100, rng))
    assert sign_flip_p(np.full(30, 0.1), 999, rng) == 1 / 1000  # never 0


def test_p_is_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    p = [sign_flip_p(rng.normal(0, 1, 20), 199, rng) for _ in range(400)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.085


@settings(deadline=None, max_examples=50)
@given(values_strategy, st.integers(0, 1000))
def test_swapping_runs_turns_the_sign_and_nothing_else(values, seed):
    other = np.random.default_rng(seed).random(len(values))
    patients = [f"P{k}" for k in range(len(values))]
    a, b = run("a", values, patients), run("b", list(other), patients)
    there, back = (
        by_metric(compare_runs(pair, ["dice"], resamples=200)) for pair in ([a, b], [b, a])
    )
    assert there.difference == -back.difference and there.p == back.p
    assert (there.improved, there.worsened) == (back.worsened, back.improved)
    assert math.isnan(there.effect_size) or there.effect_size == pytest.approx(-back.effect_size)
    if there.interval:
        assert there.interval == pytest.approx([-end for end in back.interval[::-1]], abs=1e-9)


def test_identical_runs_have_no_difference():
    values = np.random.default_rng(0).random(80)
    found = by_metric(compare_runs([run("a", values), run("b", values)]))
    assert (found.difference, found.p, found.p_holm, found.interval) == (0, 1, 1, (0, 0))
    assert math.isnan(found.effect_size) and found.improved == found.worsened == 0


def test_less_is_better_for_distances_and_undefined_rows_are_left_out():
    dice = [0.5] * 8
    far, near = [9.0, 8, 7, 9, 8, 7, 9, 8], [1.0, None, 1, 1, None, None, None, None]
    found = by_metric(compare_runs([run("a", dice, hd95=far), run("b", dice, hd95=near)]), "hd95")
    assert found.difference < 0 and (found.improved, found.worsened) == (1, 0)
    assert (found.units, found.left_out) == (1, 5) and found.interval is None
    nothing = by_metric(compare_runs([run("a", dice), run("b", dice)]), "hd95")
    assert math.isnan(nothing.difference) and math.isnan(nothing.p_holm) and nothing.units == 0


def test_without_patients_frames_are_the_unit_and_it_is_said():
    values = np.random.default_rng(0).random(8)
    comparison = compare_runs([run("a", values, [None] * 8), run("b", values + 0.1, [None] * 8)])
    assert (comparison.unit, comparison.units) == ("frame", 8)
    assert "no patient ids" in comparison.notes[0]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.9])[0] == 1 and math.isnan(holm([0.5, math.nan])[1])
    values = np.random.default_rng(0).random(16)
    runs = [run(name, values + shift) for name, shift in (("a", 0), ("b", 0.1), ("c", 0.2))]
    comparison = compare_runs(runs, ["dice"])
    assert [(item.a, item.b) for item in comparison.differences] == [
        *(("a", "b"), ("a", "c"), ("b", "c"))
    ]
    assert [item.p_holm for item in comparison.differences] == pytest.approx([3 * 0.125] * 3)


def change(key, value):
    def apply(report):
        report[key] = value

    return apply


def change_row(key, value):
    def apply(report):
        report["per_frame"][5][key] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda report: report["per_frame"].pop(), "different frames: 1 rows only in the first"),
        (change_row("phrase", "other"), "different frames"),
        (change_row("truth", "ffff"), "different masks for 1 of 8"),
        (change_row("patient", "P9"), "different patients"),
        (change_row("spacing_mm", [0.3, 0.3]), "different pixel spacing"),
        (change("split", "1" * 64), "split of a is"),
        (change("threshold_rule", "probability > threshold"), "threshold_rule of a"),
        (change("threshold_source", {"kind": "validation"}), "threshold of a comes from None"),
        (change("centreline_tolerance_px", 3.0), "centreline_tolerance_px of a"),
        (change("metrics", ["dice"]), "metrics of a"),
        (change("valid", False), "b is marked valid=false"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(damage, message):
    values = np.random.default_rng(0).random(8)
    a, b = run("a", values), run("b", values)
    report = copy.deepcopy(b.report)
    damage(report)
    with pytest.raises(DataError, match=message):
        compare_runs([a, Run("b", report)])


def test_thresholds_and_answer_modes_may_differ_and_are_noted():
    values = np.random.default_rng(0).random(8)
    other = run("b", values, threshold=0.3, answer_mode="generate")
    notes = compare_runs([run("a", values), other]).notes
    assert notes == [
        "answer_mode differs: a: forced, b: generate",
        "threshold differs: a: 0.5, b: 0.3",
    ]


@pytest.mark.parametrize(
    ("a", "b", "note"),
    [
        (None, 0.5, ""),  # a run from before the key
        (0, 0.0, ""),
        (None, 0.2, "presence_threshold differs: a: 0.5, b: 0.2"),
    ],
)
def test_presence_thresholds_are_compared_as_numbers(a, b, note) -> None:
    values = np.random.default_rng(0).random(8)
    own = [
        run(name, values, answer_mode="choice", presence_threshold=threshold)
        for name, threshold in (("a", a), ("b", b))
    ]
    assert compare_runs(own).notes == ([note] if note else [])
    assert len(compare_runs([run("c", values), own[1]]).notes) == 1  # the answer mode alone


@pytest.mark.parametrize(
    ("names", "metrics", "message"),
    [("a", None, "two or more"), ("aa", None, "names that differ"), ("ab", ["dise"], "'dice'")],
)
def test_wrong_arguments_are_refused(names, metrics, message):
    with pytest.raises(ConfigError, match=message):
        compare_runs([run(name, [0.1, 0.2]) for name in names], metrics)


def test_the_order_of_rows_changes_nothing():
    rng = np.random.default_rng(0)
    a, b = (run(name, rng.random(8)) for name in "ab")
    turned = Run("b", {**b.report, "per_frame": b.report["per_frame"][::-1]})
    assert repr(compare_runs([a, turned])) == repr(compare_runs([a, b]))


def test_text_and_files_hold_all_of_it(tmp_path):
    rng = np.random.default_rng(0)
    comparison = compare_runs([run("old", rng.random(8)), run("new", rng.random(8))])
    text = as_text(comparison)
    assert "A = old, B = new" in text and "2 patients; 10000 resamples" in text
    for suffix in ("md", "csv", "json"):
        write_comparison(comparison, tmp_path / f"c.{suffix}")
    assert "| dice |" in (tmp_path / "c.md").read_text()
    with open(tmp_path / "c.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    stored = json.loads((tmp_path / "c.json").read_text())
    assert float(rows[0]["difference"]) == stored["differences"][0]["difference"]
    assert rows[1]["difference"] == "" and stored["differences"][1]["difference"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.csv", "c.json", "c.md"]
    with pytest.raises(ConfigError, match=r"\.md, \.csv, \.json"):
        write_comparison(comparison, tmp_path / "c.txt")


def test_cluster_means():
    assert cluster_means(np.array([1.0, 3, 5]), np.array([7, 7, 2])).tolist() == [5, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold_source": {"kind": "tuned"}}, "comes from"),
        ({"postprocess": {"low": None, "min_area": 20}}, "have nothing done to them"),
    ],
)
def test_runs_whose_masks_were_made_in_different_ways_are_refused(changes, message):
    dice = [0.5, 0.6, 0.7]
    config = {"threshold_source": {"kind": "config"}, "postprocess": None}
    one, other = run("a", dice, **config), run("b", dice, **{**config, **changes})
    with pytest.raises(DataError, match=message):
        compare_runs([one, other])
    alike = run("c", dice, **{**config, **changes})
    assert compare_runs([other, alike]).differences

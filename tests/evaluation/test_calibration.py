"""Calibration: its definition written out over raw pixels, and data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from projects.sa2va.evaluation.calibration import BINS, EDGES, calibration_parts
from projects.sa2va.evaluation.diagrams import reliability_diagram
from projects.sa2va.evaluation.ranking import split
from projects.sa2va.evaluation.reliability import describe, reliability
from projects.sa2va.figures import svg_figure

unit = st.floats(0, 1, width=32)


def of(*pairs, clusters=None, **more):
    """The calibration of (probability, truth) rows."""
    parts = [calibration_parts(*split(probability, truth)) for probability, truth in pairs]
    return reliability(parts, clusters or list(range(len(parts))), **more)


def draw(pixels: int, seed: int = 0, power: float = 1.0):
    """Probabilities p, and truth with frequency p ** power."""
    rng = np.random.default_rng(seed)
    probability = rng.random(pixels, dtype=np.float32)
    return probability, rng.random(pixels) < probability**power


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=unit), st.integers(0, 2**32 - 1))
def test_it_is_the_definition(probability, seed):
    truth = np.random.default_rng(seed).random(len(probability)) < 0.5
    found = of((probability, truth))
    edges = np.arange(1, BINS) / BINS
    which = np.searchsorted(edges.astype(np.float32), probability, side="right")
    gaps = {
        b: (abs(truth[which == b].mean() - probability[which == b].astype(float).mean()),
            (which == b).mean())
        for b in set(which)
    }  # fmt: skip
    assert found["ece"] == pytest.approx(sum(gap * share for gap, share in gaps.values()))
    assert found["mce"] == pytest.approx(max(gap for gap, _ in gaps.values()), abs=1e-9)
    brier = np.mean((probability.astype(float) - truth) ** 2)
    assert found["brier"] == pytest.approx(brier)
    assert found["pixels"] == len(probability)
    for bins in (found["equal_width"], found["equal_mass"]):
        assert sum(row["pixels"] for row in bins) == len(probability)
        assert bins[0]["low"] == 0 and bins[-1]["high"] == 1
        for row in bins:
            if row["pixels"]:
                assert row["low"] - 1e-6 <= row["mean_probability"] <= row["high"] + 1e-6


def test_calibrated_data_have_no_error():
    found = of(draw(400_000))
    assert found["ece"] < 0.004 and found["equal_mass_ece"] < 0.004 and found["mce"] < 0.015
    assert found["brier"] == pytest.approx(1 / 6, abs=0.002)  # E[p (1 - p)]
    assert of(draw(400_000, power=2))["ece"] == pytest.approx(1 / 6, abs=0.004)  # E[p - p^2]


@given(st.floats(0.02, 0.3))
def test_a_shift_is_the_error(shift):
    probability, truth = draw(100_000)
    shifted = (shift + (1 - 2 * shift) * probability).astype(np.float32)
    rng = np.random.default_rng(1)
    truth = rng.random(len(shifted)) < shifted - shift
    assert of((shifted, truth))["ece"] == pytest.approx(shift, abs=0.006)


def test_bins_of_one_mass_tell_apart_what_one_wide_bin_hides():
    rng = np.random.default_rng(0)
    probability = (rng.random(150_000) ** 6 / 15).astype(np.float32)
    found = of((probability, rng.random(150_000) < probability))
    assert sum(row["pixels"] > 0 for row in found["equal_width"]) == 1
    filled = [row["pixels"] for row in found["equal_mass"]]
    assert len(filled) > 8 and max(filled) < 40_000


def test_edges_belong_to_the_bin_above():
    edge = EDGES[np.searchsorted(EDGES, np.float32(1 / 15))]
    parts = calibration_parts(np.array([np.nextafter(edge, np.float32(0)), edge]), np.array([]))
    assert list(np.flatnonzero(parts[:, 0])) == [k := int(np.searchsorted(EDGES, edge)), k + 1]


def test_the_interval_is_over_patients_and_holds_the_value():
    rows = [draw(4000, seed) for seed in range(12)]
    alone = of(*rows, resamples=300)
    by_patient = of(*rows, clusters=[seed // 4 for seed in range(12)], resamples=300)
    assert alone["ece"] == pytest.approx(by_patient["ece"])
    assert alone["ece_interval"] != by_patient["ece_interval"]
    assert alone["ece_interval"][0] <= alone["ece_interval"][1]
    assert of(rows[0], resamples=300)["ece_interval"] is None
    assert "ECE" in describe(alone) and "[" in describe(alone)


def test_no_rows_and_empty_sides():
    assert reliability([], []) is None
    empty = of((np.zeros((4, 4), np.float32), np.zeros((4, 4), bool)))
    assert empty["ece"] == empty["brier"] == 0
    full = of((np.ones((4, 4), np.float32), np.zeros((4, 4), bool)))
    assert full["ece"] == full["mce"] == full["brier"] == 1


@given(hnp.arrays(np.float32, st.integers(0, 60), elements=unit), st.integers(0, 2**32 - 1))
def test_each_fine_bin_holds_the_sums_of_its_pixels(probability, seed):
    truth = np.random.default_rng(seed).random(len(probability)) < 0.3
    exact = probability.astype(float)
    which = np.searchsorted(EDGES, probability, side="right")
    columns = (np.ones(len(exact)), truth, exact, (exact - truth) ** 2)
    expected = [np.bincount(which, column, len(EDGES) + 1) for column in columns]
    found = calibration_parts(*split(probability, truth))
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-12, atol=0)


def test_the_diagram_says_what_was_found():
    found = of(draw(1000), draw(1000, 1), resamples=20)
    shown = svg_figure(*reliability_diagram(found), "reliability diagram")
    low, high = found["ece_interval"]
    assert f"ECE {found['ece']:.4f} [{low:.4f}, {high:.4f}], MCE {found['mce']:.3f}" in shown
    assert "bins of equal width" in shown and "bins of equal mass" in shown

"""Verdicts on synthetic logs of each kind, and that they do not hang on units."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from projects.sa2va.analysis import TrainingLog, judge
from projects.sa2va.analysis.verdict import find_spikes, smooth

POINTS = 100
SHARE = np.linspace(0, 1, POINTS)
NOISE = np.random.default_rng(0).normal(0, 0.005, POINTS)


def log_of(loss, dice=(), lr=None) -> TrainingLog:
    """A run that logs every 10 iterations and validates at evenly spaced ones."""
    rates = np.linspace(1e-3, 1e-5, len(loss)) if lr is None else lr
    train = [
        {"step": 10 * (k + 1), "loss": float(value), "lr": float(rates[k]), "time": 0.5}
        for k, value in enumerate(loss)
    ]
    last = 10 * len(loss)
    val = [
        {"step": round(last * (k + 1) / len(dice)), "vessel/dice": value}
        for k, value in enumerate(dice)
    ]
    return TrainingLog("run", train, val, [])


FLAT = 0.3 + 0.7 * np.exp(-SHARE * 12) + NOISE
FALLING = 1 - 0.7 * SHARE + NOISE
RISING_DICE = (0.3, 0.5, 0.6, 0.65, 0.66, 0.66, 0.66, 0.66, 0.66, 0.66)
FALLING_DICE = (0.3, 0.6, 0.7, 0.68, 0.66, 0.64, 0.62, 0.6)
BACK_UP = np.concatenate([FALLING[:70], np.full(30, 0.95)])
WITH_NAN = np.concatenate([FALLING[:50], [math.nan], FALLING[51:]])
WITH_INF = np.concatenate([FALLING[:5], [math.inf]])


@pytest.mark.parametrize(
    ("word", "loss", "dice"),
    [
        ("converged", FLAT, RISING_DICE),
        ("converged", FLAT, ()),
        ("still improving", FALLING, RISING_DICE),
        ("still improving", FLAT, (0.3, 0.4, 0.5, 0.6, 0.7)),
        ("over-fitting", FALLING, FALLING_DICE),
        ("diverged", BACK_UP, RISING_DICE),
        ("diverged", WITH_NAN, RISING_DICE),
        ("diverged", WITH_INF, ()),
        ("too short to say", FALLING[:19], RISING_DICE),
        ("not learning", 1 + NOISE, RISING_DICE),
        ("not learning", FLAT, (0.0, 0.0, None)),
        ("unclear", 0.3 + 0.7 * np.exp(-SHARE * 12) + 40 * NOISE, RISING_DICE),
    ],
)
def test_each_kind_of_run(word, loss, dice):
    verdict = judge(log_of(loss, dice))
    assert verdict.word == word, verdict
    assert any(any(letter.isdigit() for letter in reason) for reason in verdict.reasons)
    assert verdict.advice or word == "converged"


def test_a_schedule_that_ended_too_early_is_told_from_one_that_goes_on():
    assert "train longer" in judge(log_of(FALLING)).advice
    assert "train on" in judge(log_of(FALLING, lr=np.full(POINTS, 1e-3))).advice


def test_the_slope_is_that_of_a_straight_line():
    loss = np.linspace(2, 1, POINTS)
    trend = judge(log_of(loss)).trend
    tail = loss[-trend.points :]
    assert trend.change == pytest.approx((tail[-1] - tail[0]) / np.median(tail))
    assert trend.low == pytest.approx(trend.change) and trend.high == pytest.approx(trend.change)
    assert trend.first >= 790 and trend.last == 1000


def test_over_fitting_needs_patience_a_drop_and_a_falling_loss():
    assert judge(log_of(FALLING, FALLING_DICE[:5])).word == "still improving"  # two since the best
    small = (0.3, 0.6, 0.7, 0.698, 0.697, 0.696, 0.695, 0.694)
    assert judge(log_of(FALLING, small)).word == "still improving"
    flat_early = 0.3 + 0.7 * np.exp(-SHARE * 40) + NOISE
    verdict = judge(log_of(flat_early, FALLING_DICE))
    assert verdict.word == "converged" and "best_*.pth" in verdict.advice


def test_a_metric_of_which_less_is_better():
    worse = [1 - value for value in FALLING_DICE]
    assert judge(log_of(FALLING, worse), lower_is_better=True).word == "over-fitting"
    assert judge(log_of(FALLING, worse), lower_is_better=True).validation.best == min(worse)


def test_validations_are_counted_since_the_best():
    found = judge(log_of(FALLING, FALLING_DICE)).validation
    assert (found.best, found.since, found.count, found.last) == (0.7, 5, 8, 0.6)
    assert judge(log_of(FALLING, (None, None))).validation is None


def test_spikes_are_found_and_are_no_divergence():
    loss = FLAT.copy()
    loss[[40, 60]] = 5.0
    verdict = judge(log_of(loss, RISING_DICE))
    assert verdict.spikes == [410, 610] and verdict.word == "converged"
    assert judge(log_of(FLAT)).spikes == []
    assert find_spikes(np.arange(2.0), np.ones(2), np.ones(2)) == []


@settings(deadline=None, max_examples=25)
@given(st.integers(-6, 6), st.sampled_from([FLAT, FALLING, BACK_UP, 1 + NOISE]))
def test_a_verdict_does_not_hang_on_the_scale_of_the_loss(power, loss):
    assert judge(log_of(loss * 10.0**power)).word == judge(log_of(loss)).word


@given(st.lists(st.floats(-1e6, 1e6), min_size=9, max_size=40), st.sampled_from([3, 5, 7]))
def test_smoothing_is_a_running_median(values, width):
    ours, half = smooth(np.array(values), width), width // 2
    theirs = median_filter(np.array(values), size=width)
    assert np.array_equal(ours[half:-half], theirs[half:-half])


def test_smoothing_leaves_out_what_is_not_defined():
    assert smooth(np.array([1.0, math.nan, 3.0]), 3).tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(smooth(np.array([math.nan]))).all()

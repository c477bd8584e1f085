"""The numbers of the table against numpy and plain loops."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from projects.sa2va.evaluation.bootstrap import draw_weights
from projects.sa2va.evaluation.run_means import OverPatients
from projects.sa2va.sweeps.statistics import MIN_SEEDS, Over, difference, estimate

RESAMPLES = 200


def some(seeds: int, frames: int) -> st.SearchStrategy[np.ndarray]:
    number = st.one_of(st.floats(0, 1, allow_subnormal=False), st.just(math.nan))
    return arrays(np.float64, (seeds, frames), elements=number)


def by(groups: np.ndarray) -> Over:
    return partial(OverPatients.of, groups=groups)


def patient_means(values: np.ndarray, groups: np.ndarray, keep: list[int]) -> np.ndarray:
    """[S, P], by loops."""
    patients = sorted({int(groups[k]) for k in keep})
    return np.array(
        [
            [np.mean([seed[k] for k in keep if groups[k] == patient]) for patient in patients]
            for seed in values
        ]
    ).reshape(len(values), len(patients))


def interval(statistics: list[float]) -> list[float]:
    return [float(bound) for bound in np.percentile(statistics, [2.5, 97.5])]


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 7), st.integers(1, 8))
def test_a_mean_is_that_of_loops(data, seeds, frames):
    values = data.draw(some(seeds, frames))
    groups = np.array(data.draw(st.lists(st.integers(0, 3), min_size=frames, max_size=frames)))
    found = estimate(values, by(groups), RESAMPLES)
    keep = [k for k in range(frames) if not any(math.isnan(seed[k]) for seed in values)]
    assert found.left_out == frames - len(keep)
    if not keep:
        assert math.isnan(found.value) and found.interval is None and found.seed_values == ()
        return
    means = patient_means(values, groups, keep)
    assert found.value == pytest.approx(means.mean(), abs=1e-12)
    assert found.seed_values == pytest.approx(means.mean(axis=1), abs=1e-12)
    assert found.units == means.shape[1]
    assert found.seeds_drawn == (seeds >= MIN_SEEDS)
    if seeds > 1:
        assert found.seed_sd == pytest.approx(np.std(means.mean(axis=1), ddof=1), abs=1e-12)
    else:
        assert math.isnan(found.seed_sd)
    if means.shape[1] < 2:
        assert found.interval is None
        return
    patients = draw_weights(means.shape[1], RESAMPLES, 0)
    drawn = draw_weights(seeds, RESAMPLES, 1) if seeds >= MIN_SEEDS else np.ones((RESAMPLES, seeds))
    repeated = [
        np.repeat(np.repeat(means, rows.astype(int), 0), columns.astype(int), 1).mean()
        for rows, columns in zip(drawn, patients, strict=True)
    ]
    assert found.interval == pytest.approx(interval(repeated), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.integers(1, 8))
def test_a_difference_is_paired_by_frames_and_patients(data, seeds, others, frames):
    row, base = data.draw(some(seeds, frames)), data.draw(some(others, frames))
    groups = np.arange(frames) // 2
    found = difference(row, base, by(groups), RESAMPLES)
    both = np.concatenate([row, base])
    keep = [k for k in range(frames) if not np.isnan(both[:, k]).any()]
    assert found.left_out == frames - len(keep)
    if not keep:
        assert math.isnan(found.value)
        return
    b, a = (patient_means(side, groups, keep) for side in (row, base))
    assert found.value == pytest.approx(b.mean() - a.mean(), abs=1e-12)
    assert found.seeds_drawn == (min(seeds, others) >= MIN_SEEDS)
    if b.shape[1] > 1 and not found.seeds_drawn:
        d = b.mean(axis=0) - a.mean(axis=0)
        patients = draw_weights(len(d), RESAMPLES, 0)
        repeated = [np.repeat(d, counts.astype(int)).mean() for counts in patients]
        assert found.interval == pytest.approx(interval(repeated), abs=1e-12)


def test_a_row_that_is_better_by_a_constant_has_an_interval_of_that_constant_alone():
    base = np.random.default_rng(0).random((3, 20))
    found = difference(base + 0.1, base, by(np.arange(20)), RESAMPLES)
    assert found.interval == pytest.approx((0.1, 0.1))
    assert estimate(base, by(np.arange(20)), RESAMPLES).interval[0] < 0.5


def test_with_five_seeds_the_interval_knows_of_their_spread():
    patients, seeds = np.full(40, 0.7), np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    spread = patients + seeds[:, None]
    five = estimate(spread, by(np.arange(40)), 2000)
    four = estimate(spread[:4], by(np.arange(40)), 2000)
    assert five.seeds_drawn and five.interval[1] - five.interval[0] > 0.2
    assert not four.seeds_drawn and four.interval == pytest.approx((0.85, 0.85))
    # Each side draws its own seeds: the same seed numbers share nothing.
    gap = difference(spread, spread.copy(), by(np.arange(40)), 2000)
    assert gap.value == 0 and gap.interval[1] > 0.1


def test_frames_of_a_patient_weigh_as_one():
    values, groups = np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([0, 1, 1, 1])
    assert estimate(values, by(groups), RESAMPLES).value == 0.5

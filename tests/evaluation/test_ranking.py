"""Average precision against its definition, threshold by threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.evaluation.ranking import (
    average_precision,
    level_counts,
    pooled_ranking,
    split,
)

from .masks import mask_pairs, same, vessels


def by_definition(probability: np.ndarray, truth: np.ndarray) -> float:
    """Sum over all distinct thresholds, from high to low, of precision times gained recall."""
    if not truth.any():
        return math.nan
    total = recall = 0.0
    for level in np.unique(probability)[::-1]:
        cut = probability >= level
        precision, now = (cut & truth).sum() / cut.sum(), (cut & truth).sum() / truth.sum()
        total, recall = total + precision * (now - recall), now
    return total


@settings(deadline=None, max_examples=100)
@given(mask_pairs(), st.integers(0, 2**32 - 1), st.sampled_from([2, 7, 256]))
def test_equals_the_definition_with_and_without_ties(pair, seed, levels):
    truth = pair[1]
    drawn = np.random.default_rng(seed).integers(0, levels, truth.shape) / (levels - 1)
    probability = drawn.astype(np.float32)
    ranked, expected = split(probability, truth), by_definition(probability, truth)
    assert same(average_precision(*ranked), expected, 1e-12)
    # 256 levels or fewer fall into bins of their own.
    assert same(float(pooled_ranking(level_counts(*ranked))["average_precision"]), expected, 1e-12)
    # Any increasing function ranks alike.
    assert same(average_precision(*split(probability**3, truth)), expected, 1e-12)


def test_the_rule_for_empty_sides():
    truth = np.zeros((4, 5), bool)
    assert math.isnan(average_precision(*split(np.ones((4, 5)), truth)))
    truth[0, :2] = True
    assert average_precision(*split(np.zeros((4, 5)), truth)) == pytest.approx(2 / 20)
    assert average_precision(*split(truth.astype(float), truth)) == 1
    assert average_precision(*split(np.zeros((4, 5)), truth | True)) == 1


def test_bins_count_the_levels_of_the_saved_png():
    probability = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    truth = vessels(side=64)
    counts = level_counts(*split(probability, truth))
    levels = np.rint(probability * 255).astype(np.uint8)  # as the writer rounds
    assert np.array_equal(counts[1], np.bincount(levels[truth], minlength=256))
    assert np.array_equal(counts[0], np.bincount(levels[~truth], minlength=256))
    exact = average_precision(*split(probability, truth))
    assert pooled_ranking(counts)["average_precision"] == pytest.approx(exact, abs=2e-3)

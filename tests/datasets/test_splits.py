"""The splitter: nothing shared, nothing lost, stable, and balanced."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.datasets.splits import Group, connected, deal, make_groups
from projects.sa2va.errors import ConfigError

SHARES = st.sampled_from([(0.7, 0.1, 0.2), (0.8, 0.2), (1 / 3, 1 / 3, 1 / 3), (0.2,) * 5])
GROUPS = st.lists(st.tuples(st.integers(1, 12), st.floats(0, 0.2)), min_size=5, max_size=40).map(
    lambda rows: [Group(f"p{i}", n, f) for i, (n, f) in enumerate(rows)]
)


@settings(max_examples=60, deadline=None)
@given(GROUPS, SHARES, st.integers(0, 3), st.randoms(use_true_random=False))
def test_each_group_is_in_one_part_whatever_the_order(groups, shares, seed, shuffler):
    parts = deal(groups, shares, seed)
    assert all(parts)
    dealt = [group for part in parts for group in part]
    assert sorted(g.name for g in dealt) == sorted(g.name for g in groups)
    shuffled = list(groups)
    shuffler.shuffle(shuffled)
    assert deal(shuffled, shares, seed) == parts


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.2), (0.2,) * 5])
def test_parts_have_their_share_and_are_alike(shares):
    rng = np.random.default_rng(0)
    groups = [
        Group(f"p{i}", int(rng.integers(1, 9)), float(rng.uniform(0.01, 0.08))) for i in range(120)
    ]
    whole = np.average([g.vessel_fraction for g in groups], weights=[g.frames for g in groups])
    spreads = []
    for seed in range(3):
        for part, share in zip(deal(groups, shares, seed), shares, strict=True):
            frames = [g.frames for g in part]
            assert abs(sum(frames) / sum(g.frames for g in groups) - share) < 0.02
            mean = np.average([g.vessel_fraction for g in part], weights=frames)
            spreads.append(abs(mean / whole - 1))
    assert max(spreads) < 0.12
    # Better than chance: parts drawn at random differ more.
    drawn = random.Random(0)
    chance = []
    for _ in range(30):
        part = drawn.sample(groups, 12)
        frames = [g.frames for g in part]
        mean = np.average([g.vessel_fraction for g in part], weights=frames)
        chance.append(abs(mean / whole - 1))
    assert np.mean(spreads) < 0.5 * np.mean(chance)


def test_another_seed_deals_otherwise():
    groups = [Group(f"p{i}", 3, i / 100) for i in range(30)]
    assert deal(groups, (0.8, 0.2), 0) != deal(groups, (0.8, 0.2), 1)


@pytest.mark.parametrize("shares", [(), (0.5, 0.6), (1.0, 0.0)])
def test_shares_that_are_none(shares):
    with pytest.raises(ConfigError, match="shares"):
        deal([Group("a", 1, 0.1)] * 1, shares)


def test_too_few_and_repeated_groups():
    with pytest.raises(ConfigError, match=r"1 patients .* for 2 splits"):
        deal([Group("a", 9, 0.1)], (0.5, 0.5))
    with pytest.raises(ConfigError, match="one name"):
        deal([Group("a", 9, 0.1)] * 2, (0.5, 0.5))
    # The large one takes all of the first part; the others are never left without.
    parts = deal([Group("a", 90, 0.1), Group("b", 1, 0.1), Group("c", 1, 0.1)], (0.8, 0.1, 0.1))
    assert sorted(len(part) for part in parts) == [1, 1, 1]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_connected_members_have_one_name(links):
    name = connected(range(10), links)
    assert all(name[a] == name[b] for a, b in links)
    # An independent way: spread the smallest name along the links until nothing changes.
    smallest = list(range(10))
    for _ in range(10):
        for a, b in links:
            smallest[a] = smallest[b] = min(smallest[a], smallest[b])
    assert [name[i] for i in range(10)] == smallest


def test_groups_are_means_over_their_frames():
    groups = make_groups(["b", "a", "b"], [0.1, 0.5, 0.3])
    assert [(g.name, g.frames) for g in groups] == [("a", 1), ("b", 2)]
    assert [g.vessel_fraction for g in groups] == pytest.approx([0.5, 0.2])

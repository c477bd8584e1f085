"""The partition against brute force, and what waits where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.placement.partition import UnitCost, load, partition, shard, spill

UNITS = st.lists(
    st.builds(
        UnitCost,
        st.just("unit"),
        st.integers(0, 20),
        st.integers(0, 10),
        st.booleans(),
        st.booleans(),
    ),
    max_size=7,
)
BUDGETS = st.lists(st.integers(0, 60), min_size=1, max_size=3)


def every_cut(count: int, devices: int) -> Iterator[list[int]]:
    """All ways to cut a chain into contiguous segments, as the device of each unit."""
    for cuts in combinations_with_replacement(range(count + 1), devices - 1):
        ends = [0, *cuts, count]
        yield [d for d, (a, b) in enumerate(pairwise(ends)) for _ in range(b - a)]


def loads(units: Sequence[UnitCost], device: Sequence[int], devices: int) -> list[int]:
    of = [[u for u, d in zip(units, device, strict=True) if d == n] for n in range(devices)]
    return [sum(u.weights for u in own) + max([0, *(u.passing for u in own)]) for own in of]


def best_of_all(units: Sequence[UnitCost], budgets: Sequence[int]) -> int | None:
    cuts = (loads(units, cut, len(budgets)) for cut in every_cut(len(units), len(budgets)))
    within = [each for each in cuts if all(a <= b for a, b in zip(each, budgets, strict=True))]
    return min(map(max, within), default=None)


@settings(max_examples=150, deadline=None)
@given(UNITS, BUDGETS)
def test_the_largest_load_is_the_smallest_there_is(
    units: list[UnitCost], budgets: list[int]
) -> None:
    best, found = best_of_all(units, budgets), partition(units, budgets)
    if best is None:
        assert found is None
        return
    assert list(found) == sorted(found)
    each = loads(units, found, len(budgets))
    assert all(a <= b for a, b in zip(each, budgets, strict=True))
    assert max(each) == best
    assert load(units) == loads(units, [0] * len(units), 1)[0]


@settings(max_examples=100, deadline=None)
@given(UNITS, BUDGETS)
def test_weights_wait_only_where_they_must(units: list[UnitCost], budgets: list[int]) -> None:
    resident = shard(units, budgets, wait=False)
    assert (resident is None) == (best_of_all(units, budgets) is None)
    found = shard(units, budgets, wait=True)
    if resident is not None:
        assert found == resident and not found.waiting

    def seen(waiting: Sequence[int]) -> list[UnitCost]:
        """Units as their devices see them: a waiting one is fetched beside what stays."""
        return [
            UnitCost(u.name, 0, u.passing + u.weights * u.runs) if n in waiting else u
            for n, u in enumerate(units)
        ]

    may = [n for n, u in enumerate(units) if u.may_wait]
    if found is None:
        assert best_of_all(seen(may), budgets) is None
        return
    assert set(found.waiting) <= set(may)
    held = seen(found.waiting)
    assert list(found.loads) == loads(held, found.device, len(budgets))
    assert all(a <= b for a, b in zip(found.loads, budgets, strict=True))
    if found.waiting:  # one fewer does not fit
        assert best_of_all(seen(found.waiting[:-1]), budgets) is None


def test_what_is_never_called_waits_first_then_the_last_layers() -> None:
    units = [
        UnitCost("first", 1, 1, may_wait=False),
        *(UnitCost(f"layers.{i}", 10, 1) for i in range(4)),
        UnitCost("head", 30, 1, runs=False),
    ]
    assert shard(units, [42], wait=True).waiting == (5,)
    # 1 + 20 of weights, and a fetched layer with what it computes beside them.
    assert shard(units, [32], wait=True).waiting == (5, 4, 3)
    assert shard(units, [11], wait=True) is None
    assert shard(units, [42], wait=False) is None


def test_the_host_first_then_the_disk() -> None:
    units = [UnitCost(name, 10) for name in "abc"]
    assert spill(units, (2, 1, 0), 20) == {"c": "host", "b": "host", "a": "disk"}
    assert spill(units, (2,), 0) == {"c": "disk"}
    assert spill(units, (), 100) == {}

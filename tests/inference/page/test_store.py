"""What is kept is bounded, and only its token leads to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projects.sa2va.errors import DataError
from projects.sa2va.inference.page.store import Store


@given(st.lists(st.integers(0, 120), min_size=1, max_size=30), st.integers(1, 200))
def test_the_newest_are_kept_within_the_bytes(sizes, most):
    store: Store[int] = Store(most)
    tokens = [store.add(number, size) for number, size in enumerate(sizes)]
    kept = [token in store for token in tokens]
    assert kept[-1] and kept == sorted(kept)  # those dropped come first
    held = sum(size for size, there in zip(sizes, kept, strict=True) if there)
    assert store.size == held and (held <= most or sum(kept) == 1)
    if not all(kept):  # the youngest dropped would not have fitted
        assert held + sizes[kept.index(True) - 1] > most
    assert len(set(tokens)) == len(tokens) and min(map(len, tokens)) >= 22


def test_what_is_looked_at_stays():
    store: Store[str] = Store(2)
    first, second = store.add("a", 1), store.add("b", 1)
    assert store.get(first) == "a"
    store.add("c", 1)
    assert first in store and second not in store
    with pytest.raises(DataError, match=r"no longer kept(.|\n)*--keep-mib"):
        store.get(second)


def test_dropping():
    store: Store[str] = Store(9)
    token = store.add("a", 3)
    store.drop(token)
    store.drop(token)
    store.drop(None)
    assert store.size == 0 and len(store) == 0

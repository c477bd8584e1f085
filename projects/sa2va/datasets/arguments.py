"""Arguments that all data sets have, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, listing


def chosen_indices(count: int, indices: Sequence[int] | None, limit: int | None) -> list[int]:
    """Indices of the records that are kept.

    Args:
        count: of all records.
        indices: those to keep, in this order; None: all.
        limit: only the first ones of them; None: all.

    Raises:
        ConfigError: indices that repeat, or that no record has.
    """
    if indices is None:
        return list(range(count))[:limit]
    wrong = [i for i in indices if not is_whole(i) or not 0 <= i < count]
    if wrong or len(set(indices)) != len(indices):
        raise ConfigError(
            f"indices outside the data set: {listing(wrong)}" if wrong else "indices that repeat",
            f"different numbers from 0 to {count - 1}",
            "correct `indices` of the data set",
        )
    return list(indices)[:limit]


def is_whole(value: Any) -> bool:
    """True for an int; True and False are ints to Python, but a mistake here."""
    return isinstance(value, int) and not isinstance(value, bool)


def spacing_mm(value: Any) -> tuple[float, float] | None:
    """(rows, columns) in mm of a number or a pair of them; None where it is None.

    Raises:
        ConfigError: anything else.
    """
    if value is None:
        return None
    pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in pair)
    if not numbers or len(pair) != 2 or not all(0 < v < float("inf") for v in pair):
        raise ConfigError(
            f"spacing={value!r}",
            "mm from one pixel to the next: a number above 0, or two (rows, columns), or None",
            "correct `spacing`",
        )
    return float(pair[0]), float(pair[1])


def at_least_1(name: str, value: Any) -> int | None:
    """``value``, checked: None or an integer of 1 or more.

    Raises:
        ConfigError: anything else; ``name`` is the key in the message.
    """
    if value is not None and (not is_whole(value) or value < 1):
        raise ConfigError(
            f"{name}={value!r}", "an integer of 1 or more, or None", f"correct `{name}`"
        )
    return value

"""Splits of frames into groups that share no patient, alike in size and vessel fraction.

The method is the greedy one of grouped, stratified splits (Sechidis et al., "On the stratification
of multi-label data", 2011; scikit-learn's StratifiedGroupKFold works so): groups are dealt out one
by one, large ones first, each to the part that then lacks least. It depends on the names of the
groups and the seed alone, not on the order in which they are given.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError

_MOST_STRATA = 8


@dataclass(frozen=True)
class Group:
    """What must stay together: a patient, or frames that show the same.

    Attributes:
        name: unique.
        frames: how many frames it has.
        vessel_fraction: mean over them, 0 to 1.
    """

    name: str
    frames: int
    vessel_fraction: float


def deal(groups: Sequence[Group], shares: Sequence[float], seed: int = 0) -> list[list[Group]]:
    """Deals groups out to parts.

    Args:
        groups: at least as many as there are parts.
        shares: wanted share of the frames of each part; above 0, 1 in all.
        seed: another one deals otherwise.

    Returns:
        The groups of each part, sorted by name; none empty, each group in exactly one.

    Raises:
        ConfigError: shares that are none, two groups of one name, or too few groups.
    """
    shares_array = np.asarray(shares, np.float64)
    if not len(shares_array) or (shares_array <= 0).any() or abs(shares_array.sum() - 1) > 1e-6:
        raise ConfigError(
            f"shares {list(shares)}",
            "numbers above 0 that add up to 1",
            "give --ratios 0.7 0.1 0.2",
        )
    if len({group.name for group in groups}) < len(groups):
        raise ConfigError("two groups of one name", "a name for each group", "rename one")
    if len(groups) < len(shares_array):
        raise ConfigError(
            f"{len(groups)} patients (or groups of frames) for {len(shares_array)} splits",
            "at least one for each",
            "ask for fewer splits or folds, or add data",
        )
    order = sorted(groups, key=lambda g: (-g.frames, _digest(seed, g.name)))
    strata = _strata(order, len(shares_array))
    # Rows: strata, and below them all frames together. Counted in shares of each row's total.
    totals = np.bincount(strata, [g.frames for g in order])
    totals = np.append(totals, totals.sum()).astype(np.float64)
    wanted = totals[:, None] * shares_array[None]
    have = np.zeros_like(wanted)
    parts: list[list[Group]] = [[] for _ in shares_array]
    for group, stratum in zip(order, strata, strict=True):
        rows = [stratum, len(totals) - 1]
        # How far each part would be filled, relative to its own share.
        filled = (have[rows] + group.frames) / wanted[rows]
        part = int(np.argmin(np.round(filled.sum(axis=0), 9)))
        have[rows, part] += group.frames
        parts[part].append(group)
    _fill_empty(parts)
    return [sorted(part, key=lambda group: group.name) for part in parts]


def folds(groups: Sequence[Group], count: int, seed: int = 0) -> list[list[Group]]:
    """Deals groups out to ``count`` equal parts; see :func:`deal`."""
    return deal(groups, [1 / count] * count, seed)


def connected(
    members: Iterable[Hashable], links: Iterable[tuple[Hashable, Hashable]]
) -> dict[Hashable, Hashable]:
    """Returns, for each member, the smallest of all that it is linked to (union-find)."""
    parent = {member: member for member in members}

    def root(member: Hashable) -> Hashable:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for left, right in links:
        a, b = sorted((root(left), root(right)))
        parent[b] = a
    return {member: root(member) for member in parent}


def make_groups(names: Sequence[str], fractions: Sequence[float]) -> list[Group]:
    """Returns the groups of frames whose group names and vessel fractions are given."""
    rows: dict[str, list[float]] = defaultdict(list)
    for name, fraction in zip(names, fractions, strict=True):
        rows[name].append(fraction)
    # Sorted before the sum, so that rounding does not depend on the order of the frames.
    return [Group(n, len(v), float(np.mean(sorted(v)))) for n, v in sorted(rows.items())]


def _strata(groups: Sequence[Group], parts: int) -> np.ndarray:
    """Number of the stratum of each group: equally many groups each, by vessel fraction."""
    count = max(1, min(_MOST_STRATA, len(groups) // (2 * parts)))
    by_fraction = sorted(
        range(len(groups)), key=lambda i: (groups[i].vessel_fraction, groups[i].name)
    )
    strata = np.zeros(len(groups), np.int64)
    strata[by_fraction] = np.arange(len(groups)) * count // len(groups)
    return strata


def _fill_empty(parts: list[list[Group]]) -> None:
    """Moves a small group into each empty part, from the part with the most groups."""
    for part in parts:
        if not part:
            donor = max(parts, key=len)
            part.append(donor.pop())  # the last that was dealt: the smallest


def _digest(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()

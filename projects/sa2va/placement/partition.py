"""Units to devices: contiguous in running order, the fullest device as empty as can be.

Plain numbers in, plain numbers out. The partition is the classic one of a chain into segments
with the smallest maximum, solved exactly by dynamic programming over (devices, units); pipelines
are cut so in Narayanan et al., 2019 (PipeDream, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class UnitCost:
    """What a unit takes, in bytes.

    Attributes:
        name: of the unit.
        weights: of its weights.
        passing: of what lives beside all weights of a device while the unit runs.
        may_wait: its weights may stay on the host.
        runs: whether prediction calls it at all; the head of a forced answer is not.
    """

    name: str
    weights: int
    passing: int = 0
    may_wait: bool = True
    runs: bool = True


@dataclass(frozen=True)
class Shards:
    """Where units are.

    Attributes:
        device: number of the device that computes each unit, in the order of the units.
        waiting: numbers of the units whose weights stay on the host, the first to go first.
        loads: bytes that each device holds at its fullest.
    """

    device: tuple[int, ...]
    waiting: tuple[int, ...]
    loads: tuple[int, ...]


def load(units: Sequence[UnitCost]) -> int:
    """Bytes that a device with these units holds at its fullest."""
    return sum(u.weights for u in units) + max((u.passing for u in units), default=0)


def partition(units: Sequence[UnitCost], budgets: Sequence[int]) -> tuple[int, ...] | None:
    """Cuts ``units`` into one contiguous (perhaps empty) segment a device.

    Args:
        units: in running order.
        budgets: bytes that each device may hold.

    Returns:
        Number of the device of each unit, so that the largest load is the smallest that there is
        within the budgets; None where there is no such cut.
    """
    count = len(units)
    best = [0.0, *[inf] * count]  # of the first j units on the devices so far
    cuts: list[list[int]] = []
    for budget in budgets:
        following, cut = [inf] * (count + 1), [0] * (count + 1)
        for end in range(count + 1):
            weights = passing = 0
            for start in range(end, -1, -1):
                if start < end:
                    weights += units[start].weights
                    passing = max(passing, units[start].passing)
                if weights + passing > budget:
                    break
                most = max(best[start], float(weights + passing))
                if most < following[end]:
                    following[end], cut[end] = most, start
        best = following
        cuts.append(cut)
    if best[count] == inf:
        return None
    device = [0] * count
    end = count
    for number in range(len(budgets) - 1, -1, -1):
        start = cuts[number][end]
        device[start:end] = [number] * (end - start)
        end = start
    return tuple(device)


def shard(units: Sequence[UnitCost], budgets: Sequence[int], *, wait: bool) -> Shards | None:
    """Partitions ``units``; where they do not fit, the weights of some wait on the host.

    What is never called waits first, then decoder layers and others from the last backwards, as
    few as there must be. A device that runs a waiting unit has room for its weights beside its
    own.

    Args:
        units: in running order.
        budgets: bytes that each device may hold.
        wait: whether weights may stay on the host.

    Returns:
        None where it does not fit.
    """
    order = sorted(
        (number for number, unit in enumerate(units) if unit.may_wait),
        key=lambda number: (units[number].runs, -number),
    )
    for count in range(len(order) + 1 if wait else 1):
        waiting = tuple(order[:count])
        held = [_waiting(u) if n in waiting else u for n, u in enumerate(units)]
        device = partition(held, budgets)
        if device is not None:
            loads = tuple(
                load([u for u, d in zip(held, device, strict=True) if d == number])
                for number in range(len(budgets))
            )
            return Shards(device, waiting, loads)
    return None


def _waiting(unit: UnitCost) -> UnitCost:
    """``unit`` as its device sees it when its weights come for each call."""
    passing = unit.passing + (unit.weights if unit.runs else 0)
    return UnitCost(unit.name, 0, passing, unit.may_wait, unit.runs)


def spill(units: Sequence[UnitCost], waiting: Sequence[int], host: int) -> dict[str, str]:
    """Where waiting units wait: ``host`` while there is memory, then ``disk``.

    Args:
        units: in running order.
        waiting: their numbers, of :class:`Shards`.
        host: bytes of host memory for them.
    """
    places: dict[str, str] = {}
    for number in waiting:
        host -= units[number].weights
        places[units[number].name] = "host" if host >= 0 else "disk"
    return places

"""How long a sweep still takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Clock:
    """Time left, from the mean time of the steps of each kind so far.

    Args:
        todo: kinds of the steps to do, one for each.
        jobs: runs at a time.
    """

    def __init__(self, todo: Iterable[str], jobs: int) -> None:
        self._todo, self._jobs = Counter(todo), jobs
        self._spent: dict[str, list[float]] = {}

    def done(self, kind: str, seconds: float) -> None:
        """A step has ended well."""
        self._todo[kind] -= 1
        self._spent.setdefault(kind, []).append(seconds)

    def dropped(self, kinds: Iterable[str]) -> None:
        """Steps that will not be done, because one before them failed."""
        self._todo.subtract(kinds)

    def left(self) -> float | None:
        """Seconds; None until a step of each kind that is to do has ended."""
        kinds = [kind for kind, count in self._todo.items() if count > 0]
        if any(kind not in self._spent for kind in kinds):
            return None
        means = {kind: sum(self._spent[kind]) / len(self._spent[kind]) for kind in kinds}
        return sum(means[kind] * self._todo[kind] for kind in kinds) / self._jobs


def duration(seconds: float) -> str:
    """As a person reads it: ``42 s``, ``5 min 3 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

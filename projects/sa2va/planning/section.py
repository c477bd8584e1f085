"""Items of memory, in bytes, and whether they fit a card."""

from __future__ import annotations

from dataclasses import dataclass

from .card import Card

GIB = 2**30


@dataclass(frozen=True)
class Item:
    """Something that takes memory at the peak.

    Attributes:
        group: ``weights``, ``trained weights``, ``gradients``, ``optimiser``, ``activations``,
            ``logits``, ``strategy``, ``overhead`` or ``host``.
        name: what it is.
        size: bytes.
    """

    group: str
    name: str
    size: int


@dataclass(frozen=True)
class Section:
    """What is held at the fullest moment of one kind of work.

    Attributes:
        key: ``training``, ``validation``, ``inference`` or ``host``.
        items: what is held at that moment.
        part: part of the step in which it comes.
        parts: peak of each part of the step, in bytes.
    """

    key: str
    items: list[Item]
    part: str = ""
    parts: dict[str, int] | None = None

    @property
    def peak(self) -> int:
        """Bytes reserved by torch's allocator (of the host: taken)."""
        return sum(item.size for item in self.items)

    @property
    def allocated(self) -> int:
        """Bytes of tensors: the peak without what the allocator holds in reserve."""
        return sum(item.size for item in self.items if item.name != SLACK)

    def group(self, name: str) -> int:
        """Bytes of the items of a group."""
        return sum(item.size for item in self.items if item.group == name)

    def free(self, card: Card) -> float:
        """GiB that are left of the card; negative where it does not fit."""
        return card.usable_gib - self.peak / GIB

    def fits(self, card: Card) -> bool:
        """Whether it fits the card; host memory is not judged."""
        return self.key == "host" or self.free(card) >= 0


SLACK = "allocator's reserve"

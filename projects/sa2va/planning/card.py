"""How much of a card a process may take."""

from __future__ import annotations

from dataclasses import dataclass

from projects.sa2va.errors import ConfigError

# A card sold as 24 GB reports 23.5 to 23.7 GiB; the ratio is that of the larger cards, too
# (48: 47.4, 80: 79.1, 141: 139.7).
_REPORTED = 23.68 / 24
CONTEXT_GIB = 0.5  # what CUDA's driver and its libraries take on a card, beside torch's allocator


@dataclass(frozen=True)
class Card:
    """A card, and what a process may take of it.

    Attributes:
        printed_gib: the number printed on it, 24 for a 24 GB card.
        budget_gib: ``memory_budget_gib`` of the config: caps torch's allocator, so that CUDA's
            own memory comes on top of it.
    """

    printed_gib: float = 24.0
    budget_gib: float | None = None

    def __post_init__(self) -> None:
        if self.printed_gib <= CONTEXT_GIB:
            raise ConfigError(
                found=f"--memory-gib {self.printed_gib:g}",
                expected=f"the GiB of a card, more than the {CONTEXT_GIB} that CUDA itself takes",
                fix="give the number printed on the card: --memory-gib 24",
            )

    @property
    def reported_gib(self) -> float:
        """What the driver says the card has."""
        return self.printed_gib * _REPORTED

    @property
    def usable_gib(self) -> float:
        """What torch's allocator may reserve."""
        free = self.reported_gib - CONTEXT_GIB
        return free if self.budget_gib is None else min(free, self.budget_gib)

    def text(self) -> str:
        """What is assumed, in a line."""
        line = (
            f"card of {self.printed_gib:g} GB: {self.reported_gib:.2f} GiB reported, "
            f"{CONTEXT_GIB} for CUDA itself, {self.reported_gib - CONTEXT_GIB:.2f} for torch"
        )
        if self.budget_gib is None:
            return line
        return f"{line}; memory_budget_gib={self.budget_gib:g}: {self.usable_gib:.2f} counted"

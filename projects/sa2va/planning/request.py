"""What is asked of a plan beside the config."""

from __future__ import annotations

from dataclasses import dataclass, field

from .card import Card


@dataclass(frozen=True)
class Request:
    """The cards and the frames that a config is planned for.

    Attributes:
        card: the card of each process.
        gpus: processes, each with a card of its own.
        strategy: ``none``, ``ddp``, ``fsdp2``, a name of configs/deepspeed with or without
            ``deepspeed_``, or a DeepSpeed JSON file; None takes the config's, and ``ddp`` where
            it has none and there are several cards.
        frame_size: side of the frames in px, at which masks are supervised and maps returned.
        phrases: phrases (objects) of a frame.
    """

    card: Card = field(default_factory=Card)
    gpus: int = 1
    strategy: str | None = None
    frame_size: int = 1024
    phrases: int = 1

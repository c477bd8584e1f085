"""Errors that a user can act on: what was found, what was expected, what to do about it."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


class UserError(Exception):
    """An error in what the user gave us (config, data, checkpoint, machine), not in our code.

    Args:
        found: what was found, with the file, key or sample it was found in.
        expected: what would have been right.
        fix: the command or the config key that mends it.
    """

    def __init__(self, found: str, expected: str = "", fix: str = "") -> None:
        self.found, self.expected, self.fix = found, expected, fix
        # torch hands on an error of a data worker as one text: then all three are in it already.
        whole = f"found: {found}\n  expected: {expected}\n  what to do: {fix}"
        super().__init__(whole if expected or fix else found)

    def __reduce__(self):
        # Exceptions pickle by their single message; data workers need all three parts back.
        return type(self), (self.found, self.expected, self.fix)


class ConfigError(UserError):
    """A config that cannot be run as it is written."""


class DataError(UserError):
    """Frames, masks, annotations or splits that cannot be used as they are."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or does not belong to this model."""


class SetupError(UserError):
    """A machine that lacks something: a package, a card, a folder we can write to."""


class MemoryFullError(UserError):
    """A model, batch or image size that does not fit on the card."""


class DivergedError(UserError):
    """A training whose numbers are no longer finite."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the known name nearest to ``name``, or ``""``."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


def listing(items: Iterable[object], limit: int = 10) -> str:
    """Joins ``items`` for a message, saying how many were left out past ``limit``."""
    items = [str(item) for item in items]
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def exit_on_user_error(main: Callable[..., _T]) -> Callable[..., _T]:
    """Makes a command line print a :class:`UserError` without a traceback and exit with 2."""

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> _T:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"{type(error).__name__}\n  {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None

    return wrapped

"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.logging import print_log

from .errors import UserError
from .files import make_writable

_NAME = ".lock"


@contextmanager
def locked(folder: str | Path, option: str, in_use: UserError) -> Iterator[int]:
    """Holds a folder against other processes, by a file that stays in it.

    Where the disk has no locks (some network disks), it says so and goes on without.

    Args:
        folder: made if absent.
        option: what names another one, for the message where it cannot be written to.
        in_use: raised where another process holds it.

    Yields:
        File descriptor of the lock; a process that inherits it holds the lock, too.

    Raises:
        SetupError: the folder cannot be written to.
    """
    with open(make_writable(folder, option) / _NAME, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise in_use from error
        except OSError as error:
            print_log(
                f"{folder} cannot be locked ({error.strerror}): start one run at a time in it",
                logger="current",
                level=logging.WARNING,
            )
        yield file.fileno()

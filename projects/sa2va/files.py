"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .errors import SetupError


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls ``write(binary file)`` on a temporary file beside ``path``, then renames it.

    Whatever ends it early, Ctrl-C among it, leaves an older file as it was and nothing else.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # only there if writing failed


def make_writable(folder: str | Path, option: str) -> Path:
    """Makes a folder and proves that a file can be written there, before any long work.

    Args:
        folder: made if absent.
        option: what names another one, for the message.

    Raises:
        SetupError: it cannot.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SetupError(
            found=f"{path} cannot be written to ({error.strerror})",
            expected="a folder that this user may write to, with space left",
            fix=f"give another folder: {option}",
        ) from error
    return path

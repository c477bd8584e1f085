"""Checkpoints of a work dir that go, or never came to be."""

from __future__ import annotations

import shutil
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.logging import print_log


def remove_half_written(work_dir: Path) -> None:
    """Removes what a killed run left half written."""
    for path in work_dir.glob(".*.pth.*tmp"):
        print_log(f"Removing {path}, a checkpoint that was never finished", logger="current")
        remove(path)


def remove(path: Path) -> None:
    """Removes a checkpoint, file or folder; one that is gone already is no error."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_on_first(path: Path) -> None:
    """As :func:`remove`, in the first process only."""
    if is_main_process():
        remove(path)

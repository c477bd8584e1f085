"""Folders whose content survives a kill and a power cut: synced, swapped, and found again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.logging import print_log

from projects.sa2va.checkpoints.store import sync_folder

_ASIDE = ".old.tmp"


def aside_of(target: Path) -> Path:
    """Where :func:`replace_folder` keeps the old ``target`` until the new one stands there."""
    return target.with_name(f".{target.name}{_ASIDE}")


def sync_tree(folder: Path) -> None:
    """Makes every file below ``folder``, and their names, durable."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            with open(Path(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def replace_folder(new: Path, target: Path) -> None:
    """Puts the folder ``new`` in the place of the folder ``target``.

    Folders cannot be renamed over one another. Between the two renames ``target`` is missing, but
    stands aside, from where :func:`put_back` takes it.
    """
    aside = aside_of(target)
    if target.exists():
        if aside.exists():
            shutil.rmtree(aside)  # older than what is there
        os.rename(target, aside)
    os.rename(new, target)
    sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def put_back(work_dir: Path) -> None:
    """Moves back what a run that was killed in :func:`replace_folder` left aside.

    Every process may call it: it runs before they can talk to one another, and only one succeeds.
    """
    for aside in work_dir.glob(f".*.pth{_ASIDE}"):
        target = aside.with_name(aside.name[1 : -len(_ASIDE)])
        if target.exists():
            continue
        try:
            os.rename(aside, target)
        except FileNotFoundError:
            continue  # another process was faster
        sync_folder(work_dir)
        print_log(f"Put {target} back, which a killed run was replacing", logger="current")


def remove_half_written(work_dir: Path) -> None:
    """Removes what a killed run left half written; :func:`put_back` comes first."""
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

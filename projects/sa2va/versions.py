"""Says at start which packages are missing or of another version than the one that was tested.

Imports nothing but the standard library, so that it can speak before a broken package does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from importlib import metadata

from .errors import SetupError, listing
from .pins import ALTERNATIVES, NO_DEPS, ON_DEMAND, PAGE, QUANTIZATION, REQUIRED, TENSORBOARD

OLDEST_PYTHON = (3, 11)


def installed_version(name: str) -> str | None:
    """Version of an installed distribution without its local part (``2.13.0+cpu`` is ``2.13.0``).

    A distribution that serves instead of ``name`` (``opencv-python-headless``) counts as ``name``.
    Returns None where none is installed.
    """
    for candidate in (name, *ALTERNATIVES.get(name, ())):
        try:
            return metadata.version(candidate).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return None


def pip_command(names: Collection[str]) -> str:
    """The pip call or calls that install the pinned versions of ``names``."""
    pip = f"{sys.executable} -m pip install"
    pins = {**REQUIRED, **QUANTIZATION, **TENSORBOARD, **PAGE}
    plain = [f"{name}=={pins[name]}" for name in names if name in pins]
    alone = [f"{name}=={NO_DEPS[name]}" for name in names if name in NO_DEPS]
    calls = [f"{pip} {' '.join(plain)}"] if plain else []
    calls += [f"{pip} --no-deps {' '.join(alone)}"] if alone else []
    return " && ".join(calls)


def check_versions(also: Collection[str] = ()) -> list[str]:
    """Compares what is installed with the pins.

    Args:
        also: packages of ``pins.ON_DEMAND`` (needed by some work only) that this work needs.

    Returns:
        One line where versions differ, empty where all agree. The first process of a launch also
        prints it to stderr; a difference is no error, since another version may well work.

    Raises:
        SetupError: Python is too old, or packages are missing; it lists all of them.
    """
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise SetupError(
            found=f"Python {sys.version.split()[0]} ({sys.executable})",
            expected=f"Python {oldest} or newer",
            fix=f"rm -rf .venv && make setup PYTHON=python{oldest}",
        )
    pins = {**REQUIRED, **QUANTIZATION, **PAGE, **NO_DEPS}
    found = {name: installed_version(name) for name in pins}
    missing = [
        name
        for name, version in found.items()
        if version is None and (name not in ON_DEMAND or name in also)
    ]
    if missing:
        raise SetupError(
            found=f"no {listing(missing, 30)} in {sys.prefix}",
            expected=listing([f"{name}=={pins[name]}" for name in missing], 30),
            fix=f"make setup, or: {pip_command(missing)}",
        )
    other = [name for name, version in found.items() if version not in (None, pins[name])]
    if not other:
        return []
    differences = listing([f"{name} {found[name]} (expected {pins[name]})" for name in other], 30)
    line = f"warning: found {differences}; to get the tested versions: {pip_command(other)}"
    if _is_first_process():
        print(line, file=sys.stderr, flush=True)
    return [line]


def _is_first_process() -> bool:
    """True outside a launcher and on rank 0, so that N processes do not say it N times."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return rank == "0"

"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real frames (``data/``) and golden numbers (``reference/``); not part of the project."""
    path = Path(os.environ.get("SA2VA_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set SA2VA_SHARED to the folder that holds it")
    return path

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


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny experiment, rendered once; copy it before changing anything."""
    from tests.broken_data import FRAMES
    from tests.tiny_experiment import write_experiment

    folder = tmp_path_factory.mktemp("rendered")
    write_experiment(folder, frames=FRAMES)
    return folder


@pytest.fixture
def experiment(rendered: Path, tmp_path: Path) -> Path:
    """Config of a tiny experiment of the test's own."""
    from tests.broken_data import copy_experiment

    return copy_experiment(rendered, tmp_path)

"""A trained tiny model and frames to predict."""

from __future__ import annotations

from pathlib import Path

import pytest

from projects.sa2va.inference import Sa2VAInferencer
from tests.broken_data import copy_experiment
from tests.engine.running import build


@pytest.fixture(scope="session")
def trained(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``experiment.py``, ``data`` and the work dir ``run`` of two iterations."""
    folder = tmp_path_factory.mktemp("trained")
    config = copy_experiment(
        rendered,
        folder,
        train_cfg=dict(max_iters=2, val_interval=2),
        test_evaluator=dict(threshold=0.5),
    )
    build(config, folder / "run").train()
    return folder


@pytest.fixture(scope="session")
def frames(trained: Path) -> list[Path]:
    """The test frames' files, 64 x 64."""
    return sorted((trained / "data" / "test" / "images").iterdir())


@pytest.fixture(scope="session")
def inferencer(trained: Path) -> Sa2VAInferencer:
    """Of the run's folder."""
    return Sa2VAInferencer(trained / "run", batch_size=2)

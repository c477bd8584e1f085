"""Runs the tools as a user does, on the smallest experiment.

Each way to start them is taken once from a shell: testing here, training by torchrun in
``test_stopping.py``, by itself in ``tests/tools``. All other runs are forked (tests/processes.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import run_forked
from tests.tiny_experiment import write_experiment

MAX_ITERS, HALF = 4, 2
# Frames of train, val and test. What goes on at HALF passes the end of an epoch of six frames; in
# two processes that is within a step. Five test frames do not divide by two processes.
FRAMES = (6, 4, 5)


def run_tool(*command: object) -> str:
    """Runs a command from the repository's root; returns its output, fails with it."""
    settings = {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def run_here(tool: str, *arguments: object, processes: int = 0) -> str:
    """Runs ``tools/<tool>.py`` as :func:`run_tool` does, but its start is no part of the test."""
    code, out, err = run_forked(tool, *arguments, processes=processes)
    assert code == 0, (out + err)[-6000:]
    return out + err


def train(config: Path, work_dir: Path, *arguments: object) -> str:
    """``tools/train.py`` in one process."""
    return run_here("train", config, "--work-dir", work_dir, *arguments)


def train_two(config: Path, work_dir: Path, *arguments: object) -> str:
    """``tools/train.py`` in two gloo processes."""
    return run_here(
        "train", config, "--work-dir", work_dir, "--launcher", "pytorch", *arguments, processes=2
    )


def test(config: Path, checkpoint: Path, out: Path, *arguments: object, processes: int = 0) -> dict:
    """``tools/test.py``; returns metrics.json."""
    launcher = ("--launcher", "pytorch") if processes else ()
    run_here(
        "test", config, "--checkpoint", checkpoint, "--work-dir", out.parent / "test_work",
        "--out", out, *launcher, *arguments, processes=processes,
    )  # fmt: skip
    return json.loads((out / "metrics.json").read_text())


test.__test__ = False


def scalars(work_dir: Path) -> list[dict]:
    """What training logged, newest run of the folder."""
    newest = sorted(work_dir.glob("*/vis_data/scalars.json"))[-1]
    return [json.loads(line) for line in newest.read_text().splitlines()]


def losses(work_dir: Path) -> dict[int, tuple[float, ...]]:
    """Iteration to (loss, mask, Dice, language), newest run of the folder."""
    keys = ("loss", "loss_mask", "loss_dice", "loss_language")
    return {
        row["iter"]: tuple(row[key] for key in keys) for row in scalars(work_dir) if "loss" in row
    }


def copy_as_interrupted(source: Path, target: Path, iteration: int) -> None:
    """A copy of a finished run as it was after ``iteration``."""
    shutil.copytree(source, target)
    for path in target.glob("iter_*.pth"):
        if path.name != f"iter_{iteration}.pth":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (target / "last_checkpoint").write_text(str(target / f"iter_{iteration}.pth"))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of an experiment with a validation and a checkpoint at half of it."""
    return write_experiment(
        tmp_path_factory.mktemp("experiment"),
        frames=FRAMES,
        train_cfg=dict(max_iters=MAX_ITERS, val_interval=HALF),
        default_hooks=dict(checkpoint=dict(interval=HALF)),
        model=dict(mllm=dict(lora=dict(lora_dropout=0.1)), mask_loss=dict(num_points=64)),
    )

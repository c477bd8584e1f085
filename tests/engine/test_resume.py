"""Going on is refused where it would not be the uninterrupted run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from projects.sa2va.checkpoints import DATA_SPLITS_FILE
from projects.sa2va.engine import resume as resuming
from projects.sa2va.engine.start import prepare_training
from projects.sa2va.errors import CheckpointError
from tests.broken_data import copy_experiment

from .conftest import resume, save

pytestmark = pytest.mark.usefixtures("no_model")


@pytest.fixture(scope="module")
def began(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``experiment.py``, ``data``, and ``run``, interrupted after two iterations."""
    parent = tmp_path_factory.mktemp("began")
    experiment, folder = copy_experiment(rendered, parent), parent / "run"
    began = prepare_training(str(experiment), work_dir=str(folder), seed=5)
    splits = json.loads((folder / DATA_SPLITS_FILE).read_text())
    path = save(folder / "iter_2.pth", seed=5, cfg=began.pretty_text, data_splits=splits)
    (folder / "last_checkpoint").write_text(str(path))
    return parent


@pytest.fixture
def run(began: Path, tmp_path: Path) -> Path:
    """Work dir of that run, the test's own."""
    return shutil.copytree(began / "run", tmp_path / "run")


def test_the_same_experiment_goes_on(experiment: Path, run: Path) -> None:
    cfg = resume(experiment, run)
    assert (cfg.resume, cfg.randomness.seed, cfg.train_dataloader.dataset.seed) == (True, 5, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"optim_wrapper.optimizer.lr": 1e-6},
        {"param_scheduler.1.end": 8},
        {"model.mllm.lora.lora_alpha": 8},
        {"model.mask_loss.dice_weight": 1.0},
        {"train_dataloader.dataset.phrase": "artery"},
        {"processor.image_size": 128},
    ],
)
def test_a_changed_config_is_refused(experiment: Path, run: Path, options: dict) -> None:
    with pytest.raises(CheckpointError) as caught:
        resume(experiment, run, cfg_options=options)
    key, value = next(iter(options.items()))
    assert f"{key.split('.', 1)[1]} = {value!r} (was " in caught.value.found
    assert "load_from=" in caught.value.fix


@pytest.mark.parametrize(
    ("processes", "batch_size", "fix"),
    [
        (1, 1, "set train_dataloader.batch_size=2"),
        (2, 2, "set train_dataloader.batch_size=1"),
        (3, 2, "start as many processes as before (1)"),
    ],
)
def test_other_frames_an_iteration_are_refused(
    experiment: Path, run: Path, monkeypatch, processes: int, batch_size: int, fix: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(CheckpointError, match="order of frames, schedule and iter") as caught:
        resume(experiment, run, cfg_options={"train_dataloader.batch_size": batch_size})
    assert "trained with 2 in each of 1" in caught.value.found
    assert caught.value.fix.startswith(fix)


def test_the_same_frames_in_more_processes_go_on(experiment: Path, run: Path, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(resuming, "print_log", lambda text, **_: said.append(text))
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = {"train_dataloader.batch_size": 1}
    assert resume(experiment, run, cfg_options=options).resume is True
    assert len(said) == 1
    assert "other processes (1 before, 2 now)" in said[0]


@pytest.mark.parametrize(
    "options",
    [
        {"train_cfg.max_iters": 8},
        {"train_cfg.val_interval": 4},
        {"train_dataloader.num_workers": 1},
        {"model.answer_mode": "generate"},
        {"model.answer_mode": "choice", "model.presence_threshold": 0.2},
        {"default_hooks.logger.interval": 7},
    ],
)
def test_what_does_not_change_the_losses_may_change(
    experiment: Path, run: Path, options: dict
) -> None:
    assert resume(experiment, run, cfg_options=options).resume is True


def test_another_seed_is_refused(experiment: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--seed 77 and --resume from a run with seed 5"):
        resume(experiment, run, seed=77)
    assert resume(experiment, run, seed=5).randomness.seed == 5


def test_other_frames_are_refused_and_the_stored_hashes_stay(
    experiment: Path, run: Path, tmp_path: Path
) -> None:
    before = (run / DATA_SPLITS_FILE).read_bytes()
    data = experiment.parent / "data" / "train"
    annotations = data / "annotations" / "train.json"
    content = json.loads(annotations.read_text())
    dropped = content["images"].pop()
    content["annotations"] = [
        a for a in content["annotations"] if a["image_id"] != dropped["id"]
    ]  # fmt: skip
    annotations.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="training frames or labels that differ"):
        resume(experiment, run)
    assert (run / DATA_SPLITS_FILE).read_bytes() == before


def test_an_empty_pointer_is_damage_not_the_current_folder(experiment: Path, run: Path) -> None:
    (run / "last_checkpoint").write_text("")
    with pytest.raises(CheckpointError, match="which is not there"):
        resume(experiment, run)


def test_moved_data_is_the_same_data(
    experiment: Path, run: Path, rendered: Path, tmp_path: Path
) -> None:
    moved = copy_experiment(rendered, tmp_path / "elsewhere")
    assert resume(moved, run).resume is True

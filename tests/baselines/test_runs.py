"""Whole small runs through the loops, hooks, checkpoints and evaluator of the joint model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, RUNNERS

from projects.sa2va.checkpoints import build_model_from_checkpoint, load_trained, read_checkpoint
from projects.sa2va.checkpoints.inspection import open_weights
from projects.sa2va.config import load_config
from projects.sa2va.engine.start import prepare_test
from projects.sa2va.errors import CheckpointError, ConfigError
from projects.sa2va.models import Sa2VAModel
from tests.conftest import ROOT
from tests.engine.running import build, checkpoint
from tests.models.conftest import settings as sa2va_settings

CONFIGS = sorted((ROOT / "projects/sa2va/configs/baselines").glob("*.py"))


@pytest.fixture
def run(unet_config: Path, tmp_path: Path) -> Path:
    """Work dir of a run of four iterations with two validations."""
    folder = tmp_path / "run"
    build(unet_config, folder).train()
    return folder


def equal(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def test_a_run_is_saved_loaded_resumed_and_tested(unet_config: Path, run: Path, tmp_path: Path):
    last = run / "iter_4.pth"
    whole = checkpoint(last)
    assert whole["meta"]["model"] == "SegmentationBaseline"
    assert all(name.startswith("network.") for name in whole["state_dict"])
    assert list(run.glob("best_vessel_dice_iter_*.pth"))

    # Resumed after the second iteration it is the uninterrupted run, to the last bit.
    second = tmp_path / "second"
    second.mkdir()
    shutil.copy(run / "iter_2.pth", second)
    (second / "last_checkpoint").write_text(str(second / "iter_2.pth"))
    build(unet_config, second, resume=True).train()
    again = checkpoint(second / "iter_4.pth")
    for key in ("state_dict", "optimizer", "param_schedulers"):
        assert equal(again[key], whole[key]), key

    weights = open_weights(last)
    assert set(weights.names) == whole["state_dict"].keys() and weights.trained
    assert weights.facts["model"] == "SegmentationBaseline"

    model, report = build_model_from_checkpoint(last)
    assert "nothing missing, nothing left over" in report.text()
    assert [row.loaded for row in report.rows][1:] == [len(whole["state_dict"])]
    assert equal(model.trained_state_dict(), whole["state_dict"])

    # Predictions are the same whatever the truth is.
    cfg = prepare_test(
        str(unet_config),
        checkpoint=str(last),
        work_dir=str(tmp_path / "test"),
        cfg_options={"test_evaluator.metric_set": "fast", "test_evaluator.pictures": None},
    )
    cfg.experiment_name = "unet_test"
    runner = RUNNERS.build(cfg)
    runner.load_or_resume()
    model = runner.model.eval()
    dataset = runner.test_loop.dataloader.dataset
    batch = runner.test_loop.dataloader.collate_fn([dataset[0], dataset[1]])
    before = model.test_step({"inputs": batch["inputs"]})
    dataset.masks = lambda index, *args: np.ones_like(type(dataset).masks(dataset, index))
    noise = runner.test_loop.dataloader.collate_fn([dataset[0], dataset[1]])
    assert not torch.equal(noise["truth"][0], batch["truth"][0])
    after = model.test_step({"inputs": noise["inputs"]})
    assert all(
        torch.equal(a.probabilities, b.probabilities) for a, b in zip(before, after, strict=True)
    )
    del dataset.masks
    assert 0 <= runner.test()["vessel/dice"] <= 1


def test_checkpoints_of_other_models_are_refused(
    unet_config: Path, run: Path, experiment: Path, tmp_path: Path
):
    path = run / "iter_4.pth"
    for wrong in (experiment, ROOT / "projects/sa2va/configs/sa2va_demo.py"):
        with pytest.raises(CheckpointError) as caught:
            prepare_test(str(wrong), checkpoint=str(path), work_dir=str(tmp_path / "w"))
        assert "a checkpoint of a SegmentationBaseline" in caught.value.found
        assert "model.type='Sa2VAModel'" in caught.value.found
    stored = read_checkpoint(path)
    with pytest.raises(CheckpointError, match="a checkpoint of a SegmentationBaseline"):
        load_trained(Sa2VAModel(**sa2va_settings()), stored, path)
    # A checkpoint of the joint model says so, or is older than the key.
    baseline = MODELS.build(load_config(unet_config).model)
    for meta in ({"model": "Sa2VAModel"}, {}):
        theirs = {
            **stored,
            "meta": {k: v for k, v in stored["meta"].items() if k != "model"} | meta,
        }
        with pytest.raises(CheckpointError, match="a checkpoint of a Sa2VAModel"):
            load_trained(baseline, theirs, path)
    # Another network of the same class.
    wider = load_config(unet_config, {"model.network.features": [8, 8, 16, 16, 24, 8]})
    with pytest.raises(CheckpointError) as caught:
        load_trained(MODELS.build(wider.model), stored, path)
    assert "other shape (network)" in caught.value.found and "mllm" not in caught.value.fix


def test_the_joint_model_needs_prompts():
    settings = sa2va_settings()
    settings["processor"] = {**settings["processor"], "image_only": True}
    with pytest.raises(ConfigError, match=r"set processor[.]image_only=False"):
        Sa2VAModel(**settings)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_agree(path: Path):
    cfg = load_config(path)
    loaders = [cfg[f"{s}_dataloader"] for s in ("train", "val", "test")]
    assert all(loader.dataset.processor.image_only for loader in loaders)
    if "frangi" in path.stem:
        assert cfg.get("train_cfg") is None
    else:
        assert cfg.param_scheduler[1].end == cfg.train_cfg.max_iters
        assert cfg.train_cfg.max_iters % cfg.train_cfg.val_interval == 0


def test_the_networks_of_the_shipped_configs_fit_their_images():
    for name in ("unet_arcade", "dynunet_arcade"):
        cfg = load_config(next(path for path in CONFIGS if path.stem == name))
        model = MODELS.build(cfg.model).eval()
        with torch.no_grad():
            assert model.network(torch.zeros(1, 1, 128, 128)).shape == (1, 1, 128, 128)

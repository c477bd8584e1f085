"""A pretraining of the image encoder, and a training that starts from a part of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from projects.sa2va.config import load_config
from projects.sa2va.engine.bare import bare_model
from projects.sa2va.engine.reconstruction import (
    ReconstructionMetric,
    ReconstructionPictures,
    panel,
)
from projects.sa2va.engine.start import prepare_test, prepare_training
from projects.sa2va.errors import CheckpointError, ConfigError, DataError
from projects.sa2va.inference.sources import find_model
from projects.sa2va.models import part_of
from projects.sa2va.models.masked_image import Reconstruction
from tests.broken_data import copy_experiment
from tests.tiny_experiment import write_experiment

from .running import build, checkpoint

ENCODER = "SAM2 image encoder"


@pytest.fixture(scope="module")
def config(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining of four iterations, beside the training that it is for."""
    folder = tmp_path_factory.mktemp("pretraining")
    target = copy_experiment(rendered, folder)
    grounding = load_config(target).model.grounding.to_dict()
    own = folder / "pretraining"
    own.mkdir()
    return write_experiment(
        own,
        frames=(4, 2, 2),
        data_root=str(folder / "data"),
        processor=dict(image_only=True),
        model=dict(
            _delete_=True,
            type="MaskedImageModel",
            grounding=grounding,
            patch_size=16,
            noise=0.1,
            channels=3,
        ),
        val_evaluator=dict(_delete_=True, type="ReconstructionMetric"),
        default_hooks=dict(checkpoint=dict(save_best="reconstruction/l1", rule="less")),
        custom_hooks=[dict(type="ReconstructionPictures", frames=1), dict(type="WeightEMAHook")],
    )


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    """Work dir of the pretraining."""
    build(config, config.parent / "run").train()
    return config.parent / "run"


@pytest.fixture
def target(config: Path) -> Path:
    return config.parent.parent / "experiment.py"


def start(target: Path, folder: Path, source: Path, parts=(ENCODER,), **options):
    more = {"init_from": {"checkpoint": str(source), "parts": list(parts)}}
    return build(target, folder, **more, **options)


# ------------------------------------------------------------------------------ the pretraining


def test_it_validates_and_draws_a_picture(run: Path) -> None:
    (log,) = run.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    scores = [row["reconstruction/l1"] for row in rows if "reconstruction/l1" in row]
    assert len(scores) == 2 and all(score > 0 for score in scores)
    pictures = sorted(run.glob("*/reconstructions/*.png"))
    assert [path.name for path in pictures] == ["iter_2.png", "iter_4.png"]
    assert np.asarray(Image.open(pictures[0])).shape == (64, 4 * 64 + 3 * 4, 3)
    assert len(list(run.glob("best_reconstruction_l1_*.pth"))) == 1


def test_a_resumed_one_hides_the_same_patches(config: Path, run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "iter_2.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    build(config, tmp_path, resume=True).train()
    first, second = (checkpoint(folder / "iter_4.pth") for folder in (run, tmp_path))
    for key in ("state_dict", "averaged"):
        for name, tensor in first[key].items():
            assert torch.equal(tensor, second[key][name]), (key, name)


def test_it_is_not_tested_and_does_not_predict(config: Path, run: Path, tmp_path: Path) -> None:
    path = str(run / "iter_4.pth")
    with pytest.raises(ConfigError, match="it predicts no masks") as caught:
        prepare_test(str(config), checkpoint=path, work_dir=str(tmp_path))
    assert "init_from" in caught.value.fix
    for source in (config, path):
        with pytest.raises(ConfigError, match="it predicts no masks"):
            find_model(source, path)


def test_the_metric_is_the_mean_over_frames() -> None:
    image, hidden = torch.zeros(1, 4, 4), torch.zeros(4, 4, dtype=torch.bool)
    hidden[0] = True
    drawn = [torch.full((1, 4, 4), value) for value in (1.0, 4.0)]
    drawn[0][:, 1:] = 100.0  # what is seen does not count
    metric = ReconstructionMetric()
    metric.process(None, [Reconstruction(image, image, d, hidden) for d in drawn])
    assert metric.evaluate(2) == {"reconstruction/l1": 2.5}


def test_a_panel_shows_frame_input_result_and_drawing() -> None:
    image = torch.linspace(0, 1, 64).reshape(1, 8, 8)
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[:4] = True
    own = Reconstruction(image, torch.where(hidden, 0.0, image), torch.ones(1, 8, 8), hidden)
    picture = panel([own, own])
    assert picture.shape == (8 + 4 + 8, 4 * 8 + 3 * 4, 3) and picture.dtype == np.uint8
    cells = [picture[:8, at : at + 8, 0] for at in (0, 12, 24, 36)]
    assert (cells[1][:4] == 0).all() and (cells[1][4:] == cells[0][4:]).all()
    assert (cells[2][:4] == 255).all() and (cells[2][4:] == cells[0][4:]).all()
    assert (cells[3] == 255).all() and (picture[:8, 8:12] == 255).all()
    with pytest.raises(ConfigError, match="frames=0"):
        ReconstructionPictures(0)


# ------------------------------------------------------------------------- what starts from it


def test_a_training_starts_from_its_encoder(run: Path, target: Path, tmp_path: Path) -> None:
    source = run / "iter_4.pth"
    runner = start(target, tmp_path, source, train_cfg__max_iters=2)
    stored = checkpoint(source)
    weights = {n: p for n, p in bare_model(runner.model).named_parameters() if p.requires_grad}
    encoder = [name for name in weights if part_of(name) == ENCODER]
    assert encoder and all(torch.equal(weights[n], stored["averaged"][n]) for n in encoder)
    runner.train()
    (log,) = tmp_path.glob("*/*.log")
    assert f"{ENCODER} <- {source} (MaskedImageModel, iteration 4" in log.read_text()
    kept = checkpoint(tmp_path / "iter_2.pth")["meta"]["init_from"]
    assert kept["parts"] == [ENCODER] and kept["model"] == "MaskedImageModel"
    assert kept["weights"] == "averaged" and kept["checkpoint"] == "iter_4.pth"

    # Going on, the file is not needed any more, and is not read.
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copy(tmp_path / "iter_2.pth", resumed)
    (resumed / "last_checkpoint").write_text(str(resumed / "iter_2.pth"))
    start(target, resumed, tmp_path / "gone.pth", resume=True).train()
    assert checkpoint(resumed / "iter_4.pth")["meta"]["init_from"] == kept
    with pytest.raises(CheckpointError, match=r"init_from\.parts = 'all' \(was \("):
        prepare_training(
            str(target),
            work_dir=str(resumed),
            resume="auto",
            cfg_options={"init_from.checkpoint": str(source), "init_from.parts": "all"},
        )

    # What it was trained on counts as seen.
    record = checkpoint(tmp_path / "iter_2.pth")["meta"]["training_record"]
    assert len(record["pixels"]) == 16 * 4


def test_two_starts_are_one_too_many(run: Path, target: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"load_from=.* together with init_from"):
        start(target, tmp_path, run / "iter_4.pth", load_from=str(run / "iter_2.pth"))


def test_frames_of_the_pretraining_are_not_evaluated(
    config: Path, run: Path, target: Path, tmp_path: Path
) -> None:
    options = {
        f"{split}_dataloader.dataset.{key}": load_config(target)[f"{other}_dataloader"].dataset[key]
        for split, other in (("train", "val"), ("val", "train"))
        for key in ("ann_file", "image_dir")
    }
    with pytest.raises(DataError, match="frames that it was trained on") as caught:
        start(
            target,
            tmp_path,
            run / "iter_4.pth",
            **{key.replace(".", "__"): value for key, value in options.items()},
        )
    assert str(run / "iter_4.pth") in str(caught.value)


def test_a_test_does_not_read_it(target: Path, tmp_path: Path) -> None:
    options = {"init_from.checkpoint": "gone.pth", "init_from.parts": [ENCODER]}
    cfg = prepare_test(str(target), checkpoint=None, work_dir=str(tmp_path), cfg_options=options)
    assert cfg.init_from is None

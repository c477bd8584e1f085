"""What a user sees who gave something wrong: three parts, exit code 2, nothing touched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from projects.sa2va.checkpoints import provenance, write_atomically
from projects.sa2va.config import load_config
from tests.broken_data import WAYS, copy_experiment, images, same_patient

from .conftest import run_forked, run_process


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A work dir with the results of an earlier run."""
    run = tmp_path / "run"
    (run / "20260101_000000").mkdir(parents=True)
    (run / "20260101_000000" / "metrics.json").write_text('{"dice": 0.9}')
    (run / "iter_4.pth").write_bytes(b"weights")
    (run / "last_checkpoint").write_text(str(run / "iter_4.pth"))
    (run / "data_splits.json").write_text('{"train": "of the earlier run"}')
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """All files below ``folder``."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------ processes of their own


def test_misspelt_key(experiment, run_dir, tmp_path):
    before = contents(run_dir)
    experiment.write_text(experiment.read_text() + "train_cfg = dict(max_itres=5)\n")
    message = run_process("train", experiment, "--work-dir", run_dir, cwd=tmp_path).refused(
        "ConfigError"
    )
    assert "unknown key 'train_cfg.max_itres' (did you mean 'max_iters'?)" in message
    assert message.strip().startswith("ConfigError\n")  # nothing else before it
    assert contents(run_dir) == before


def test_patient_in_two_splits(experiment, run_dir, tmp_path):
    before = contents(run_dir)
    same_patient(tmp_path)
    message = run_forked("train", experiment, "--work-dir", run_dir, cwd=tmp_path).refused(
        "DataError"
    )
    assert "patients in two splits" in message
    assert contents(run_dir) == before


def test_checkpoint_of_another_architecture(experiment, run_dir, tmp_path):
    from mmengine.registry import MODELS

    cfg = load_config(experiment, {"model.mllm.lora.r": 3})
    model = MODELS.build(cfg.model)
    meta = {**provenance(model, tmp_path), "cfg": cfg.pretty_text, "iter": 2}
    path = tmp_path / "iter_2.pth"
    write_atomically({"state_dict": model.trained_state_dict(), "meta": meta}, path)
    before = contents(run_dir)
    message = run_forked(
        "test", experiment, "--checkpoint", path, "--work-dir", run_dir, cwd=tmp_path
    ).refused("CheckpointError")
    assert f"{path} does not fit this model" in message
    assert "other shape (LoRA)" in message
    after = contents(run_dir)
    assert {name: after.get(name) for name in before} == before
    new = {Path(name).suffix for name in after.keys() - before.keys()}
    assert new <= {".log", ".py"}  # of the runner, in a folder of this run's own


def test_neither_checkpoint_nor_folder_to_write_to(experiment, tmp_path):
    (tmp_path / "taken").write_text("mine")
    message = run_forked(
        "test", experiment, "--checkpoint", "x.pth", "--work-dir", "taken", cwd=tmp_path
    ).refused("SetupError")
    assert "taken cannot be written" in message
    assert (tmp_path / "taken").read_text() == "mine"


# -------------------------------------------------------------------------------- in this process


@pytest.mark.parametrize("tool", ["train", "test"])
def test_unknown_key_and_option(run_here, experiment, run_dir, tool):
    before = contents(run_dir)
    more = ["--checkpoint", "none"] if tool == "test" else []
    option = ["--cfg-options", "model.mllm.lora.alpha=3"]
    ended = run_here(tool, experiment, "--work-dir", run_dir, *more, *option)
    assert "did you mean 'lora_alpha'" in ended.refused("ConfigError")

    experiment.write_text(experiment.read_text() + "modl = dict(seed=1)\n")
    ended = run_here(tool, experiment, "--work-dir", run_dir, *more)
    assert "unknown key 'modl' (did you mean 'model'?)" in ended.refused("ConfigError")
    assert contents(run_dir) == before


@pytest.mark.parametrize("tool", ["train", "test"])
def test_missing_config(run_here, experiment, tmp_path, tool):
    more = ["--checkpoint", "none"] if tool == "test" else []
    message = run_here(tool, tmp_path / "experimnt.py", *more).refused("ConfigError")
    assert f"did you mean '{experiment}'" in message


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("iter_5.pth", None, "no checkpoint at"),
        ("text.pth", b"not a checkpoint", "is not a checkpoint that can be read safely"),
        ("plain.pth", {"layer.weight": torch.zeros(2)}, "it holds layer.weight"),
        ("foreign.pth", {"state_dict": {}, "meta": {"epoch": 1}}, "another program or version"),
    ],
)
@pytest.mark.parametrize(
    ("tool", "option"), [("test", "--checkpoint"), ("train", "--resume"), ("train", "load_from")]
)
def test_checkpoint_that_is_none(
    run_here, experiment, run_dir, tmp_path, tool, option, name, content, found
):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    before = contents(run_dir)
    given = ["--cfg-options", f"load_from={path}"] if option == "load_from" else [option, path]
    ended = run_here(tool, experiment, "--work-dir", run_dir, *given)
    message = ended.refused("CheckpointError")
    assert found in message
    assert str(path) in message
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    ("tool", "option"),
    [("train", "--work-dir"), ("test", "--work-dir"), ("test", "--out"), ("test", "--show-dir")],
)
def test_folder_that_cannot_be_written(run_here, experiment, tmp_path, monkeypatch, tool, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    more = ["--checkpoint", "none"] if tool == "test" else []
    ended = run_here(tool, experiment, *more, option, tmp_path / "taken" / "run")
    assert "cannot be written" in ended.refused("SetupError")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_broken_data(run_here, experiment, run_dir, tmp_path, way):
    seen_by_test_alone, texts = WAYS[way]
    before = contents(run_dir)
    way(tmp_path)
    message = run_here("train", experiment, "--work-dir", run_dir).refused("DataError")
    assert all(text in message for text in texts), message
    if seen_by_test_alone:
        ended = run_here("test", experiment, "--checkpoint", "none", "--work-dir", run_dir)
        ended.refused("DataError")
    assert contents(run_dir) == before


def _folder_dataset(folder: Path) -> dict:
    return dict(
        dataset=dict(
            _delete_=True,
            type="FolderVesselDataset",
            data_root=str(folder),
            image_dir="images",
            mask_dir="masks",
            patient=dict(type="regex", pattern=r"^(F\d+)"),
        )
    )


def test_mask_of_another_size_than_its_image(run_here, rendered, run_dir, tmp_path):
    noise = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for index in range(3):
        image = noise.integers(0, 255, (64, 64), np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"F{index}.png")
        mask = np.zeros((64, 64 if index < 2 else 48), np.uint8)
        mask[10:20] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"F{index}.png")
    experiment = copy_experiment(rendered, tmp_path, train_dataloader=_folder_dataset(tmp_path))
    before = contents(run_dir)
    message = run_here("train", experiment, "--work-dir", run_dir).refused("DataError")
    assert f"{tmp_path / 'masks' / 'F2.png'} is 48 x 64 px, its image is 64 x 64 px" in message
    assert "F1.png" not in message
    assert contents(run_dir) == before


def test_empty_phrase(run_here, rendered, run_dir, tmp_path):
    dataset = dict(
        _delete_=True, type="Sa2VAJsonDataset", ann_file="own.json", image_dir="train/images"
    )
    experiment = copy_experiment(rendered, tmp_path, train_dataloader=dict(dataset=dataset))
    region = [[[5, 5, 20, 5, 20, 20]]]
    entries = [
        {"image": path.name, "mask": region, "text": ["blood vessel" if index else " "]}
        for index, path in enumerate(images(tmp_path, "train"))
    ]
    (tmp_path / "data" / "own.json").write_text(json.dumps(entries))
    before = contents(run_dir)
    message = run_here("train", experiment, "--work-dir", run_dir).refused("DataError")
    assert "empty phrase ' '" in message
    assert entries[0]["image"] in message
    (tmp_path / "data" / "own.json").write_text("[]")
    message = run_here("train", experiment, "--work-dir", run_dir).refused("DataError")
    assert "zero frames" in message
    assert contents(run_dir) == before


@pytest.mark.parametrize("phrase", ["", "  "])
def test_empty_phrase_of_a_config(run_here, rendered, run_dir, tmp_path, phrase):
    experiment = copy_experiment(
        rendered, tmp_path, train_dataloader=dict(dataset=dict(phrase=phrase))
    )
    ended = run_here("train", experiment, "--work-dir", run_dir)
    assert ended.code == 2
    assert "phrase" in ended.err
    assert "\n  what to do: " in ended.err


def test_sound_experiment_goes_on(run_here, experiment, tmp_path):
    # Without this, everything above would pass if nothing at all could be started.
    for tool, more in (("train", []), ("test", ["--checkpoint", "none"])):
        with pytest.raises(pytest.fail.Exception, match="went on to its long work"):
            run_here(tool, experiment, "--work-dir", tmp_path / "run", *more)

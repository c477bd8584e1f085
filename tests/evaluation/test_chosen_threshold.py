"""Threshold files: what is written is read, and only used for what it was made for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from projects.sa2va.errors import CheckpointError, ConfigError
from projects.sa2va.evaluation.chosen_threshold import (
    model_digest,
    model_sha256,
    read_threshold,
    threshold_file_of,
    write_threshold,
)
from projects.sa2va.evaluation.threshold_choice import Target, curve
from projects.sa2va.evaluation.threshold_sweep import Candidate

SHA = "a" * 64


def written(path: Path, **about):
    candidates = [Candidate(0.3), Candidate(0.6, 0.2, 20)]
    parts = np.zeros((4, 2, 7), np.int64)
    parts[:, :, 1:3], parts[:, 0, 0], parts[:, 1, 0] = 100, 50, 80
    rows = [(f"f{k}", f"P{k}") for k in range(4)]
    target = Target("fbeta", 2.0)
    found = curve(candidates, parts, rows, target, resamples=20)
    content = {
        "split": "1" * 64,
        "split_name": "val",
        "checkpoint": {"file": "best.pth", "sha256": SHA},
        "model": "m" * 16,
        "frames": {},
        **about,
    }
    return write_threshold(path, found, target, about=content)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "best.threshold.json"
    chosen = written(path)
    again = read_threshold(path)
    assert dict(again.content) == dict(chosen.content)
    assert (again.threshold, again.postprocess) == (0.6, {"low": 0.2, "min_area": 20})
    assert again.content["value"] == pytest.approx(0.8) and again.content["beta"] == 2
    assert again.content["gain_of_postprocessing"]["value"] == pytest.approx(0.3)
    source = again.source()
    assert (source["kind"], source["file"], source["split"]) == ("tuned", path.name, "1" * 64)
    assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("best_vessel_dice_iter_4.pth", "best_vessel_dice_iter_4.threshold.json"),
        ("v1.2", "v1.2.threshold.json"),
        ("model.safetensors", "model.threshold.json"),
    ],
)
def test_the_file_lies_beside_the_checkpoint(name, expected):
    assert threshold_file_of(Path("runs") / name) == Path("runs") / expected


def test_other_weights_are_refused(tmp_path):
    chosen = written(tmp_path / "x.json")
    assert chosen.check_weights(SHA, "m" * 16, "best.pth") == []
    assert "other settings of `model`" in chosen.check_weights(SHA, "n" * 16, "best.pth")[0]
    for sha256 in ("b" * 64, None):
        with pytest.raises(CheckpointError, match=r"was chosen for best\.pth"):
            chosen.check_weights(sha256, "m" * 16, "best.pth")
    without = written(tmp_path / "y.json", checkpoint=None)
    assert without.check_weights(None, "m" * 16, "") == []
    for sha256, model in ((None, "n" * 16), (SHA, "m" * 16)):
        with pytest.raises(CheckpointError, match="a model without checkpoint"):
            without.check_weights(sha256, model, "best.pth")


def test_the_other_weights_of_the_checkpoint_are_refused(tmp_path):
    own = {"file": "best.pth", "sha256": SHA, "weights": "averaged"}
    averaged, older = written(tmp_path / "x.json", checkpoint=own), written(tmp_path / "y.json")
    assert averaged.check_weights(SHA, "m" * 16, "best.pth", "averaged") == []
    assert older.check_weights(SHA, "m" * 16, "best.pth", "raw") == []
    for chosen, asked in ((averaged, "raw"), (older, "averaged")):
        with pytest.raises(CheckpointError, match=f"and the {asked} ones are used"):
            chosen.check_weights(SHA, "m" * 16, "best.pth", asked)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("checkpoint"), "lacks checkpoint"),
        (lambda content: content.update(format="other"), "is no threshold file"),
        (lambda content: content.update(postprocess={"low": 0.9, "min_area": 0}), r"low=0\.9"),
        (lambda content: content.update(threshold_rule=">"), "lacks"),
    ],
)
def test_broken_files_are_refused(tmp_path, edit, message):
    path = tmp_path / "x.json"
    content = dict(written(path).content)
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_threshold(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_threshold(path)


def test_the_digest_tells_models_apart():
    assert model_digest({"a": 1, "b": {"c": 2}}) == model_digest({"b": {"c": 2}, "a": 1})
    assert model_digest({"a": 1}) != model_digest({"a": 2})
    assert model_sha256({"b": 1, "a": 2}) == hashlib.sha256(b'{"a": 2, "b": 1}').hexdigest()
    assert model_sha256({"a": 1}).startswith(model_digest({"a": 1}))

"""What a user may name: a config, a run's folder, a checkpoint, a whole Sa2VA."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from projects.sa2va.checkpoints.export import export_native, export_sa2va
from projects.sa2va.errors import CheckpointError, ConfigError, SetupError
from projects.sa2va.inference import Sa2VAInferencer
from projects.sa2va.inference.build import build_model
from projects.sa2va.inference.sources import best_checkpoint, find_model
from projects.sa2va.placement import Placement, Precision


@pytest.fixture(scope="module")
def best(trained):
    return best_checkpoint(trained / "run")


def test_run_folder_is_its_best_checkpoint(trained, best):
    assert best.name.startswith("best_")
    source = find_model(trained / "run")
    assert source.path == str(best)
    assert source.checkpoint["meta"]["iter"] == 2
    assert source.cfg.model.to_dict() == find_model(best).cfg.model.to_dict()


def test_newest_of_a_run_without_best(trained, tmp_path):
    shutil.copy(trained / "run" / "iter_2.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("/moved/from/elsewhere/iter_2.pth")
    assert find_model(tmp_path).path == str(tmp_path / "iter_2.pth")


@pytest.mark.parametrize(("asked", "expected"), [(None, "averaged"), ("raw", "raw")])
def test_the_config_says_which_weights_predict(trained, best, asked, expected):
    source = find_model(trained / "experiment.py", best, {"test_cfg.weights": asked})
    averaged = {**source.checkpoint, "averaged": {}}  # would not load, were it taken
    source = replace(source, checkpoint=averaged)
    source.cfg.test_cfg.setdefault("merge_lora", False)
    assert source.weights() == expected
    one = Placement("cpu", devices=("cpu",))
    if expected == "raw":
        assert build_model(source, one, Precision())[1].weights == "raw"
    else:
        with pytest.raises(CheckpointError):
            build_model(source, one, Precision())


def test_config_with_its_checkpoint(trained, best):
    source = find_model(trained / "experiment.py", best, {"test_dataloader.batch_size": 3})
    assert source.cfg.test_dataloader.batch_size == 3
    assert source.path == str(best)


def test_override_of_a_stored_config_reaches_every_copy(best):
    cfg = find_model(best, cfg_options={"processor.question": "Show the {phrase}!"}).cfg
    assert cfg.model.processor.question == "Show the {phrase}!"


@pytest.mark.parametrize("stored", [True, False], ids=["its own config", "a config file"])
def test_lora_of_another_scale_predicts_nothing(trained, best, stored):
    model = (best,) if stored else (trained / "experiment.py", best)
    with pytest.raises(CheckpointError, match="lora_alpha=4, the config has lora_alpha=8"):
        Sa2VAInferencer(*model, cfg_options={"model.mllm.lora.lora_alpha": 8})


def test_config_alone_is_untrained(trained):
    with pytest.raises(CheckpointError) as error:
        find_model(trained / "experiment.py")
    assert "random weights" in error.value.found and "--checkpoint" in error.value.fix
    assert find_model(trained / "experiment.py", "none").checkpoint is None


def test_frangi_needs_no_checkpoint():
    source = find_model("projects/sa2va/configs/baselines/frangi_synthetic.py")
    assert source.checkpoint is None


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("nowhere", SetupError, "no file or folder"),
        ("nowhere.pth", CheckpointError, "no checkpoint at"),
        ("", CheckpointError, "no best_.*and no last_checkpoint"),
    ],
)
def test_nothing_there(tmp_path, name, error, said):
    with pytest.raises(error, match=said):
        find_model(tmp_path / name)


def test_two_checkpoints(best, trained):
    with pytest.raises(ConfigError, match="two checkpoints"):
        find_model(best, trained / "run" / "iter_2.pth")


def test_checkpoint_of_another_program(trained, tmp_path):
    import torch

    state = {"text_hidden_fcs.0.0.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "iter_12192.pth")
    with pytest.raises(CheckpointError):
        find_model(tmp_path / "iter_12192.pth")


@pytest.mark.parametrize("export", [export_sa2va, export_native])
def test_exported_folder_predicts_as_its_checkpoint(trained, frames, tmp_path, export):
    """Merged into the weights, and read with nothing but the folder."""
    merged = Sa2VAInferencer(trained / "run", merge_lora=True)
    expected = [merged(frame)[0].probability for frame in frames]
    model = Sa2VAInferencer(trained / "run")._pipeline.model
    export(model, tmp_path / "whole", {}, None, "merge")
    # It is built in bfloat16, as released ones are, where its config does not say otherwise.
    options = {
        "model.mllm.dtype": "float32",
        "model.grounding.dtype": "float32",
        "model.autocast": None,
    }
    whole = Sa2VAInferencer(tmp_path / "whole", cfg_options=options)
    assert whole.processor.image_size == merged.processor.image_size
    assert whole.processor.tokens_per_tile == merged.processor.tokens_per_tile
    for frame, one in zip(frames, expected, strict=True):
        np.testing.assert_allclose(whole(frame)[0].probability, one, atol=2e-6)


def test_folder_of_base_weights_is_no_sa2va(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        find_model(tmp_path)


def test_home_is_expanded(trained, monkeypatch):
    monkeypatch.setenv("HOME", str(trained))
    assert find_model("~/run").path.startswith(str(trained))
    assert os.path.isfile(find_model("~/experiment.py", "~/run/iter_2.pth").path)


def test_u_net_predicts_too(tmp_path):
    config = "projects/sa2va/configs/baselines/unet_synthetic.py"
    unet = Sa2VAInferencer(config, "none", cfg_options={"processor.image_size": 64})
    image = Image.fromarray(np.zeros((20, 30), np.uint8))
    (result,) = unet(image, "blood vessel")
    assert result.probability.shape == (20, 30) and result.answers == [""]

"""Frangi's filter, against scikit-image called directly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import RUNNERS
from skimage.filters import frangi

from projects.sa2va.baselines import FrangiVesselness
from projects.sa2va.engine.start import prepare_test, prepare_training
from projects.sa2va.errors import ConfigError

from .conftest import PHRASE, PROCESSOR, frames, inputs_of, write_config


def build(**changes) -> FrangiVesselness:
    return FrangiVesselness(**{"processor": PROCESSOR, "sigmas": [1, 2], **changes})


def test_it_is_the_filter_of_scikit_image():
    images, _ = frames(1)
    model = build(percentile=98.0)
    found = model(inputs_of(images, [[PHRASE, "catheter"]]), mode="predict")[0]
    # The image has the size of the input, so that nothing is resized.
    response = frangi(images[0][..., 0] / 255.0, sigmas=(1, 2), black_ridges=True)
    expected = np.minimum(response / np.percentile(response, 98.0), 1.0)
    assert found.probabilities.shape == (2, 64, 64)
    assert np.allclose(found.probabilities[0], expected, atol=1e-3)
    assert torch.equal(*found.probabilities)


def test_it_finds_vessels_and_not_their_negative():
    images, truth = frames(1, 128)
    maps = model_maps(build(), images[0])
    mask = truth[0][0].bool()
    assert maps[mask].mean() > 3 * maps[~mask].mean()
    negative = model_maps(build(), 255 - images[0])
    assert negative[mask].mean() < maps[mask].mean() / 2


def model_maps(model: FrangiVesselness, image: np.ndarray) -> torch.Tensor:
    return model(inputs_of([image], [[PHRASE]]), mode="predict")[0].probabilities[0]


def test_images_without_structure_and_with_little():
    assert model_maps(build(), np.full((64, 64, 3), 90, np.uint8)).max() == 0
    dot = np.full((64, 64, 3), 200, np.uint8)
    dot[30:34, 10:20] = 60
    maps = model_maps(build(percentile=50), dot)
    assert maps.max() == 1 and maps.min() >= 0 and torch.isfinite(maps).all()


@pytest.mark.parametrize(
    "wrong", [{"sigmas": []}, {"sigmas": [0]}, {"sigmas": 3}, {"percentile": 0}]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=f"model.{next(iter(wrong))}"):
        build(**wrong)


def test_there_is_nothing_to_train_and_testing_works(rendered: Path, tmp_path: Path):
    config = write_config(
        tmp_path,
        "frangi_synthetic",
        rendered / "data",
        processor=dict(image_size=64),
        test_dataloader=dict(num_workers=0),
        test_evaluator=dict(metric_set="fast", bootstrap=0, pictures=None),
    )
    with pytest.raises(ConfigError) as caught:
        prepare_training(str(config), work_dir=str(tmp_path / "run"))
    assert "nothing to train" in caught.value.found and "tools/test.py" in caught.value.fix
    out = tmp_path / "out"
    cfg = prepare_test(str(config), checkpoint=None, work_dir=str(tmp_path / "w"), out=str(out))
    cfg.experiment_name = "frangi"
    metrics = RUNNERS.build(cfg).test()
    # At 0.5 of the top percentile it finds some vessel on easy frames.
    assert metrics["vessel/dice"] > 0.1
    report = json.loads((out / "metrics.json").read_text())
    assert (report["answer_mode"], report["checkpoint"]) == ("none", None)

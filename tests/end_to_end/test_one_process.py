"""Training, resuming and testing in one process."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from .conftest import (
    FRAMES,
    HALF,
    MAX_ITERS,
    copy_as_interrupted,
    losses,
    run_tool,
    scalars,
    test,
    train,
)


@pytest.fixture(scope="module")
def trained(experiment: Path) -> Path:
    """Work dir of the uninterrupted run."""
    work_dir = experiment.parent / "run"
    train(experiment, work_dir)
    return work_dir


@pytest.fixture(scope="module")
def results(experiment: Path, trained: Path) -> Path:
    """Results of testing its last checkpoint."""
    out = experiment.parent / "results"
    run_tool(
        sys.executable, "tools/test.py", experiment, "--work-dir", experiment.parent / "test_work",
        "--checkpoint", trained / f"iter_{MAX_ITERS}.pth", "--out", out,
    )  # fmt: skip
    return out


def test_training_writes_checkpoints_and_validates(trained: Path) -> None:
    assert (trained / "last_checkpoint").read_text().endswith(f"iter_{MAX_ITERS}.pth")
    assert {p.name for p in trained.glob("iter_*.pth")} == {
        f"iter_{HALF}.pth",
        f"iter_{MAX_ITERS}.pth",
    }
    assert len(list(trained.glob("best_vessel_dice_*.pth"))) == 1
    validations = [row for row in scalars(trained) if "vessel/dice" in row]
    assert len(validations) == 2
    splits = json.loads((trained / "data_splits.json").read_text())
    assert [splits[name]["frames"] for name in ("train", "val", "test")] == list(FRAMES)


def test_resumed_run_is_the_uninterrupted_one(experiment: Path, trained: Path) -> None:
    resumed = experiment.parent / "resumed"
    copy_as_interrupted(trained, resumed, HALF)
    output = train(experiment, resumed, "--resume")
    assert f"Resuming after iteration {HALF}" in output
    expected = {step: row for step, row in losses(trained).items() if step > HALF}
    assert losses(resumed) == expected
    first, second = (
        torch.load(folder / f"iter_{MAX_ITERS}.pth", weights_only=True)
        for folder in (trained, resumed)
    )
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    for index, state in first["optimizer"]["state"].items():
        assert torch.equal(state["exp_avg_sq"], second["optimizer"]["state"][index]["exp_avg_sq"])
    assert first["param_schedulers"] == second["param_schedulers"]


def test_results_are_complete(results: Path, trained: Path) -> None:
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["counts"]["frames"] == FRAMES[2]
    assert metrics["checkpoint"]["sha256"]
    assert metrics["checkpoint"]["iteration"] == MAX_ITERS
    assert metrics["answer_mode"] == "forced"
    splits = json.loads((trained / "data_splits.json").read_text())
    assert metrics["split"] == splits["test"]["hash"]
    assert metrics["threshold"] == 0.5
    rows = list(csv.DictReader((results / "per_frame.csv").open()))
    assert [row["frame"] for row in rows] == [row["frame"] for row in metrics["per_frame"]]
    masks = json.loads((results / "masks.json").read_text())
    assert len(masks) == FRAMES[2]
    for entry in masks:
        saved = np.asarray(Image.open(results / "masks" / f"{entry['image_id']}.png")) > 0
        assert np.array_equal(coco_mask.decode(entry["segmentation"]).astype(bool), saved)
        probability = np.asarray(Image.open(results / "probabilities" / f"{entry['image_id']}.png"))
        # 8 bits cannot tell the two sides of the threshold apart at 127 and 128.
        sure = np.abs(probability.astype(int) - 127.5) > 1
        assert np.array_equal((probability > 127)[sure], saved[sure])
    assert (results / "pictures" / "overview.png").is_file()
    assert not [row for row in metrics["per_frame"] if row["frame"].startswith("P0")]


def test_predictions_do_not_depend_on_the_truth(
    experiment: Path, trained: Path, results: Path
) -> None:
    annotations = experiment.parent / "data" / "test" / "annotations" / "test.json"
    original = annotations.read_text()
    content = json.loads(original)
    noise = np.random.default_rng(0)
    for annotation in content["annotations"]:
        height, width = annotation["segmentation"]["size"]
        mask = np.asfortranarray(noise.random((height, width)) < 0.3, dtype=np.uint8)
        rle = coco_mask.encode(mask)
        annotation["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()}
    annotations.write_text(json.dumps(content))
    try:
        out = experiment.parent / "noise"
        metrics = test(experiment, trained / f"iter_{MAX_ITERS}.pth", out)
    finally:
        annotations.write_text(original)
    names = sorted(p.name for p in (results / "probabilities").iterdir())
    assert len(names) == FRAMES[2]
    for kind in ("probabilities", "masks"):
        for name in names:
            assert (out / kind / name).read_bytes() == (results / kind / name).read_bytes()
    assert (out / "masks.json").read_bytes() == (results / "masks.json").read_bytes()
    before = json.loads((results / "metrics.json").read_text())
    assert metrics["mean"]["accuracy"] != before["mean"]["accuracy"]


def test_threshold_of_the_config_decides(experiment: Path, trained: Path, results: Path) -> None:
    out = experiment.parent / "low"
    metrics = test(
        experiment,
        trained / f"iter_{MAX_ITERS}.pth",
        out,
        "--cfg-options",
        "test_evaluator.threshold=0.001",
    )
    assert metrics["threshold"] == 0.001
    assert metrics["mean"]["recall"] == 1.0
    before = json.loads((results / "metrics.json").read_text())
    assert metrics["pooled"]["precision"] != before["pooled"]["precision"]

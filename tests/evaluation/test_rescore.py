"""Scores without a model: stored runs, folders of masks, and a second observer of real frames."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from PIL import Image

from projects.sa2va.config import load_config
from projects.sa2va.datasets.hashes import split_hash
from projects.sa2va.errors import DataError
from projects.sa2va.evaluation import VesselMetric
from projects.sa2va.evaluation.compare import Run, compare_runs
from projects.sa2va.evaluation.guards import SuspectResultsError
from projects.sa2va.evaluation.rescore import rescore, score_masks
from projects.sa2va.evaluation.run_folder import StoredRun
from projects.sa2va.models.outputs import Prediction


@pytest.fixture(scope="module")
def made(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder like those of tools/test.py, whose maps hold 8-bit levels."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    cfg = load_config(rendered / "experiment.py")
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    metric = VesselMetric(
        threshold=0.4, out_dir=folder, pictures=None, metric_set="all", bootstrap=50
    )
    answered = {"answer_mode": "choice", "presence_threshold": 0.2}
    metric.set_provenance({**answered, "split": split_hash(dataset)})
    metric.set_grid((16, 16))
    for item in dataset:
        levels = np.random.default_rng(item["meta"]["index"]).integers(0, 256, item["truth"].shape)
        map_ = torch.from_numpy((levels / 255).astype(np.float32))
        answers = ["Sure, [SEG]."] * len(map_)
        metric.process(
            {"truth": [item["truth"]], "meta": [item["meta"]]},
            [Prediction(map_, answers, [True] * len(map_))],
        )
    metric.evaluate(len(dataset))
    (folder / "config.py").write_text(cfg.pretty_text)
    return folder


@pytest.fixture
def stored(made: Path, tmp_path: Path) -> Path:
    """A copy of it, the test's own."""
    return shutil.copytree(made, tmp_path / "run")


def report_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_a_stored_run_scores_again_as_it_was_and_at_another_threshold(stored, tmp_path):
    rescore(stored, out_dir=tmp_path / "same", metric_set="all", bootstrap=50, pictures=None)
    before, after = report_of(stored), report_of(tmp_path / "same")
    assert after["per_frame"] == before["per_frame"]
    numbers = ("mean", "patient_mean", "pooled", "intervals", "oracle")
    for key in (*numbers, "split", "answer_mode", "presence_threshold"):
        assert after[key] == before[key], key
    assert after["rescored_from"] == "run"
    comparison = compare_runs([Run.read(stored), Run.read(tmp_path / "same")], ["dice", "hd95"])
    assert [item.p for item in comparison.differences] == [1, 1]
    assert rescore(stored, threshold=0.2)["vessel/recall"] > before["mean"]["recall"]


def test_rows_are_maps_beside_the_truth(stored):
    run = StoredRun.open(stored)
    rows = list(run.rows())
    assert [row.frame for row in rows] == run.dataset.frame_ids
    for row in rows:
        saved = np.asarray(Image.open(stored / "probabilities" / f"{row.record['file']}.png"))
        assert row.probability.dtype == np.float32
        assert np.array_equal(np.rint(row.probability * 255), saved)
        assert row.truth.sum() == row.record["counts"]["tp"] + row.record["counts"]["fn"]
        assert row.patient == row.record["patient"]


def remove_map(folder: Path) -> None:
    next((folder / "probabilities").iterdir()).unlink()


def shrink_map(folder: Path) -> None:
    Image.new("L", (3, 3)).save(next((folder / "probabilities").iterdir()))


def edit_report(change):
    def apply(folder: Path) -> None:
        report = report_of(folder)
        change(report)
        (folder / "metrics.json").write_text(json.dumps(report))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_map, "no map"),
        (shrink_map, r"map \(3, 3\)"),
        (edit_report(lambda r: r["per_frame"].pop()), "1 rows of the data set are missing"),
        (edit_report(lambda r: r["per_frame"][0].update(frame="x")), "1 are none of it"),
        (edit_report(lambda r: r["per_frame"][0].update(truth="0" * 16)), "mask of"),
        (edit_report(lambda r: r.update(split="0" * 64)), "was scored on the split 0000"),
        (edit_report(lambda r: r.update(threshold_rule=">")), "threshold_rule"),
        (edit_report(lambda r: r.pop("valid")), "lacks valid"),
        (lambda folder: (folder / "config.py").unlink(), "config.py does not exist"),
        (lambda folder: (folder / "metrics.json").unlink(), "holds no metrics.json"),
        (lambda folder: (folder / "metrics.json").write_text("{"), "cannot be read"),
    ],
)
def test_what_does_not_belong_together_is_refused(stored, damage, message):
    damage(stored)
    with pytest.raises(DataError, match=message):
        rescore(stored, progress=False)


def write_masks(folder: Path, masks: dict[str, np.ndarray]) -> Path:
    for name, mask in masks.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return folder


def test_folders_of_masks_are_paired_by_name(tmp_path):
    rng = np.random.default_rng(0)
    truth = {f"{p}/eye_{k}": rng.random((12, 14)) < 0.5 for p in "ab" for k in range(2)}
    other = {name: mask ^ (rng.random(mask.shape) < 0.1) for name, mask in truth.items()}
    ours, theirs = (write_masks(tmp_path / n, m) for n, m in (("p", other), ("t", truth)))
    by_folder = {"type": "regex", "pattern": "^(.)/", "match_on": "path"}
    found = score_masks(ours, theirs, patient=by_folder, out_dir=tmp_path / "out", progress=False)
    dice = [2 * (other[n] & truth[n]).sum() / (other[n].sum() + truth[n].sum()) for n in truth]
    assert found["vessel/dice"] == pytest.approx(np.mean(dice))
    report = report_of(tmp_path / "out")
    assert report["counts"]["patients"] == 2 and report["warnings"] == []
    assert "eye_0" not in (tmp_path / "out" / "per_frame.csv").read_text()

    with pytest.raises(SuspectResultsError, match="4 of 4"):
        score_masks(theirs, theirs, progress=False)
    (theirs / "b" / "eye_1.png").unlink()
    with pytest.raises(DataError, match="1 masks without a partner"):
        score_masks(ours, theirs, progress=False)


def test_the_second_observer_of_chase_db1_scores_as_published(shared_dir, tmp_path):
    """Numbers that come with the data: mean Dice 0.777, and one for each image."""
    root = shared_dir / "data" / "chase_db1"
    with open(root / "manifest.csv", newline="") as file:
        expected = {Path(r["mask"]).stem: float(r["dice_observer2"]) for r in csv.DictReader(file)}
    found = score_masks(
        *(root / "masks_observer2", root / "masks"),
        out_dir=tmp_path,
        save_probabilities="none",
        save_masks=False,
        progress=False,
    )
    assert round(found["vessel/dice"], 3) == 0.777 and len(expected) == 28
    per_image = {row["frame"]: row["dice"] for row in report_of(tmp_path)["per_frame"]}
    assert per_image == pytest.approx(expected, abs=1e-4)

"""From maps on validation frames to another mask in the test, and what is refused on the way."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, RUNNERS
from PIL import Image

from projects.sa2va.checkpoints import DATA_SPLITS_FILE, sha256_of
from projects.sa2va.config import load_config
from projects.sa2va.datasets.hashes import split_hash
from projects.sa2va.engine.start import prepare_test
from projects.sa2va.engine.tuning import CURVE_FILES, tune
from projects.sa2va.errors import CheckpointError, ConfigError, DataError
from projects.sa2va.evaluation import VesselMetric
from projects.sa2va.evaluation.chosen_threshold import read_threshold
from projects.sa2va.evaluation.rescore import rescore
from projects.sa2va.evaluation.threshold_choice import Target
from projects.sa2va.models.outputs import Prediction
from tests.broken_data import copy_experiment
from tests.conftest import ROOT

from .conftest import save

# Has no weights, so that it is quick to build, and its maps are worth tuning.
FRANGI = ("models/frangi", "datasets/synthetic", "runtime")


def report_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def edit_report(folder: Path, **changes) -> None:
    (folder / "metrics.json").write_text(json.dumps({**report_of(folder), **changes}))


@pytest.fixture(scope="module")
def made(rendered, tmp_path_factory) -> Path:
    """An experiment, a checkpoint, and runs on its val (``run``) and test frames (``test``).

    All maps are best cut at thresholds above 0.25 and up to 0.32.
    """
    folder = tmp_path_factory.mktemp("tuning")
    config = copy_experiment(rendered, folder)
    checkpoint = save(folder / "best.pth", training_state=False)
    for split, name in (("val", "run"), ("test", "test")):
        cfg = load_config(config)
        cfg.test_dataloader.dataset = cfg[f"{split}_dataloader"].dataset
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        out = folder / name
        metric = VesselMetric(
            threshold=0.5, out_dir=out, pictures=None, bootstrap=50, max_exact_copies=1
        )
        metric.set_provenance(
            {
                "checkpoint": {"source": "best.pth", "sha256": sha256_of(checkpoint)},
                "split": split_hash(dataset),
                "split_name": split,
                "threshold_source": {"kind": "config"},
            }
        )
        for item in dataset:
            noise = torch.rand(item["truth"].shape, generator=torch.Generator().manual_seed(0))
            map_ = torch.where(item["truth"] > 0, 0.33, 0.2) + 0.05 * noise
            prediction = Prediction(map_, ["[SEG]"], [True])
            metric.process({"truth": [item["truth"]], "meta": [item["meta"]]}, [prediction])
        metric.evaluate(len(dataset))
        (out / "config.py").write_text(cfg.pretty_text)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    """A copy of it, and the current folder, so that the run's relative paths lead into it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "experiment.py", tmp_path / "tiny.py", *tmp_path.glob("*/config.py")):
        path.write_text(path.read_text().replace(str(made), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tuned(folder: Path, **more):
    return tune(folder / "run", Target(), resamples=50, progress=False, **more)


def test_the_choice_is_written_beside_the_checkpoint_and_the_curve_into_the_run(folder):
    found = tuned(folder)
    assert found.chosen.path == Path("best.threshold.json")
    chosen = read_threshold(found.chosen.path)
    assert 0.25 < chosen.threshold <= 0.33 and chosen.content["value"] == 1
    assert chosen.content["split"] == report_of(folder / "run")["split"]
    assert chosen.content["run"] == "run" and chosen.content["probabilities"] == "png"
    assert chosen.content["presence_threshold"] is None
    assert {path.name for path in (folder / "run").glob("threshold_curve*")} == set(CURVE_FILES)
    table = (folder / "run" / "threshold_curve.csv").read_text().splitlines()
    content = json.loads((folder / "run" / "threshold_curve.json").read_text())
    assert len(table) == 100 and len(content["curve"]) == 99
    assert table[0] == "threshold,low,min_area,value,band_low,band_high,chosen"
    values = [row["value"] for row in content["curve"]]
    assert values[0] < 0.5 < values[28] == 1 and values[50] == 0

    with pytest.raises(ConfigError, match=r"best\.threshold\.json exists"):
        tuned(folder)
    assert tuned(folder, force=True).chosen.threshold == chosen.threshold


@pytest.mark.parametrize("postprocess", ["components", "hysteresis"])
def test_postprocessing_is_tuned_jointly_and_removes_what_no_threshold_can(folder, postprocess):
    """Specks as bright as vessels: components; vessels with faint ends: hysteresis."""
    run = folder / "run"
    for path in (run / "probabilities").iterdir():
        levels = np.asarray(Image.open(path)).copy()
        if postprocess == "components":
            levels[::9, ::9] = 255
        else:  # half of each vessel is as faint as specks elsewhere
            rows, columns = np.nonzero(levels > 80)
            levels[rows[::2], columns[::2]] = 30
            levels[levels < 80] = np.where(levels[levels < 80] == 30, 30, 3)
            levels[2::16, 2::16] = np.maximum(levels[2::16, 2::16], 30)
        Image.fromarray(levels).save(path)
    found = tuned(folder, postprocess=postprocess, workers=0)
    assert found.curve.choice.postprocess.kinds() == [postprocess]
    assert found.curve.gain[0] > 0.1
    assert read_threshold(found.chosen.path).postprocess is not None
    flat = rescore(run, threshold=0.3, progress=False, max_exact_copies=1)["vessel/dice"]
    assert flat < found.chosen.content["value"]


def test_cldice_goes_from_coarse_to_fine(folder):
    alone = tune(folder / "run", Target("cldice"), resamples=0, workers=0, progress=False)
    cuts = {candidate.threshold for candidate in alone.curve.candidates}
    assert {0.01, 0.5, 0.99} < cuts and 25 <= len(cuts) <= 31
    best = alone.curve.choice.threshold
    assert {round(best - 0.01, 2), round(best + 0.01, 2)} < cuts


# ------------------------------------------------------------------------------------ refusals


def as_named(**changes):
    return lambda folder: edit_report(folder / "run", **changes)


def test_split_as_val(folder: Path) -> None:
    """The run on the test frames, called a run on validation frames."""
    shutil.rmtree(folder / "run")
    (folder / "test").rename(folder / "run")
    edit_report(folder / "run", split_name="val")
    hashes = {"test": {"hash": report_of(folder / "run")["split"]}}
    (folder / DATA_SPLITS_FILE).write_text(json.dumps(hashes))


test_split_as_val.__test__ = False


def own_test_split(folder: Path) -> None:
    edit_report(folder / "run", test_split=report_of(folder / "run")["split"])


def changed_truth(folder: Path) -> None:
    report = report_of(folder / "run")
    report["per_frame"][0]["truth"] = "0" * 16
    edit_report(folder / "run", **report)


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (as_named(split_name="test"), DataError, "tuned on a test split"),
        (as_named(split_name=None), DataError, "is of the split None"),
        (as_named(split_name="fold2"), DataError, "is of the split 'fold2'"),
        (as_named(valid=False, invalid_because=["x"]), DataError, "valid=false: x"),
        (as_named(split="0" * 64), DataError, "was scored on the split 0000"),
        (test_split_as_val, DataError, f"are the test split of {DATA_SPLITS_FILE}"),
        (own_test_split, DataError, "are the test split of the config"),
        (changed_truth, DataError, "mask of"),
        (lambda f: save(f / "best.pth", seed=1), CheckpointError, "has changed since the test"),
        (lambda f: (f / "best.pth").unlink(), CheckpointError, "is not there"),
        (as_named(checkpoint=None), ConfigError, "a run without a checkpoint"),
    ],
)
def test_what_must_not_be_tuned_on_is_refused(folder, damage, kind, message):
    damage(folder)
    with pytest.raises(kind, match=message):
        tuned(folder)
    assert not list(folder.glob("*.threshold.json"))


def test_a_copy_of_the_test_split_is_refused_by_the_checkpoint_too(folder):
    test_split_as_val(folder)
    (folder / DATA_SPLITS_FILE).unlink()
    hashes = {"test": {"hash": report_of(folder / "run")["split"]}}
    path = save(folder / "best.pth", training_state=False, data_splits=hashes)
    checkpoint = {"source": "best.pth", "sha256": sha256_of(path)}
    edit_report(folder / "run", checkpoint=checkpoint)
    with pytest.raises(DataError, match=r"are the test split of best\.pth"):
        tuned(folder)


def test_test_is_never_the_split_to_tune_on_and_others_must_be_named(folder):
    edit_report(folder / "run", split_name="test")
    with pytest.raises(DataError, match="tuned on a test split"):
        tuned(folder, split="test")
    edit_report(folder / "run", split_name="fold2")
    assert tuned(folder, split="fold2").chosen.content["split_name"] == "fold2"


# ------------------------------------------------------------------------------- in the test


def prepared(folder: Path, **more):
    return prepare_test(
        str(folder / "experiment.py"),
        work_dir=str(folder / "work"),
        **{"checkpoint": "best.pth", **more},
    )


@pytest.mark.usefixtures("no_model")
def test_the_file_beside_the_checkpoint_is_used_and_can_be_overridden(folder):
    assert prepared(folder).test_cfg.threshold_source == {"kind": "config"}
    chosen = tuned(folder).chosen
    cfg = prepared(folder)
    assert cfg.test_evaluator.threshold == chosen.threshold != 0.5
    assert cfg.test_cfg.threshold_source == chosen.source()
    for threshold, options, value, kind in (
        ("config", None, 0.5, "config"),
        ("0.7", None, 0.7, "command line"),
        (None, {"test_evaluator.threshold": 0.8}, 0.8, "command line"),
        (str(chosen.path), None, chosen.threshold, "tuned"),
    ):
        cfg = prepared(folder, threshold=threshold, cfg_options=options)
        assert cfg.test_evaluator.threshold == value
        assert cfg.test_cfg.threshold_source["kind"] == kind
    for threshold in ("1.5", "low", "nan"):
        with pytest.raises(ConfigError, match=f"--threshold {threshold}"):
            prepared(folder, threshold=threshold)
    with pytest.raises(ConfigError, match="together with"):
        prepared(folder, threshold="0.3", cfg_options={"test_evaluator.threshold": 0.8})


@pytest.mark.usefixtures("no_model")
def test_a_file_of_other_weights_or_chosen_on_these_frames_is_refused(folder):
    path = tuned(folder).chosen.path
    # On validation frames it is left alone, for that is where it came from.
    cfg = prepared(folder, split="val")
    assert cfg.test_cfg.threshold_source == {"kind": "config"}
    with pytest.raises(DataError, match="chosen on the very frames"):
        prepared(folder, split="val", threshold=str(path))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "split": "0" * 64}))
    with pytest.raises(DataError, match="frames of val had a part in choosing"):
        prepared(folder, split="val", threshold=str(path))
    save(folder / "best.pth", training_state=False, seed=1)
    with pytest.raises(CheckpointError, match=r"was chosen for best\.pth"):
        prepared(folder)
    assert prepared(folder, threshold="config").test_evaluator.threshold == 0.5


@pytest.mark.usefixtures("no_model")
def test_validation_frames_are_scored_under_their_own_name(folder):
    cfg = prepared(folder, split="val")
    assert cfg.test_cfg.split_name == "val"
    found = split_hash(DATASETS.build(cfg.test_dataloader.dataset))
    assert found == report_of(folder / "run")["split"]
    assert cfg.test_cfg.test_split == report_of(folder / "test")["split"] != found
    dumped = folder / "dumped.py"
    dumped.write_text(cfg.pretty_text)
    again = prepare_test(str(dumped), checkpoint=None, work_dir=str(folder / "work"))
    assert again.test_cfg.split_name == "val"
    with pytest.raises(ConfigError, match="holds the val frames"):
        prepare_test(str(dumped), checkpoint=None, work_dir="work", split="test")
    with pytest.raises(ConfigError, match="has no val_dataloader"):
        prepared(folder, split="val", cfg_options={"val_dataloader": None, "val_cfg": None,
                                                   "val_evaluator": None})  # fmt: skip


@pytest.mark.usefixtures("no_model")
def test_other_settings_of_the_model_are_said_and_no_error(folder, monkeypatch):
    chosen = tuned(folder).chosen
    said = []
    monkeypatch.setattr(
        logging.Logger, "log", lambda self, level, text, *more: said.append((level, text))
    )
    cfg = prepared(folder, cfg_options={"model.answer_mode": "generate"})
    assert cfg.test_evaluator.threshold == chosen.threshold
    assert any(level == logging.WARNING and "other settings of `model`" in t for level, t in said)


@pytest.mark.usefixtures("no_model")
def test_validation_frames_that_are_test_frames_are_refused(folder):
    shutil.rmtree(folder / "data" / "val")
    shutil.copytree(folder / "data" / "test", folder / "data" / "val")
    annotations = folder / "data" / "val" / "annotations"
    (annotations / "test.json").rename(annotations / "val.json")
    with pytest.raises(DataError, match="images in two splits"):
        prepared(folder, split="val")


def test_two_thresholds_give_two_results_from_end_to_end(folder):
    """The threshold of the file reaches the masks: it is neither ignored nor fixed in the code."""

    bases = [str(ROOT / f"configs/_base_/{name}.py") for name in FRANGI]
    config = folder / "frangi.py"
    loader = "test_dataloader = dict(num_workers=0, persistent_workers=False)"
    config.write_text(f"_base_ = {bases}\ndata_root = {str(folder / 'data')!r}\n{loader}\n")

    def tested(name: str, **more) -> Path:
        cfg = prepare_test(
            str(config),
            checkpoint=None,
            work_dir=str(folder / "work"),
            out=str(folder / name),
            metrics="fast",
            **more,
        )
        cfg.test_evaluator.update(bootstrap=50, pictures=None)
        cfg.experiment_name = name
        RUNNERS.build(cfg).test()
        return folder / name

    run = tested("val_run", split="val")
    report = report_of(run)
    assert report["split_name"] == "val" and report["calibration"]["pixels"] > 0
    chosen = tune(
        run, Target(), postprocess="components", resamples=20, out="threshold.json", progress=False
    ).chosen
    other = 0.2
    assert other < chosen.threshold - 0.1
    folders = {
        "file": tested("file", threshold=str(chosen.path)),
        "other": tested("other", threshold=str(other)),
    }
    reports = {name: report_of(path) for name, path in folders.items()}
    assert [r["threshold"] for r in reports.values()] == [chosen.threshold, other]
    assert reports["file"]["threshold_source"] == chosen.source()
    assert reports["file"]["postprocess"] == chosen.postprocess
    assert reports["file"]["mean"]["recall"] < reports["other"]["mean"]["recall"]
    maps, masks = (
        [[p.read_bytes() for p in sorted((path / kind).iterdir())] for path in folders.values()]
        for kind in ("probabilities", "masks")
    )
    assert maps[0] == maps[1] and masks[0] != masks[1]
    again = rescore(folders["other"], threshold=chosen, progress=False, metric_set="fast")
    assert again["vessel/dice"] == pytest.approx(reports["file"]["mean"]["dice"], abs=5e-3)
    same = rescore(folders["file"], progress=False, metric_set="fast")
    assert same["vessel/dice"] == pytest.approx(again["vessel/dice"])
    with pytest.raises(DataError, match="chosen on the very frames"):
        rescore(run, threshold=chosen, progress=False)

"""The synthetic data set on disk: COCO files, patients, reuse, interruption, the command."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from projects.sa2va.datasets import synthetic
from projects.sa2va.datasets.synthetic import AngiogramParams, render, write_dataset
from projects.sa2va.datasets.synthetic import dataset as dataset_module
from projects.sa2va.datasets.synthetic.dataset import RECORD, components_rle
from projects.sa2va.errors import ConfigError, DataError

FRAMES = {"train": 5, "val": 2, "test": 3}


def write(out: Path, **changes: object) -> bool:
    arguments = {"frames": FRAMES, "size": 64, "seed": 3, "frames_per_patient": 2}
    return write_dataset(out, **{**arguments, "progress": False, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "deep" / "set"
    assert write(out)
    return out


def load(out: Path, split: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(out / split / "annotations" / f"{split}.json"))


def test_coco_decodes_to_exactly_the_mask(written):
    for split, count in FRAMES.items():
        coco = load(written, split)
        assert len(coco.getImgIds()) == count
        assert len(list((written / split / "images").iterdir())) == count
        assert coco.loadCats(coco.getCatIds()) == [dataset_module.CATEGORY]
        for entry in coco.loadImgs(coco.getImgIds()):
            patient, frame = map(
                int, re.fullmatch(r"P(\d+)_F(\d+)\.png", entry["file_name"]).groups()
            )
            image, mask, _ = render(3, 64, patient=patient, frame=frame)
            with Image.open(written / split / "images" / entry["file_name"]) as stored:
                assert stored.mode == "L"
                np.testing.assert_array_equal(np.asarray(stored), image)
            annotations = coco.loadAnns(coco.getAnnIds(entry["id"]))
            total = np.zeros((entry["height"], entry["width"]), int)
            for annotation in annotations:
                part = coco.annToMask(annotation)
                assert annotation["area"] == part.sum() > 0
                x, y, width, height = map(int, annotation["bbox"])
                assert part[y : y + height, x : x + width].sum() == part.sum()
                total += part
            np.testing.assert_array_equal(total, mask)


def test_components_keep_holes_and_join_at_corners():
    mask = np.zeros((9, 9), np.uint8)
    mask[1:6, 1:6] = 1
    mask[2:5, 2:5] = 0
    mask[6, 6] = 1  # touches the ring at a corner
    mask[8, 0] = 1
    parts = components_rle(mask)
    assert sorted(part["area"] for part in parts) == [1, 17]
    assert components_rle(np.zeros((4, 4), np.uint8)) == []


def test_patients_stay_in_one_split(written):
    patients = {
        split: {
            re.match(synthetic.PATIENT_PATTERN, path.name).group(1)
            for path in (written / split / "images").iterdir()
        }
        for split in FRAMES
    }
    assert {split: len(ids) for split, ids in patients.items()} == {"train": 3, "val": 1, "test": 2}
    assert len(set.union(*patients.values())) == 6


def test_result_depends_neither_on_workers_nor_on_the_order_of_splits(written, tmp_path):
    backwards = dict(reversed(FRAMES.items()))
    assert write(tmp_path / "set", workers=2, frames=backwards)
    assert contents(tmp_path / "set") == contents(written)


def test_complete_set_is_reused(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert write(written) is False
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": 72}, "size: 64 there, 72 asked for"),
        ({"seed": 4}, "seed"),
        ({"frames": {**FRAMES, "val": 4}}, "frames.val"),
        ({"params": AngiogramParams(difficulty=0.9)}, "params.difficulty"),
    ],
)
def test_other_parameters_are_an_error(written, change, named):
    before = contents(written)
    with pytest.raises(DataError) as caught:
        write(written, **change)
    assert named in caught.value.found
    assert caught.value.expected and "--overwrite" in caught.value.fix
    assert contents(written) == before


def test_overwrite_replaces_an_own_set_and_nothing_else(tmp_path):
    out = tmp_path / "set"
    assert write(out, frames={"train": 1})
    assert write(out, frames={"train": 1}, seed=9, overwrite=True)
    assert json.loads((out / RECORD).read_text())["seed"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not written by this generator"):
        write(foreign, overwrite=True)
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_missing_frame_and_broken_record_are_named(tmp_path):
    out = tmp_path / "set"
    write(out, frames={"train": 2})
    (out / "train" / "images" / "P0001_F02.png").unlink()
    with pytest.raises(DataError, match=r"P0001_F02\.png"):
        write(out, frames={"train": 2})
    (out / RECORD).write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        write(out, frames={"train": 2})
    assert write(out, frames={"train": 2}, overwrite=True)
    assert write(out, frames={"train": 2}) is False


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch, error):
    kept = tmp_path / "kept"
    write(kept, frames={"train": 1})
    before = contents(kept)
    real, calls = dataset_module._write_frame, []

    def fails_at_the_third(job):
        calls.append(job)
        if len(calls) == 3:
            raise error
        return real(job)

    monkeypatch.setattr(dataset_module, "_write_frame", fails_at_the_third)
    with pytest.raises(error):
        write(tmp_path / "new")
    calls.clear()
    with pytest.raises(error):
        write(kept, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert contents(kept) == before


@pytest.mark.parametrize(
    "bad",
    [
        {"frames": {}},
        {"frames": {"train": 0}},
        {"frames": {"train": -1}},
        {"frames": {"../train": 1}},
        {"size": 8},
        {"seed": -1},
        {"frames_per_patient": 0},
        {"workers": 0},
    ],
)
def test_counts_that_make_no_set_are_refused_before_anything_is_written(tmp_path, bad):
    with pytest.raises(ConfigError):
        write(tmp_path / "set", **bad)
    assert not list(tmp_path.iterdir())


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).resolve().parents[2] / "tools" / "make_synthetic.py"
    spec = importlib.util.spec_from_file_location("make_synthetic", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_writes_reuses_and_reports(tool, tmp_path, capsys):
    arguments = [str(tmp_path / "set"), "--train", "2", "--val", "0", "--test", "1", "--size", "64"]
    tool.main(arguments)
    assert "train 2, test 1 frames, written" in capsys.readouterr().out
    assert not (tmp_path / "set" / "val").exists()
    tool.main(arguments)
    assert "already there" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        tool.main([*arguments, "--difficulty", "0.8"])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "params.difficulty: 0.3 there, 0.8 asked for" in message and "what to do" in message

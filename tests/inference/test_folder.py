"""Many images to files: nothing lost by an interruption, nothing mixed, nothing in memory."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from projects.sa2va.errors import ConfigError, SetupError
from projects.sa2va.inference import Sa2VAInferencer
from projects.sa2va.inference.folder import default_out, predict_folder
from projects.sa2va.inference.journal import LINES, RUN, alone

OUTPUTS = ("mask", "csv", "rle")


@pytest.fixture
def many(frames, tmp_path) -> Path:
    """Five images in two folders, and one that cannot be read."""
    folder = tmp_path / "in"
    for number in range(5):
        target = folder / str(number % 2) / f"f{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(frames[number % len(frames)], target)
    (folder / "0" / "bad.png").write_bytes(b"x")
    return folder


def predict(inferencer: Sa2VAInferencer, many: Path, **more):
    settings = {"outputs": OUTPUTS, "progress": False, **more}
    return predict_folder(inferencer, many, "blood vessel", many.parent / "out", **settings)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but what holds times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (LINES, "predictions.csv")
    }


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_files_and_tables(inferencer, many):
    done = predict(inferencer, many)
    assert (done.predicted, done.skipped, list(done.failed)) == (5, 0, ["0/bad.png"])
    assert "1 could not be predicted" in done.text() and "0/bad.png" in done.text()
    table = rows(done.folder)
    assert [row["image"] for row in table] == [
        *("0/bad.png", "0/f0.png", "0/f2.png", "0/f4.png", "1/f1.png", "1/f3.png"),
    ]
    assert "cannot be read" in table[0]["error"] or "not an image" in table[0]["error"]
    stored = json.loads((done.folder / "predictions.json").read_text())
    assert [row["image_id"] for row in stored] == [row["image"] for row in table[1:]]
    for row, record in zip(table[1:], stored, strict=True):
        mask = np.asarray(Image.open(done.folder / row["mask"])) == 255
        (expected,) = inferencer(many / row["image"], "blood vessel")
        np.testing.assert_array_equal(mask, expected.mask)
        np.testing.assert_array_equal(coco_mask.decode(record["segmentation"]), mask)
        assert int(row["mask_pixels"]) == record["area"] == mask.sum()
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert record["bbox"] == box
        assert float(row["max_probability"]) == pytest.approx(expected.probability.max())
        assert row["answer"] == "Sure, [SEG]." and row["error"] == ""


def test_interrupted_run_goes_on_and_ends_the_same(inferencer, many, monkeypatch):
    whole = predict(inferencer, many)
    expected, table = snapshot(whole.folder), rows(whole.folder)
    shutil.rmtree(whole.folder)
    step, calls = inferencer._pipeline.model.test_step, []

    def interrupted(data):
        calls.append(len(data["inputs"]["sizes"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(data)

    with monkeypatch.context() as patch:
        patch.setattr(inferencer._pipeline.model, "test_step", interrupted)
        first = predict(inferencer, many)
    assert first.interrupted and "--skip-existing" in first.text()
    kept = {row["image"] for row in rows(first.folder) if not row["error"]}
    assert 0 < len(kept) < 5
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            inferencer._pipeline.model,
            "test_step",
            lambda data: calls.append(len(data["inputs"]["sizes"])) or step(data),
        )
        second = predict(inferencer, many, skip_existing=True)
    assert sum(calls) == second.predicted == 5 - len(kept) and second.skipped == len(kept)
    assert snapshot(second.folder) == expected
    own = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(second.folder)]
    before = [{k: v for k, v in row.items() if k != "seconds"} for row in table]
    assert sorted(own, key=lambda r: r["image"]) == sorted(before, key=lambda r: r["image"])


def test_what_is_done_again_on_resuming(inferencer, many, frames):
    done = predict(inferencer, many)
    lines = (done.folder / LINES).read_bytes()
    (done.folder / LINES).write_bytes(lines[:-20])  # a kill in the middle of the last line
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(many / "0" / "f0.png")  # another image
    (done.folder / "masks" / "0" / "f2.png").unlink()
    shutil.copy(frames[0], many / "0" / "bad.png")  # mended
    again = predict(inferencer, many, skip_existing=True)
    assert (again.predicted, again.skipped, again.failed) == (4, 2, {})
    table = {row["image"]: row for row in rows(again.folder)}
    assert len(table) == 6 and table["0/f0.png"]["width"] == "9"
    assert all((again.folder / row["mask"]).is_file() for row in table.values())


def test_earlier_run_is_not_touched_unasked(inferencer, many):
    done = predict(inferencer, many)
    before = snapshot(done.folder)
    with pytest.raises(ConfigError, match="holds the predictions of an earlier run"):
        predict(inferencer, many)
    with pytest.raises(ConfigError, match="other settings: outputs"):
        predict(inferencer, many, outputs=("mask",), skip_existing=True)
    assert snapshot(done.folder) == before
    assert predict(inferencer, many, overwrite=True).predicted == 5


def test_other_threshold_or_text_is_not_mixed_in(trained, inferencer, many):
    predict(inferencer, many)
    other = Sa2VAInferencer(trained / "run", threshold=0.3)
    with pytest.raises(ConfigError, match=r"threshold 0\.5 -> 0\.3"):
        predict(other, many, skip_existing=True)
    with pytest.raises(ConfigError, match="questions"):
        predict_folder(
            inferencer, many, "catheter", many.parent / "out", outputs=OUTPUTS, skip_existing=True
        )


def test_run_json_names_no_folder_of_the_user(inferencer, many):
    done = predict(inferencer, many)
    settings = json.loads((done.folder / RUN).read_text())
    assert settings["checkpoint_sha256"] and settings["threshold"] == 0.5
    for name in (RUN, "predictions.csv", "predictions.json"):
        text = (done.folder / name).read_text()
        kept = [line for line in text.splitlines() if "bad.png" not in line]
        assert str(many) not in "\n".join(kept)


def test_files_that_cannot_be_written_end_the_run(inferencer, many, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("projects.sa2va.inference.outputs.write_mask", full)
    with pytest.raises(SetupError, match=r"No space left[\s\S]*--skip-existing"):
        predict(inferencer, many)
    assert "f0.png" not in (many.parent / "out" / LINES).read_text()


def test_half_a_line_in_the_record_is_predicted_again(inferencer, many):
    done = predict(inferencer, many)
    lines = (done.folder / LINES).read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:30] + lines[2]  # a full disk cut the first one
    (done.folder / LINES).write_bytes(b"".join([*lines[:2], *lines[3:]]))
    again = predict(inferencer, many, skip_existing=True)
    assert (again.predicted, again.skipped) == (2, 3)
    assert len(rows(again.folder)) == 6


def test_settings_that_cannot_be_read(inferencer, many):
    done = predict(inferencer, many)
    (done.folder / RUN).write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json cannot be read[\s\S]*--overwrite"):
        predict(inferencer, many, skip_existing=True)


def test_options_of_the_model_are_settings(trained, inferencer, many):
    predict(inferencer, many)
    options = {"model.processor.question": "Where is the {phrase}?"}
    other = Sa2VAInferencer(trained / "run", cfg_options=options)
    question = "Please segment the blood vessel in this image."
    with pytest.raises(ConfigError, match="model_config_sha256"):
        predict_folder(
            other, many, question, many.parent / "out", outputs=OUTPUTS, skip_existing=True
        )


def test_predictions_inside_the_folder_of_frames_are_no_frames(inferencer, many):
    settings = {"outputs": ("mask",), "progress": False}
    for more in ({}, {"skip_existing": True}, {"overwrite": True}):
        done = predict_folder(inferencer, many, "vessel", many / "predictions", **settings, **more)
        assert done.predicted + done.skipped == 5


def test_files_of_something_else_are_not_overwritten(inferencer, many):
    truth = many.parent / "out" / "masks" / "f0.png"
    truth.parent.mkdir(parents=True)
    truth.write_bytes(b"drawn by hand")
    for more in ({}, {"skip_existing": True}):
        with pytest.raises(ConfigError, match="holds masks/ of something else"):
            predict(inferencer, many, **more)
    assert truth.read_bytes() == b"drawn by hand"


def test_one_run_at_a_time_in_a_folder(inferencer, many):
    out = many.parent / "out"
    with alone(out), pytest.raises(ConfigError, match="another run predicts into"):
        predict(inferencer, many)
    assert not (out / LINES).exists()
    assert predict(inferencer, many).predicted == 5


def test_names_that_are_not_utf8(inferencer, frames, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in ((b"\xff.png", frames[0].read_bytes()), (b"bad\xfe.png", b"x")):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
    done = predict(inferencer, folder)
    assert (done.predicted, len(done.failed)) == (1, 1)
    assert "\\udcff.png" in (done.folder / "predictions.csv").read_text(encoding="utf-8")
    assert predict(inferencer, folder, skip_existing=True).skipped == 1


def test_errors_in_the_files_name_no_folder(inferencer, many):
    folder = predict(inferencer, many).folder
    for name in (LINES, "predictions.csv"):
        text = (folder / name).read_text()
        assert "0/bad.png is not an image" in text and str(many) not in text


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ("frames/", "frames"),
        ("a/*.png", "a"),
        ("x.png", "x.png"),
        ("a/**/b*.png", "a"),
        ("*.png", "images"),
        ("..", "images"),
        ("a/..", "images"),
    ],
)
def test_default_out(given, folder):
    assert default_out(given) == Path("predictions", folder)

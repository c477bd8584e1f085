"""Result files: whole or absent, strict JSON, masks that load back."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from projects.sa2va.errors import SetupError
from projects.sa2va.evaluation.metrics import Scores
from projects.sa2va.evaluation.overlap import OVERLAP_NAMES, Counts
from projects.sa2va.evaluation.rows import FrameResult, Row
from projects.sa2va.evaluation.writer import (
    ResultsWriter,
    decode_mask,
    encode_mask,
    file_stem,
    frame_records,
    strict,
    write_atomic,
)

bool_masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def no_constant(name: str) -> float:
    raise AssertionError(f"{name} is not strict JSON")


def nan_to_none(value):
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@settings(deadline=None)
@given(json_values)
def test_json_is_strict_and_comes_back(value):
    text = json.dumps(strict(value), allow_nan=False)
    assert json.loads(text, parse_constant=no_constant) == nan_to_none(value)


def test_strict_takes_numpy_and_paths_and_refuses_the_rest():
    mixed = {"a": np.float32(0.5), "b": (np.int64(3), np.bool_(True)), "c": Path("x") / "y"}
    assert strict(mixed) == {"a": 0.5, "b": [3, True], "c": os.path.join("x", "y")}
    assert strict(np.float64("nan")) is None
    with pytest.raises(ValueError, match="infinite"):
        strict([math.inf])
    with pytest.raises(TypeError, match="no JSON form"):
        strict({"a": object()})


@settings(deadline=None)
@given(bool_masks)
def test_rle_comes_back_exactly_through_json(mask):
    rle = json.loads(json.dumps(encode_mask(mask)))
    assert decode_mask(rle).dtype == bool
    assert np.array_equal(decode_mask(rle), mask)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "numbers.txt"
    write_atomic(path, lambda file: file.write(b"old"))

    def breaks(file):
        file.write(b"half of the ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, breaks)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["numbers.txt"]


@settings(deadline=None, max_examples=200)
@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_stems_are_safe_and_differ_where_phrases_do(left, right):
    stems = [file_stem("a/../b", phrase) for phrase in (left, right)]
    assert all(stem.isascii() and len(stem) < 80 for stem in stems)
    assert not any(set(stem) & set("/\\: *?\"<>|'\n") for stem in stems)
    assert (stems[0] == stems[1]) == (left == right)


def test_stems_read_well():
    assert file_stem("p01_003") == "p01_003"
    assert file_stem("p01_003", "left main coronary artery") == "p01_003__left-main-coronary-artery"
    assert file_stem("../../etc/passwd") == "_.._etc_passwd"
    assert file_stem("...") == "_"
    assert file_stem("a", "x-y") != file_stem("a", "x y")


@pytest.mark.parametrize("kind", ["png", "npz", "none"])
def test_probability_files_hold_the_map(tmp_path, kind):
    probability = np.random.default_rng(0).random((7, 5), dtype=np.float32)
    probability[0, :2] = 0, 1
    writer = ResultsWriter(tmp_path, kind, save_masks=True)
    writer.write_row("f", probability, probability >= 0.5)
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "masks" / "f.png")), (probability >= 0.5) * np.uint8(255)
    )
    if kind == "none":
        assert sorted(os.listdir(tmp_path)) == ["masks"]
        return
    path = tmp_path / "probabilities" / f"f.{kind}"
    assert os.listdir(path.parent) == [path.name]
    if kind == "npz":
        loaded = np.load(path)["probability"]
        assert loaded.dtype == np.float16
        assert np.array_equal(loaded, probability.astype(np.float16))
    else:
        loaded = np.asarray(Image.open(path))
        assert loaded.dtype == np.uint8 and loaded[0, 0] == 0 and loaded[0, 1] == 255
        assert np.abs(loaded / 255 - probability).max() <= 0.5 / 255 + 1e-6


def some_frames() -> list[FrameResult]:
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    rle, empty = encode_mask(mask), encode_mask(~mask & mask)
    some, none = Scores(Counts(6, 0, 0, 18)), Scores(Counts(0, 0, 0, 24))
    rows = (
        Row("left, main", some, True, 'Sure, "[SEG]".\n', "a__1", prediction_rle=rle),
        Row("right", none, False, "No.", "a__2", prediction_rle=empty),
    )
    return [FrameResult(0, "a", "P1", "/secret/a.png", rows)]


def test_csv_has_a_line_per_row_and_leaves_undefined_empty(tmp_path):
    ResultsWriter(tmp_path, "none", False).write_table(frame_records(some_frames()), OVERLAP_NAMES)
    with open(tmp_path / "per_frame.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["phrase"] for line in lines] == ["left, main", "right"]
    assert lines[0]["answer"] == 'Sure, "[SEG]".\n' and lines[0]["dice"] == "1.0"
    assert lines[1]["dice"] == "" and lines[1]["recall"] == "" and lines[1]["accuracy"] == "1.0"
    assert [lines[1][name] for name in ("tp", "fp", "fn", "tn")] == ["0", "0", "0", "24"]
    assert "/secret" not in (tmp_path / "per_frame.csv").read_text()


def test_masks_json_loads_with_pycocotools(tmp_path):
    frames = some_frames()
    ResultsWriter(tmp_path, "none", True).write_masks(frames)
    entries = json.loads((tmp_path / "masks.json").read_text(), parse_constant=no_constant)
    assert [(entry["image_id"], entry["category"]) for entry in entries] == [
        *(("a", "left, main"), ("a", "right"))
    ]
    assert [int(coco_mask.area(entry["segmentation"])) for entry in entries] == [6, 0]


def test_a_folder_that_cannot_be_written_to_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SetupError, match="cannot be written to"):
        ResultsWriter(tmp_path / "file" / "out", "png", True)


def test_files_of_another_run_are_noticed(tmp_path):
    writer = ResultsWriter(tmp_path, "png", True)
    for stem in ("new", "old"):
        writer.write_row(stem, np.zeros((2, 2), np.float32), np.zeros((2, 2), bool))
    assert writer.strangers({"new"}) == ["masks/old.png", "probabilities/old.png"]
    assert writer.strangers({"new", "old"}) == []

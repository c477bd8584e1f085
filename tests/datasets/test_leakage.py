"""Near-duplicates between splits, and the record of training frames."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from projects.sa2va.datasets.integrity import check_splits
from projects.sa2va.datasets.leakage import check_unseen, training_record
from projects.sa2va.datasets.synthetic.on_the_fly import SyntheticVesselDataset
from projects.sa2va.errors import DataError

PATIENT = {"type": "regex", "pattern": r"^(P\d+)_"}
QUIET = {"progress": False}


def smooth_frames(folder, count, seed):
    """Replaces the noise of a COCO folder by smooth pictures, which survive compression."""
    rng = np.random.default_rng(seed)
    for path in sorted((folder / "images").iterdir())[:count]:
        small = Image.fromarray(rng.integers(40, 200, (8, 10), np.uint8))
        small.resize((40, 30), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def splits(make_coco, tmp_path):
    """Train and test of 3 smooth frames each; nothing is shared."""
    made = {"train": make_coco("train", 3), "test": make_coco("test", 3)}
    for seed, name in enumerate(made):
        smooth_frames(tmp_path / name, 3, seed)
    return made


def leak(splits, change):
    """Puts a changed copy of a training frame into the test split."""
    with Image.open(splits["train"].records[1].image_path) as image:
        change(image).save(splits["test"].records[0].image_path)


def brighter(image):
    return ImageEnhance.Brightness(image).enhance(1.2)


def test_separate_frames_pass(splits):
    check_splits(splits, **QUIET)
    assert check_unseen({"test": splits["test"]}, training_record(splits["train"]), "x.pth") == []


def test_a_brightened_copy_is_refused_unless_it_is_allowed(splits):
    leak(splits, brighter)
    with pytest.raises(DataError, match=r"1 near-duplicates in two splits: train/P00_1 ~ test/P00"):
        check_splits(splits, **QUIET)
    for allow in (True, ["test/P00_0"], ["train/P00_1", "test/other"]):
        warning = check_splits(splits, allow_near_duplicates=allow, **QUIET)[0]
        assert warning.startswith("1 near-duplicates in two splits, allowed: train/P00_1 ~ test/P")
    with pytest.raises(DataError, match="allow_near_duplicates"):
        check_splits(splits, allow_near_duplicates=["test/P01_2"], **QUIET)


def test_equal_frames_are_told_once(splits):
    leak(splits, lambda image: image.copy())
    with pytest.raises(DataError) as caught:
        check_splits(splits, **QUIET)
    assert "1 images in two splits" in str(caught.value)
    assert "near-duplicates" not in str(caught.value)


def test_the_record_tells_the_frames_without_pictures_or_names(splits):
    record = training_record(splits["train"])
    assert len(record["pixels"]) == 3 * 16 and len(record["perceptual"]) == 3 * 64
    text = json.dumps(record)
    assert "P00" not in text and ".png" not in text
    assert json.loads(text) == record


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda image: image.copy(), "1 frames that it was trained on: test/P00_0"),
        (brighter, "1 near-duplicates of frames that it was trained on: test/P00_0"),
    ],
)
def test_a_leak_is_found_by_the_record_alone(splits, change, text):
    record = training_record(splits["train"])
    leak(splits, change)
    with pytest.raises(DataError) as caught:
        check_unseen({"test": splits["test"]}, record, "iter_2.pth")
    assert "iter_2.pth" in str(caught.value) and text in str(caught.value)
    near = "near" in text
    if near:
        (said,) = check_unseen({"test": splits["test"]}, record, "x", ["test/P00_0"])
        assert "allowed: test/P00_0" in said
    else:
        with pytest.raises(DataError):
            check_unseen({"test": splits["test"]}, record, "x", True)


def test_patients_of_the_record(make_coco, tmp_path, monkeypatch):
    train = make_coco("a", 4, seed=0, patient=PATIENT, indices=[0, 1, 2])
    test = {"test": make_coco("b", 4, seed=1, patient=PATIENT, indices=[3])}
    record = training_record(train)
    alias = test["test"].patients[0]
    assert record["patients"] == {train.pseudonym_check: sorted(set(train.patients))}
    with pytest.raises(DataError, match=f"1 patients of test that it was trained on: {alias}"):
        check_unseen(test, record, "x.pth")
    monkeypatch.setenv("SECRET", "other")
    keyed = make_coco("c", 4, seed=1, patient={**PATIENT, "key_env": "SECRET"}, indices=[3])
    (said,) = check_unseen({"test": keyed}, record, "x.pth")
    assert "pseudonyms of another key" in said
    (said,) = check_unseen({"test": make_coco("d", 4, seed=1)}, record, "x.pth")
    assert "which the config lacks" in said
    bare = training_record(make_coco("e", 4, seed=2))
    (said,) = check_unseen(test, bare, "x.pth")
    assert "no patient ids" in said


def test_frames_of_the_run_before_count_too(splits, make_coco):
    before = training_record(splits["train"])
    record = training_record(splits["test"], before)
    assert len(record["pixels"]) == 6 * 16
    assert training_record(splits["train"], before) == before
    with pytest.raises(DataError, match="3 frames that it was trained on"):
        check_unseen({"val": splits["train"]}, record, "x.pth")


def test_a_broken_record(splits):
    record = {**training_record(splits["train"]), "pixels": "abc"}
    with pytest.raises(DataError, match="broken\\) `pixels`"):
        check_unseen({"test": splits["test"]}, record, "x.pth")


def test_patients_stay_known_over_runs_without_them_or_with_another_key(make_coco, monkeypatch):
    train = make_coco("a", 4, seed=0, patient=PATIENT, indices=[0, 1, 2])
    record = training_record(make_coco("b", 3, seed=1), training_record(train))
    assert len(record["pixels"]) == 16 * 6
    test = {"test": make_coco("c", 4, seed=2, patient=PATIENT, indices=[3])}
    alias = test["test"].patients[0]
    monkeypatch.setenv("SECRET", "other")
    keyed = make_coco("d", 4, seed=3, patient={**PATIENT, "key_env": "SECRET"}, indices=[0])
    for last in (record, training_record(keyed, record)):
        last = json.loads(json.dumps(last))
        with pytest.raises(DataError, match=f"1 patients of test that it was trained on: {alias}"):
            check_unseen(test, last, "x.pth")
    other = make_coco("e", 6, seed=4, patient=PATIENT, indices=[4, 5])
    assert not set(other.patients) & set(train.patients)
    said = check_unseen({"test": other}, training_record(keyed, record), "x.pth")
    assert [text.split(": ")[1] for text in said] == [
        "some frames of the training run have no patient ids",
        "some frames of the training run have pseudonyms of another key",
    ]
    (said,) = check_unseen({"test": make_coco("f", 2, seed=5)}, record, "x.pth")
    assert "have patient ids, which the config lacks" in said


def test_a_record_of_one_key_as_it_was_written_at_first(make_coco):
    train = make_coco("a", 4, seed=0, patient=PATIENT, indices=[0, 1, 2])
    record = training_record(train)
    ((check, names),) = record["patients"].items()
    first = {**record, "patients": names, "pseudonym_check": check}
    test = {"test": make_coco("b", 4, seed=1, patient=PATIENT, indices=[3])}
    with pytest.raises(DataError, match="1 patients of test that it was trained on"):
        check_unseen(test, first, "x.pth")
    bare = {**training_record(make_coco("c", 4, seed=2)), "patients": [], "pseudonym_check": None}
    assert training_record(train, bare)["patients"] == {"": [], check: names}


def test_patients_stay_known_over_a_run_on_drawn_frames(make_coco, processor):
    before = training_record(make_coco("a", 2, seed=0, patient=PATIENT))
    drawn = SyntheticVesselDataset(2, size=64, processor=processor)
    assert training_record(drawn, before) == before

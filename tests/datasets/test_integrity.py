from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from projects.sa2va.datasets import CocoVesselDataset, FolderVesselDataset
from projects.sa2va.datasets.hashes import image_hashes, split_hash
from projects.sa2va.datasets.integrity import check_dataset, check_splits
from projects.sa2va.errors import ConfigError, DataError

QUIET = {"progress": False}
PATIENT = {"type": "regex", "pattern": r"^(P\d+)_"}


def test_good_data_pass(load_coco):
    for verify in ("full", "header", "off"):
        report = check_dataset(load_coco(), verify, **QUIET)
        assert (report.frames, report.empty, report.warnings) == (3, [], [])


def test_truncated_image_is_found_by_full_and_not_by_header(load_coco, coco_folder, truncate):
    dataset = load_coco()
    truncate(coco_folder.root / "images" / "P00_1.png")
    assert check_dataset(dataset, "header", **QUIET).frames == 3
    with pytest.raises(DataError, match=r"P00_1\.png cannot be read.*truncated"):
        check_dataset(dataset, "full", **QUIET)


def test_all_findings_are_collected_and_counted_past_20(make_coco, tmp_path, truncate):
    dataset = make_coco("many", count=25)
    (tmp_path / "many" / "images" / "P00_0.png").unlink()
    Image.new("L", (10, 10)).save(tmp_path / "many" / "images" / "P00_1.png")
    for record in dataset.records[2:]:
        truncate(record.image_path)
    with pytest.raises(DataError) as caught:
        check_dataset(dataset, **QUIET)
    message = str(caught.value)
    assert "25 problems" in message and "and 5 more" in message
    assert "P00_0.png does not exist" in message and "P00_1.png is 10 x 10 px now" in message
    assert "P01_2.png cannot be read" in message
    with pytest.raises(DataError, match=r"(?s)2 problems.*P00_0.*P00_1\.png is 10 x 10 px, its"):
        check_dataset(dataset, "header", **QUIET)


def test_mask_files_are_checked_too(tmp_path, processor, truncate):
    noise = np.random.default_rng(0).integers(0, 255, (30, 40), np.uint8)
    for name in ("i/a.png", "i/b.png", "m/a.png", "m/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / name)
    dataset = FolderVesselDataset("i", "m", data_root=tmp_path, processor=processor)
    truncate(tmp_path / "m" / "a.png")
    Image.new("L", (20, 10)).save(tmp_path / "m" / "b.png")
    with pytest.raises(DataError, match=r"(?s)m/a\.png cannot be read.*m/b\.png is 20 x 10 px"):
        check_dataset(dataset, **QUIET)
    with pytest.raises(DataError, match=r"m/b\.png is 20 x 10 px, its image is 40 x 30 px"):
        check_dataset(dataset, "header", **QUIET)


def test_warnings(load_coco, coco_folder):
    data, images = coco_folder.data, coco_folder.root / "images"
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 0]
    data["annotations"][0]["segmentation"] = [[0, 0, 40, 0, 40, 25, 0, 25]]
    Image.open(images / "P00_0.png").save(images / "P00_1.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    data["images"][2]["file_name"] = "turned.jpg"
    Image.new("L", (40, 30)).save(images / "turned.jpg", exif=exif)
    report = check_dataset(load_coco(mode="union"), **QUIET)
    assert report.empty == ["P00_0"]
    text = "\n".join(report.warnings)
    assert "1 frames with an empty mask (nothing is labelled there): P00_0.png" in text
    assert "more than half of the image labelled (is the mask inverted?): P00_1.png" in text
    assert "EXIF orientation, which is not applied: turned.jpg" in text
    assert "equal pixels: P00_0.png = P00_1.png" in text
    assert len(report.warnings) == 4


def test_zero_frames_and_unknown_level(load_coco):
    dataset = load_coco()
    with pytest.raises(ConfigError, match="did you mean 'header'"):
        check_dataset(dataset, "heder")
    dataset.records.clear()
    with pytest.raises(DataError, match="zero frames in CocoVesselDataset"):
        check_dataset(dataset, "off")


def test_separate_splits_pass_and_say_what_was_not_checked(make_coco):
    splits = {"train": make_coco("a", seed=0), "val": make_coco("b", seed=1)}
    (warning,) = check_splits(splits, **QUIET)
    assert "no patient ids for train, val" in warning


def test_the_same_image_in_two_splits(make_coco, tmp_path):
    splits = {"train": make_coco("a", 3, seed=0), "test": make_coco("b", 3, seed=1)}
    # The same pixels saved again: other bytes, which only the full check sees through.
    source = Image.open(splits["train"].records[2].image_path)
    source.save(splits["test"].records[0].image_path, compress_level=0)
    with pytest.raises(DataError, match=r"1 images in two splits: train/P01_2.png = test/P00_0"):
        check_splits(splits, **QUIET)
    fresh = {"train": make_coco("a", 3, seed=0), "test": splits["test"]}
    assert check_splits(fresh, "header", **QUIET)
    copied = {"train": splits["train"], "test": make_coco("c", 3, seed=0)}
    for verify in ("full", "header"):
        with pytest.raises(DataError, match="3 images in two splits"):
            check_splits(copied, verify, **QUIET)
    assert check_splits(copied, "off", **QUIET)
    many = {"train": make_coco("d", 14, seed=5), "test": make_coco("e", 14, seed=5)}
    with pytest.raises(DataError, match=r"14 images in two splits.* and 4 more"):
        check_splits(many, **QUIET)


def test_the_same_patient_in_two_splits(make_coco):
    splits = {
        "train": make_coco("a", 4, seed=0, patient=PATIENT, indices=[0, 1, 2]),
        "val": make_coco("b", 4, seed=1, patient=PATIENT, indices=[3]),
    }
    alias = splits["val"].patients[0]
    with pytest.raises(DataError, match=rf"1 patients in two splits: {alias} \(train/P01_2.png, v"):
        check_splits(splits, **QUIET)
    with pytest.raises(DataError, match="1 patients in two splits"):
        check_splits(splits, "off")
    apart = {**splits, "train": make_coco("c", 4, seed=2, patient=PATIENT, indices=[0, 1])}
    assert check_splits(apart, **QUIET) == []


def test_hashes_are_read_once(load_coco):
    dataset = load_coco()
    check_dataset(dataset, **QUIET)
    for record in dataset.records:
        record.image_path.unlink()
    assert len(set(image_hashes(dataset))) == 3
    with pytest.raises(DataError, match=r"(?s)3 problems.*P00_0\.png cannot be read"):
        image_hashes(dataset, "bytes")


def test_split_hash_stands_for_content_alone(load_coco, coco_folder, tmp_path, processor):
    first = split_hash(load_coco())
    assert len(first) == 64 and first == split_hash(load_coco())
    coco_folder.data["images"].reverse()
    assert split_hash(load_coco()) == first
    coco_folder.root.rename(tmp_path / "moved")
    moved = CocoVesselDataset(
        "ann.json", "images", data_root=tmp_path / "moved", processor=processor
    )
    assert split_hash(moved) == first
    (tmp_path / "moved").rename(coco_folder.root)
    assert split_hash(load_coco(phrase="vein")) != first
    assert split_hash(load_coco(limit=2)) != first
    coco_folder.data["annotations"][0]["segmentation"][0][0] += 0.5
    assert split_hash(load_coco()) != first
    coco_folder.data["annotations"][0]["segmentation"][0][0] -= 0.5
    assert split_hash(load_coco()) == first
    Image.new("L", (40, 30)).save(coco_folder.root / "images" / "P00_0.png")
    assert split_hash(load_coco()) != first


def test_arcade_and_its_splits(shared_dir, processor):
    root = shared_dir / "data" / "arcade" / "syntax"
    splits = {
        s: CocoVesselDataset(
            f"{s}/annotations/{s}.json", f"{s}/images", data_root=root, processor=processor, limit=n
        )
        for s, n in (("train", 40), ("val", 20), ("test", 20))
    }
    for dataset in splits.values():
        report = check_dataset(dataset, workers=1, **QUIET)
        assert report.warnings == [] and report.empty == []
    assert len(check_splits(splits, **QUIET)) == 1
    assert len(check_splits(splits, "header", **QUIET)) == 1

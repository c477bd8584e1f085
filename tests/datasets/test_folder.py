from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from projects.sa2va.datasets import FolderVesselDataset
from projects.sa2va.errors import ConfigError, DataError


def save(path, size=(40, 30), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size[::-1], value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        save(tmp_path / "images" / f"f{i}.{('png', 'jpg', 'tif')[i]}")
        save(tmp_path / "masks" / f"f{i}.png", value=i)
    (tmp_path / "images" / "Thumbs.db").write_text("x")
    (tmp_path / "images" / "._f0.png").write_text("left by a file system")
    return tmp_path


@pytest.fixture
def load(folder, processor):
    def build(image_dir="images", mask_dir="masks", **kwargs):
        return FolderVesselDataset(
            image_dir, mask_dir, data_root=folder, processor=processor, **kwargs
        )

    return build


def test_pairs_by_stem_whatever_the_suffix(load):
    dataset = load(phrase="vein", test_mode=True)
    assert dataset.frame_ids == ["f0", "f1", "f2"]
    assert [int(dataset[i]["truth"].sum()) for i in range(3)] == [0, 1200, 1200]
    assert dataset[0]["meta"]["phrases"] == ["vein"]


def test_images_and_masks_in_one_folder_by_suffix(tmp_path, processor):
    for name in ("a.jpg", "a_1stHO.png", "a_2ndHO.png", "b.jpg", "b_1stHO.png"):
        save(tmp_path / name)
    dataset = FolderVesselDataset(
        ".", ".", "_1stHO", image_glob="*.jpg", data_root=tmp_path, processor=processor
    )
    assert [r.objects[0].mask_path.name for r in dataset.records] == ["a_1stHO.png", "b_1stHO.png"]
    assert [r.name for r in dataset.records] == ["a.jpg", "b.jpg"]
    (tmp_path / "a_2ndHO.png").unlink()
    plain = FolderVesselDataset(".", ".", "_1stHO", data_root=tmp_path, processor=processor)
    assert [r.name for r in plain.records] == ["a.jpg", "b.jpg"]


def test_one_folder_without_suffix(load):
    with pytest.raises(ConfigError, match="is image_dir and mask_dir"):
        load("images", "images")


def test_pairs_that_do_not_match_are_listed(load, folder):
    save(folder / "images" / "lonely.png")
    save(folder / "masks" / "ghost.png")
    with pytest.raises(DataError) as caught:
        load()
    assert "1 images without a mask: lonely" in str(caught.value)
    assert "1 masks without an image: ghost" in str(caught.value)


def test_mask_of_another_size(load, folder):
    save(folder / "masks" / "f1.png", size=(20, 15))
    with pytest.raises(DataError, match=r"f1\.png is 20 x 15 px, its image is 40 x 30 px"):
        load()


def test_two_files_of_one_stem(load, folder):
    save(folder / "images" / "f0.jpg")
    with pytest.raises(DataError, match=r"2 files of the stem 'f0' in .*f0\.jpg, f0\.png"):
        load()


def test_zero_frames_names_the_folders_below(load, folder):
    save(folder / "deep" / "train" / "x.png")
    with pytest.raises(DataError, match=r"(?s)zero frames.*folders train.*recursive=True"):
        load("deep")
    with pytest.raises(DataError, match="zero frames: no image files with stems ending in '_x'"):
        load(mask_suffix="_x")
    with pytest.raises(DataError, match=r"nowhere is no folder"):
        load("nowhere")


def test_unreadable_file_is_named(load, folder):
    (folder / "images" / "f0.png").write_text("x")
    with pytest.raises(DataError, match=r"f0\.png is not an image"):
        load()


def test_recursive_keeps_names_unique(folder, load):
    for part in ("p1", "p2"):
        save(folder / "images" / part / "f0.png")
        save(folder / "masks" / part / "f0.png", value=255)
    dataset = load(recursive=True)
    assert len(dataset) == 5 and len(set(dataset.frame_ids)) == 5
    assert {"p1_f0", "p2_f0", "f1", "f2"} < set(dataset.frame_ids)
    assert dataset.masks(dataset.frame_ids.index("p2_f0")).all()


def test_chase_db1(shared_dir, processor):
    root = shared_dir / "data" / "chase_db1"
    patient = {"type": "regex", "pattern": r"^Image_(\d+)[LR]"}
    splits = {
        split: FolderVesselDataset(
            f"images/{split}",
            f"masks/{split}",
            data_root=root,
            processor=processor,
            patient=patient,
            test_mode=True,
        )
        for split in ("train", "test")
    }
    assert [len(d) for d in splits.values()] == [20, 8]
    assert splits["test"].metainfo["patients"] == 4
    assert not set(splits["train"].patients) & set(splits["test"].patients)
    item = splits["test"][0]
    assert item["truth"].shape == (1, 960, 999) and 0.04 < item["truth"].float().mean() < 0.12
    assert "Image" not in item["meta"]["frame"] and item["meta"]["patient"].startswith("patient_")

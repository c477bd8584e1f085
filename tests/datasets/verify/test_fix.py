"""Corrected copies: rescaled labels, and a source that is never touched."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projects.sa2va.datasets import CocoVesselDataset
from projects.sa2va.datasets.verify.fix import parse_size, write_fixed
from projects.sa2va.errors import ConfigError, DataError
from tests.datasets.conftest import PROCESSOR, CocoFolder


@pytest.fixture
def coco(tmp_path) -> CocoFolder:
    folder = CocoFolder(tmp_path / "data", count=8)
    folder.write()
    return folder


def cfg_of(folder: CocoFolder) -> dict:
    dataset = {
        "type": "CocoVesselDataset",
        "processor": PROCESSOR,
        "data_root": str(folder.root),
        "ann_file": "ann.json",
        "image_dir": "images",
    }
    return {"train_dataloader": {"dataset": dataset}}


def draw_at(folder: CocoFolder, factor: float, header: bool = True) -> None:
    """Draws the labels as on images of ``factor`` times the size."""
    for image in folder.data["images"] if header else ():
        image.update(width=round(40 * factor), height=round(30 * factor))
    for annotation in folder.data["annotations"]:
        annotation["segmentation"] = [
            [value * factor for value in polygon] for polygon in annotation["segmentation"]
        ]
    folder.write()


def masks(root) -> np.ndarray:
    data = CocoVesselDataset("ann.json", "images", data_root=root, processor=PROCESSOR)
    return np.stack([data.masks(index) for index in range(len(data))])


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(factor=st.sampled_from([0.5, 1.5, 1.6, 3.0]))
def test_labels_are_rescaled_to_the_images(factor, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("fix")
    folder = CocoFolder(tmp_path / "data", count=6)
    folder.write()
    wanted = masks(folder.root)
    # Near the lower right corner, so that it is certain at which size they were drawn.
    folder.data["annotations"][0]["segmentation"] = [[28, 18, 39, 18, 39, 29, 28, 29]]
    folder.write()
    wanted = masks(folder.root)
    draw_at(folder, factor)
    before = {p: p.read_bytes() for p in folder.root.rglob("*.*")}
    changes = write_fixed(cfg_of(folder), tmp_path / "fixed")
    assert (masks(tmp_path / "fixed") == wanted).all()
    assert {p: p.read_bytes() for p in folder.root.rglob("*.*")} == before
    told = json.loads((tmp_path / "fixed" / "changes.json").read_text())
    assert told == changes.rows and len(told) == 6 + 12


def test_only_the_written_size_is_wrong(coco, tmp_path):
    wanted = masks(coco.root)
    for image in coco.data["images"]:
        image.update(width=80, height=60)
    coco.write()
    changes = write_fixed(cfg_of(coco), tmp_path / "fixed")
    assert {row["change"] for row in changes.rows} == {"size in the file"}
    assert (masks(tmp_path / "fixed") == wanted).all()


def test_too_few_frames_to_tell(coco, tmp_path):
    coco.data["images"] = coco.data["images"][:2]
    coco.data["annotations"] = coco.data["annotations"][:4]
    for image in coco.data["images"]:
        image.update(width=80, height=60)
    coco.write()
    changes = write_fixed(cfg_of(coco), tmp_path / "fixed")
    assert changes.rows == [] and "too few to tell" in changes.left[0]


def test_a_size_that_the_file_does_not_say(coco, tmp_path):
    wanted = masks(coco.root)
    draw_at(coco, 3.0, header=False)
    changes = write_fixed(cfg_of(coco), tmp_path / "a")
    assert changes.rows == [] and "give --labels-size" in changes.left[0]
    write_fixed(cfg_of(coco), tmp_path / "b", labels_size=(120, 90))
    assert (masks(tmp_path / "b") == wanted).all()
    with pytest.raises(DataError, match="labels reach x 51"):
        write_fixed(cfg_of(coco), tmp_path / "c", labels_size=(48, 36))
    assert not (tmp_path / "c").exists()


def test_another_aspect_ratio_is_left_alone(coco, tmp_path):
    for image in coco.data["images"]:
        image.update(width=40, height=60)
    coco.write()
    assert "aspect ratio" in write_fixed(cfg_of(coco), tmp_path / "fixed").left[0]


def test_short_polygons_are_left_out(coco, tmp_path):
    coco.data["annotations"][0]["segmentation"] = [[1, 1, 9, 9]]
    coco.data["annotations"][1]["segmentation"].append([3, 3])
    coco.write()
    changes = write_fixed(cfg_of(coco), tmp_path / "fixed")
    assert len(changes.rows) == 2
    fixed = json.loads((tmp_path / "fixed" / "ann.json").read_text())
    assert len(fixed["annotations"]) == len(coco.data["annotations"]) - 1
    assert masks(tmp_path / "fixed").any()


def test_the_references_format(coco, tmp_path):
    region = [2.0, 2.0, 24.0, 2.0, 24.0, 24.0]
    entries = [
        {"image": i["file_name"], "mask": [[region], [[1, 1]]], "text": ["vessel", "dot"]}
        for i in coco.data["images"]
    ]
    (coco.root / "ann.json").write_text(json.dumps(entries))
    cfg = copy.deepcopy(cfg_of(coco))
    cfg["train_dataloader"]["dataset"]["type"] = "Sa2VAJsonDataset"
    write_fixed(cfg, tmp_path / "fixed", labels_size=(80, 60))
    fixed = json.loads((tmp_path / "fixed" / "ann.json").read_text())
    assert fixed[0]["mask"] == [[[value / 2 for value in region]]]
    assert fixed[0]["text"] == ["vessel"]


def test_folders_that_are_refused(coco, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    inside = [coco.root, coco.root / "fixed", tmp_path, tmp_path / "mine"]
    for out in inside:
        with pytest.raises(ConfigError, match="--fix"):
            write_fixed(cfg_of(coco), out)
    link = tmp_path / "link"
    link.symlink_to(coco.root)
    with pytest.raises(ConfigError, match="never changed"):
        write_fixed(cfg_of(coco), link / "fixed")
    assert {p.name for p in coco.root.iterdir()} == {"ann.json", "images"}


def test_images_beside_their_annotations(coco, tmp_path):
    cfg = cfg_of(coco)
    cfg["train_dataloader"]["dataset"]["image_dir"] = "."
    for image in coco.data["images"]:
        image["file_name"] = f"images/{image['file_name']}"
        image.update(width=80, height=60)
    coco.write()
    before = (coco.root / "ann.json").read_bytes()
    write_fixed(cfg, tmp_path / "fixed")
    assert (coco.root / "ann.json").read_bytes() == before
    data = CocoVesselDataset("ann.json", ".", data_root=tmp_path / "fixed", processor=PROCESSOR)
    assert len(data) == 8 and data.image(0).shape == (30, 40, 3)


def test_sizes():
    assert parse_size("800x600") == (800, 600)
    for text in ("800", "0x5", "800X600"):
        with pytest.raises(ConfigError, match="--labels-size"):
            parse_size(text)

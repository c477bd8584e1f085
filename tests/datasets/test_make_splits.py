"""Split files: read by the readers, the same bytes for the same frames, never over others."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from PIL import Image

from projects.sa2va.datasets import CocoVesselDataset, FolderVesselDataset, Sa2VAJsonDataset
from projects.sa2va.datasets.make_splits import make_splits, options, source_configs
from projects.sa2va.errors import ConfigError, DataError

from .conftest import CocoFolder

PATTERN = r"^(P\d+)_"
QUIET = {"progress": False}


@pytest.fixture
def coco(tmp_path) -> CocoFolder:
    """12 frames of 6 patients."""
    folder = CocoFolder(tmp_path / "coco", count=12)
    folder.write()
    return folder


def configs_of(coco, **more):
    options = {"images": str(coco.root / "images"), "patient": PATTERN} | more
    return source_configs(coco.root / "ann.json", **options)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_the_reader_reads_them_and_no_patient_is_shared(coco, tmp_path, processor):
    out = tmp_path / "out"
    rows = make_splits(configs_of(coco), out, ratios=(0.5, 0.25, 0.25), **QUIET)
    assert [row.file for row in rows] == ["train.json", "val.json", "test.json"]
    assert sum(row.patients for row in rows) == 6
    seen = {}
    for row in rows:
        data = CocoVesselDataset(
            out / row.file,
            coco.root / "images",
            processor=processor,
            patient={"type": "regex", "pattern": PATTERN},
        )
        assert len(data) == row.frames
        for record in data.records:
            assert seen.setdefault(record.patient_raw, row.file) == row.file
            assert len(record.objects[0].polygons) == 2
    assert len(seen) == 6 and sum(row.frames for row in rows) == 12


def test_the_order_of_the_file_changes_no_byte(coco, tmp_path):
    make_splits(configs_of(coco), tmp_path / "a", fold_count=3, **QUIET)
    shuffler = random.Random(1)
    for name in ("images", "annotations"):
        shuffler.shuffle(coco.data[name])
    new = {image["id"]: 100 - image["id"] for image in coco.data["images"]}
    for image in coco.data["images"]:
        image["id"] = new[image["id"]]
    for number, annotation in enumerate(coco.data["annotations"]):
        annotation.update(id=number + 50, image_id=new[annotation["image_id"]])
    coco.write()
    make_splits(configs_of(coco), tmp_path / "b", fold_count=3, **QUIET)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 10
    make_splits(configs_of(coco), tmp_path / "c", fold_count=3, seed=1, **QUIET)
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_every_frame_is_tested_in_one_fold(coco, tmp_path):
    make_splits(configs_of(coco), tmp_path / "out", fold_count=4, **QUIET)
    tested = []
    for k in range(4):
        files = [tmp_path / f"out/fold_{k}/{split}.json" for split in ("train", "val", "test")]
        parts = [
            {image["file_name"] for image in json.loads(path.read_text())["images"]}
            for path in files
        ]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 12
        tested += parts[2]
    assert len(tested) == len(set(tested)) == 12


def test_without_patients_it_has_to_be_said(coco, tmp_path):
    configs = configs_of(coco, patient=None)
    with pytest.raises(ConfigError, match="12 of 12 frames without a patient id") as caught:
        make_splits(configs, tmp_path / "out", ratios=(0.5, 0.5), **QUIET)
    assert "--unit frame" in caught.value.fix
    assert not (tmp_path / "out").exists()
    rows = make_splits(configs, tmp_path / "out", ratios=(0.5, 0.5), unit="frame", **QUIET)
    assert [row.frames for row in rows] == [6, 6]


def test_near_duplicates_stay_together(coco, tmp_path):
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(40, 200, (8, 10), np.uint8))
    picture = small.resize((40, 30), Image.Resampling.BICUBIC)
    twins = ["P00_0.png", "P03_6.png", "P05_11.png"]
    for number, name in enumerate(twins):
        brighter = picture.point(lambda v, plus=5 * number: v + plus)
        brighter.save(coco.root / "images" / name)
    configs = configs_of(coco, patient=None)
    for seed in range(4):
        out = tmp_path / f"out{seed}"
        make_splits(configs, out, ratios=(0.5, 0.5), unit="frame", seed=seed, **QUIET)
        names = {i["file_name"] for i in json.loads((out / "train.json").read_text())["images"]}
        assert len(names & set(twins)) in (0, 3)


def test_nothing_is_overwritten_unasked(coco, tmp_path):
    configs, out = configs_of(coco), tmp_path / "out"
    make_splits(configs, out, fold_count=4, **QUIET)
    before = contents(out)
    with pytest.raises(ConfigError, match="holds splits"):
        make_splits(configs, out, ratios=(0.5, 0.5), **QUIET)
    assert contents(out) == before
    make_splits(configs, out, ratios=(0.5, 0.5), force=True, **QUIET)
    assert sorted(contents(out)) == ["splits.json", "train.json", "val.json"]
    assert not list(out.glob("fold_*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="was not written by"):
        make_splits(configs, tmp_path / "mine", ratios=(0.5, 0.5), force=True, **QUIET)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "ratios None and None folds"),
        ({"ratios": (1.0,)}, "ratios"),
        ({"ratios": (0.5, 0.6)}, "add up to 1"),
        ({"fold_count": 2}, "--folds 2"),
        ({"fold_count": 7}, "for 7 splits"),
    ],
)
def test_what_cannot_be(coco, tmp_path, arguments, text):
    with pytest.raises(ConfigError) as caught:
        make_splits(configs_of(coco), tmp_path / "out", **arguments, **QUIET)
    assert text in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_images(tmp_path, processor):
    rng = np.random.default_rng(0)
    for folder in ("i", "m"):
        (tmp_path / folder).mkdir()
    for k in range(6):
        Image.fromarray(rng.integers(0, 255, (30, 40), np.uint8)).save(tmp_path / f"i/P{k}_a.png")
        Image.fromarray(rng.integers(0, 2, (30, 40), np.uint8)).save(tmp_path / f"m/P{k}_a.png")
    configs = source_configs(tmp_path / "i", masks=str(tmp_path / "m"), patient=PATTERN)
    rows = make_splits(configs, tmp_path / "out", ratios=(0.5, 0.5), **QUIET)
    paths = dict(image_dir=tmp_path / "i", mask_dir=tmp_path / "m", processor=processor)
    found = [FolderVesselDataset(**paths, frames_file=tmp_path / "out" / r.file) for r in rows]
    assert [len(data) for data in found] == [3, 3]
    names = {record.name for data in found for record in data.records}
    assert len(names) == 6
    assert f"train_dataloader.dataset.frames_file={tmp_path / 'out' / 'train.txt'}" in options(
        tmp_path / "out"
    )
    (tmp_path / "out" / "train.txt").write_text("P0_a.png\nP9_a.png\n")
    with pytest.raises(DataError, match=r"lists 1 images that are not there: P9_a\.png"):
        FolderVesselDataset(**paths, frames_file=tmp_path / "out" / "train.txt")
    with pytest.raises(DataError, match="cannot be read"):
        FolderVesselDataset(**paths, frames_file=tmp_path / "none.txt")


def test_the_references_format(coco, tmp_path, processor):
    region = [[2, 2, 12, 2, 12, 12]]
    entries = [
        {"image": image["file_name"], "mask": [region], "text": ["vessel"]}
        for image in coco.data["images"]
    ]
    (coco.root / "own.json").write_text(json.dumps(entries))
    configs = source_configs(
        coco.root / "own.json", images=str(coco.root / "images"), patient=PATTERN
    )
    rows = make_splits(configs, tmp_path / "out", ratios=(0.5, 0.5), **QUIET)
    data = [
        Sa2VAJsonDataset(tmp_path / "out" / r.file, coco.root / "images", processor=processor)
        for r in rows
    ]
    assert sorted(len(d) for d in data) == [6, 6]


def test_sources_that_are_none(coco, tmp_path):
    for source in (coco.root / "ann.json", coco.root / "images", tmp_path / "x.txt"):
        with pytest.raises(ConfigError, match="a config"):
            source_configs(source)

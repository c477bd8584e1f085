"""Every kind of finding, made on purpose; and sound data have none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from projects.sa2va.datasets.verify import KINDS, verify
from projects.sa2va.datasets.verify.page import findings_json, html_page
from projects.sa2va.errors import ConfigError
from tests.datasets.conftest import PROCESSOR, CocoFolder, square

PATIENT = {"type": "regex", "pattern": r"^(P\d+)_"}


class Splits:
    """Train and test folders in COCO layout, of 8 frames each, and the config that reads them."""

    def __init__(self, root) -> None:
        self.root, self.folders, self.cfg = root, {}, {}
        for seed, split in enumerate(("train", "test")):
            folder = CocoFolder(root / split, count=8, seed=seed)
            rng = np.random.default_rng(seed + 10)
            for entry in folder.data["images"]:
                old = folder.root / "images" / entry["file_name"]
                entry["file_name"] = f"P{seed + 1}{old.name[1:]}"
                small = Image.fromarray(rng.integers(60, 180, (8, 10), np.uint8))
                small.resize((40, 30), Image.Resampling.BICUBIC).save(
                    old.with_name(entry["file_name"])
                )
                old.unlink()
            self.folders[split] = folder
            self.cfg[f"{split}_dataloader"] = {
                "dataset": {
                    "type": "CocoVesselDataset",
                    "processor": PROCESSOR,
                    "data_root": str(root),
                    "ann_file": f"{split}/ann.json",
                    "image_dir": f"{split}/images",
                    "test_mode": split == "test",
                }
            }

    def image(self, split, index):
        name = self.folders[split].data["images"][index]["file_name"]
        return self.root / split / "images" / name

    def check(self, **more):
        for folder in self.folders.values():
            folder.write()
        return verify({**self.cfg, **more}, progress=False)

    def kinds(self, **more):
        """Kinds that are found, but those that every sound set of squares has."""
        return {f.kind for f in self.check(**more).findings} - {"overlap", "no_patients"}


@pytest.fixture
def splits(tmp_path) -> Splits:
    return Splits(tmp_path / "data")


def change(splits, number):
    """Makes finding ``number`` of the table below."""
    train, image = splits.folders["train"].data, splits.image
    first = train["annotations"][0]

    def changed(pixels):
        with Image.open(image("train", 0)) as source:
            Image.fromarray(pixels(np.asarray(source))).save(image("train", 0))

    def labels_at_80():
        for entry in train["images"]:
            entry.update(width=80, height=60)

    def unlabelled():
        train["annotations"] = [a for a in train["annotations"] if a["image_id"] != 0]

    def truncated():
        image("train", 0).write_bytes(image("train", 0).read_bytes()[:300])

    def copied(split, work=lambda picture: picture):
        with Image.open(image("train", 0)) as source:
            work(source.copy()).save(image(split, 5))

    def exif():
        tag = Image.Exif()
        tag[0x0112] = 3
        Image.open(image("train", 0)).save(image("train", 0), exif=tag)

    def bright_vessel():
        for folder in ("train", "test"):
            for index in range(8):
                pixels = np.asarray(Image.open(image(folder, index))).copy()
                pixels[2:18, 2:18] = 230 if (folder, index) == ("train", 0) else 10
                Image.fromarray(pixels).save(image(folder, index))

    table = {
        "polygon": lambda: first.update(segmentation=[[1, 1, 9, 9]]),
        "outside": lambda: first.update(segmentation=[square(50, 2, 10)]),
        "rle": lambda: first.update(segmentation={"size": [30, 40], "counts": [3, 4]}),
        "annotations": lambda: first.update(category_id=99),
        "repeated_entry": lambda: train["images"][1].update(id=0),
        "label_size": labels_at_80,
        "file": truncated,
        "split": lambda: train.update(images=[]),
        "empty_mask": unlabelled,
        "mostly_labelled": lambda: first.update(segmentation=[[0, 0, 40, 0, 40, 25, 0, 25]]),
        "no_pixel": lambda: first.update(segmentation=[[3, 3, 3, 3, 3, 3]]),
        "drawn_twice": lambda: first.update(segmentation=[square(5, 5, 10), square(5, 5, 10.4)]),
        "flat": lambda: changed(lambda p: np.full_like(p, 80)),
        "intensity": lambda: changed(lambda p: (p * 0.1).astype(np.uint8)),
        "exif": exif,
        "polarity": bright_vessel,
        "same_within": lambda: copied("train"),
        "same_across": lambda: copied("test"),
        "near_within": lambda: copied("train", lambda p: p.point(lambda v: v + 20)),
        "near_across": lambda: copied("test", lambda p: p.point(lambda v: v + 20)),
    }
    table[number]()


MADE = (
    *("polygon", "outside", "rle", "annotations", "repeated_entry", "label_size", "file", "split"),
    *("empty_mask", "mostly_labelled", "no_pixel", "drawn_twice", "flat", "intensity", "exif"),
    *("polarity", "same_within", "same_across", "near_within", "near_across"),
)


def test_sound_data(splits):
    checked = splits.check()
    assert {f.kind for f in checked.findings} == {"overlap", "no_patients"}
    assert checked.count("error") == 0


@pytest.mark.parametrize("kind", MADE)
def test_each_kind_is_found(splits, kind):
    change(splits, kind)
    checked = splits.check()
    kinds = {f.kind for f in checked.findings}
    # A dark frame cannot be told from a flat one in 40 x 30 px; all else comes alone.
    allowed = {"intensity", "flat"} if kind in ("intensity", "flat", "polarity") else set()
    if kind in ("repeated_entry", "label_size"):
        allowed = {"annotations", "empty_mask", "same_within"}
    assert kind in kinds
    assert kinds - {kind, "overlap", "no_patients"} <= allowed | {"empty_mask", "drawn_twice"}
    page = html_page(checked, "made", pictures=2)
    assert f'id="{kind}"' in page
    json.dumps(findings_json(checked), allow_nan=False)


def test_everything_at_once_and_nothing_is_touched(splits):
    for kind in ("polygon", "near_across", "file"):
        change(splits, kind)
    for folder in splits.folders.values():
        folder.write()
    before = {p: p.read_bytes() for p in splits.root.rglob("*.*")}
    checked = splits.check()
    assert {"polygon", "file"} <= {f.kind for f in checked.findings}
    assert [f.severity for f in checked.findings] == sorted(
        (f.severity for f in checked.findings), key=("error", "warning", "info").index
    )
    assert {p: p.read_bytes() for p in splits.root.rglob("*.*")} == before


def test_allowed_near_duplicates_are_no_error(splits):
    change(splits, "near_across")
    name = "test/" + splits.image("test", 5).stem
    assert "near_allowed" in splits.kinds(allow_near_duplicates=[name])
    assert "near_across" not in splits.kinds(allow_near_duplicates=True)


def test_patients_and_their_names(splits):
    for loader in splits.cfg.values():
        loader["dataset"]["patient"] = PATIENT
    for name in ("polygon", "near_across", "file"):
        change(splits, name)
    data = splits.folders["test"].data
    old = splits.image("test", 0)
    data["images"][0]["file_name"] = splits.image("train", 2).name.split("_")[0] + "_99.png"
    old.rename(splits.image("test", 0))
    missing = splits.image("test", 3)
    missing.unlink()
    checked = splits.check()
    kinds = [f.kind for f in checked.findings]
    assert "patient_across" in kinds and "no_patients" not in kinds
    shown = html_page(checked, "patients") + json.dumps(findings_json(checked))
    names = [i["file_name"] for s in splits.folders.values() for i in s.data["images"]]
    assert not [name for name in names if name in shown or name[:-4] in shown]
    local = " ".join(f.local_text for f in checked.findings)
    assert missing.name in local  # the terminal tells which file to mend


def test_the_page_stands_alone_and_has_pictures(splits):
    change(splits, "outside")
    change(splits, "near_across")
    page = html_page(splits.check(), "a & b", pictures=1)
    assert "a &amp; b" in page
    assert "http" not in page and "<script" not in page
    # One picture of the polygon and two side by side, and one of an overlap.
    assert page.count("data:image/jpeg;base64,") == 4


def test_unknown_split(splits):
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        verify(splits.cfg, ["trian"])
    with pytest.raises(ConfigError, match="no data sets"):
        verify({})


def test_every_kind_has_words():
    assert all(
        kind.title and kind.severity in ("error", "warning", "info") for kind in KINDS.values()
    )


def test_arcade(shared_dir):
    from projects.sa2va.config import CONFIG_DIR, load_config

    root = shared_dir / "data" / "arcade" / "syntax"
    cfg = load_config(CONFIG_DIR / "sa2va_arcade.py", {"data_root": str(root)})
    checked = verify(cfg, ["val"], progress=False)
    assert {f.kind for f in checked.findings} <= {"overlap", "no_patients", "drawn_twice"}


def test_names_of_files_that_are_no_frames_are_hidden_too(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("i/P7_a.png", "i/P8_b.png", "m/P7_a.png", "m/P9_c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (30, 40), np.uint8)).save(tmp_path / name)
    dataset = {
        "type": "FolderVesselDataset",
        "processor": PROCESSOR,
        "data_root": str(tmp_path),
        "image_dir": "i",
        "mask_dir": "m",
        "patient": PATIENT,
    }
    checked = verify({"train_dataloader": {"dataset": dataset}}, progress=False)
    unpaired = [f for f in checked.findings if f.kind == "unpaired"]
    assert len(unpaired) == 2
    assert all("P8_b" in f.local_text or "P9_c" in f.local_text for f in unpaired)
    shown = html_page(checked, "folders") + json.dumps(findings_json(checked))
    assert not [name for name in ("P7_a", "P8_b", "P9_c") if name in shown]

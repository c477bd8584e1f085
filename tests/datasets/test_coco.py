from __future__ import annotations

import json

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from projects.sa2va.errors import ConfigError, DataError


def test_union_category_and_instance(load_coco, coco_folder):
    coco_folder.data["annotations"].append(
        coco_folder.data["annotations"][0] | {"id": 99, "segmentation": [[20, 20, 26, 20, 26, 26]]}
    )
    union = load_coco(mode="union", phrase="vessel")
    assert [o.phrase for o in union.records[0].objects] == ["vessel"]
    assert union.masks(1).sum() == 100 + 100 - 25 and union.masks(1).max() == 1
    category = load_coco(mode="category")
    # The description is the phrase; where there is none, the name.
    assert [o.phrase for o in category.records[0].objects] == ["left main artery", "side branch"]
    first, second = category.masks(0)
    assert first[:12, :12].sum() == 100 and first[20:, 20:].any() and second.sum() == 100
    names = load_coco(mode="category", category_phrase="name").records[0].objects
    assert [o.phrase for o in names] == ["1", "side branch"]
    instance = load_coco(mode="instance")
    phrases = [o.phrase for o in instance.records[0].objects]
    assert phrases == ["left main artery", "side branch", "left main artery"]
    assert instance.masks(0).shape == (3, 30, 40)


def test_rle_and_polygons_of_one_frame(load_coco, coco_folder):
    runs = [0, 30, 1170]
    coco_folder.data["annotations"][0] |= {"segmentation": {"size": [30, 40], "counts": runs}}
    mask = load_coco(mode="union").masks(0)[0]
    assert mask[:, 0].all() and mask[:, 1:7].sum() == 0 and mask[7:17, 7:17].all()


def test_unlabelled_images(load_coco, coco_folder):
    annotations = coco_folder.data["annotations"]
    coco_folder.data["annotations"] = [a for a in annotations if a["image_id"] != 1]
    kept = load_coco(mode="union")
    assert len(kept) == 3 and kept.masks(1).shape == (1, 30, 40) and not kept.masks(1).any()
    assert len(load_coco(mode="union", unlabelled="drop")) == 2
    with pytest.raises(DataError, match=r"(?s)P00_1\.png has no annotation.*unlabelled='drop'"):
        load_coco(mode="category")
    with pytest.raises(ConfigError, match="'drop' or 'error'"):
        load_coco(mode="category", unlabelled="empty_mask")


def changed_first(key, **changes):
    def change(folder):
        folder.data[key][0] |= changes

    return change


def repeated(key, **changes):
    def change(folder):
        folder.data[key].append(folder.data[key][0] | changes)

    return change


def emptied(key):
    def change(folder):
        folder.data[key] = []

    return change


def without_first_image(folder):
    (folder.root / "images" / "P00_0.png").unlink()


def grown_annotation(folder):
    for image in folder.data["images"]:
        image |= {"width": 800, "height": 800}


BAD = {
    "no images": (emptied("images"), r"ann\.json has zero frames: its list `images` is empty"),
    "no annotations": (emptied("annotations"), "nothing labelled: its list `annotations` is empty"),
    "no categories": (emptied("categories"), "its list `categories` is empty"),
    "repeated id": (repeated("images", file_name="x.png"), r"duplicate image id 0 \(2 times\)"),
    "repeated file": (repeated("images", id=9), r"duplicate file name 'P00_0\.png' \(2 times\)"),
    "unknown image": (
        changed_first("annotations", image_id=77),
        "annotation 0 points to the unknown image id 77",
    ),
    "image id of a wrong kind": (
        changed_first("annotations", image_id=[1]),
        r"annotation 0 points to the unknown image id \[1\]",
    ),
    "unknown category": (
        changed_first("annotations", category_id=5),
        "annotation 0 points to the unknown category id 5",
    ),
    "missing image": (without_first_image, r"P00_0\.png does not exist"),
    "no width": (changed_first("images", width=None), "image entry 0 without .*width"),
    "other size": (
        grown_annotation,
        r"P00_0\.png is 40 x 30 px, but its labels are drawn at 800 x 800 px",
    ),
    "two points": (
        changed_first("annotations", segmentation=[[1, 1, 5, 5]]),
        r"annotation 0 of P00_0\.png: polygon has 2 points, fewer than 3",
    ),
    "odd count": (
        changed_first("annotations", segmentation=[[1, 1, 5, 5, 7, 7, 8]]),
        "annotation 0 .*odd count of numbers",
    ),
    "outside": (
        changed_first("annotations", segmentation=[[1, 1, 799, 5, 7, 640]]),
        r"P00_0\.png: polygon outside the image: it spans x 1..799, y 1..640 on .* 40 x 30 px",
    ),
    "no polygon": (changed_first("annotations", segmentation=[]), "it has no polygon"),
    "no segmentation": (changed_first("annotations", segmentation=None), "None, it has no polygon"),
    "rle of another size": (
        changed_first("annotations", segmentation={"size": [800, 800], "counts": [640000]}),
        "RLE is drawn at 800 x 800 px on an image of 40 x 30 px",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name, load_coco, coco_folder):
    change, message = BAD[name]
    change(coco_folder)
    with pytest.raises(DataError, match=message) as caught:
        load_coco()
    assert "ann.json" in str(caught.value)
    assert caught.value.expected and caught.value.fix


def test_an_exif_turned_photo_says_so(load_coco, coco_folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    name = coco_folder.data["images"][0]["file_name"] = "turned.jpg"
    noise = np.zeros((40, 30), np.uint8)
    Image.fromarray(noise).save(coco_folder.root / "images" / name, exif=exif)
    with pytest.raises(DataError, match=r"turned\.jpg is 30 x 40 px.*40 x 30 px \(its EXIF tag"):
        load_coco()


def test_all_findings_come_at_once(load_coco, coco_folder):
    repeated("images", file_name="x.png")(coco_folder)
    changed_first("annotations", segmentation=[[1, 1, 5, 5]])(coco_folder)
    without_first_image(coco_folder)
    with pytest.raises(DataError) as caught:
        load_coco()
    for text in ("4 problems", "duplicate image id", "fewer than 3", "P00_0.png does not", "x.png"):
        assert text in str(caught.value)


def test_files_that_are_no_coco(load_coco, coco_folder, processor):
    path = coco_folder.root / "bad.json"
    build = {"type": "CocoVesselDataset", "ann_file": "bad.json", "image_dir": "images"}
    build |= {"data_root": str(coco_folder.root), "processor": processor}
    with pytest.raises(DataError, match=r"(?s)bad\.json does not exist.*`ann_file`"):
        DATASETS.build(build)
    for content, message in (
        ("[]", "holds a list"),
        ("{}", "has no list `images`"),
        ('{"images": [1]}', "has no list `images` of objects"),
        ("{", "cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=rf"bad\.json {message}"):
            DATASETS.build(build)
    with pytest.raises(DataError, match=r"data_root .*nowhere does not exist"):
        DATASETS.build(build | {"data_root": str(coco_folder.root / "nowhere")})


def test_unknown_options_suggest(load_coco):
    with pytest.raises(ConfigError, match="did you mean 'category'"):
        load_coco(mode="categories")
    with pytest.raises(ConfigError, match="did you mean 'description'"):
        load_coco(category_phrase="descriptions")


def test_category_without_any_phrase(load_coco, coco_folder):
    coco_folder.data["categories"][1] = {"id": 2, "name": " "}
    assert len(load_coco(mode="union")) == 3
    with pytest.raises(DataError, match="category 2 has no phrase"):
        load_coco(mode="category")


@pytest.mark.parametrize(("split", "count"), [("train", 400), ("val", 100), ("test", 200)])
def test_arcade_loads_without_false_errors(shared_dir, processor, split, count):
    from projects.sa2va.datasets import CocoVesselDataset

    root = shared_dir / "data" / "arcade" / "syntax"
    args = (f"{split}/annotations/{split}.json", f"{split}/images")
    dataset = CocoVesselDataset(*args, data_root=root, processor=processor, test_mode=True)
    assert len(dataset) == count == len(set(dataset.frame_ids))
    share = np.mean([dataset.masks(i).mean() for i in range(0, count, 2)])
    assert share == pytest.approx(0.032, abs=0.003)
    category = CocoVesselDataset(*args, data_root=root, processor=processor, mode="category")
    ids = {c["id"] for c in json.loads((root / args[0]).read_text())["categories"]}
    assert 5 < len(category.metainfo["phrases"]) <= len(ids)
    assert "left main coronary artery" in category.metainfo["phrases"]
    united = category.masks(0).max(axis=0)
    assert (united == dataset.masks(0)[0]).all()


def test_two_masks_for_one_phrase_in_a_test_frame(load_coco, coco_folder):
    coco_folder.data["annotations"].append(
        coco_folder.data["annotations"][0] | {"id": 99, "segmentation": [[20, 20, 26, 20, 26, 26]]}
    )
    assert len(load_coco(mode="instance")) == 3
    with pytest.raises(DataError, match=r"(?s)P00_0\.png has several masks.*left main.*unite"):
        load_coco(mode="instance", test_mode=True)


def test_categories_with_one_phrase_in_two_spellings(load_coco, coco_folder):
    first, second = coco_folder.data["categories"][:2]
    second["description"] = first["description"]
    assert len(load_coco(mode="category").metainfo["phrases"]) == 1  # one phrase unites them
    first["description"], second["description"] = "Left  main", "left main"
    with pytest.raises(DataError, match="several spellings: 'Left  main' and 'left main'"):
        load_coco(mode="category")
    load_coco(mode="union")

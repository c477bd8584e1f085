from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from projects.sa2va.datasets import Sa2VAJsonDataset
from projects.sa2va.errors import DataError

BOX = [2, 2, 12, 2, 12, 12, 2, 12]


@pytest.fixture
def load(tmp_path, processor):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / name)

    def build(entries, **kwargs):
        (tmp_path / "annotations.json").write_text(json.dumps(entries))
        return Sa2VAJsonDataset(
            "annotations.json", ".", data_root=tmp_path, processor=processor, **kwargs
        )

    return build


def entry(image="a.png", mask=None, text=None):
    return {"image": image, "mask": [[BOX]] if mask is None else mask, "text": text or ["vessel"]}


def talk(*values, image="a.png"):
    roles = ("human", "gpt")
    turns = [{"from": roles[i % 2], "value": v} for i, v in enumerate(values)]
    return {"image": image, "conversations": turns}


def test_objects_of_polygons_rle_and_nothing(load):
    shifted = [v + 3 for v in BOX]
    rle = {"size": [30, 40], "counts": [0, 30, 1170]}
    masks = [[BOX, shifted], rle, []]
    dataset = load([entry(mask=masks, text=["tree", "edge", "absent"]), entry("b.png")])
    assert len(dataset) == 2
    tree, edge, absent = dataset.masks(0)
    assert tree.sum() == 100 + 100 - 49 and tree.max() == 1
    assert edge[:, 0].all() and edge.sum() == 30
    assert not absent.any()
    item = dataset[0]
    assert item["masks"].shape == (3, 30, 40)
    assert item["meta"]["phrases"] == ["tree", "edge", "absent"]


def test_language_only_sample(load, processor):
    dataset = load([entry(), talk("<image>\nWhat is this?", "An angiogram.", "Sure?", "Yes.")])
    item = dataset[1]
    assert item["masks"].shape == (0, 30, 40) and item["masks"].dtype == torch.uint8
    assert processor.seg_token_id not in item["input_ids"]
    answered = processor.decode(item["input_ids"][item["labels"] != -100])
    assert answered == "An angiogram.<|im_end|>Yes.<|im_end|>"
    assert "<image>" not in processor.decode(item["input_ids"])
    assert dataset.frame_ids == ["a_png", "a_png_2"]
    with pytest.raises(DataError, match=r"a\.png has nothing to segment"):
        load([entry("b.png"), talk("What is this?", "An angiogram.")], test_mode=True)


BAD = {
    "none": ([], r"annotations\.json has zero frames"),
    "not a list": ({}, "holds a dict"),
    "no image": ([{"mask": [], "text": []}], "entry 0 has no `image`"),
    "more texts": (
        [entry(), entry("b.png", text=["x", "y"])],
        r"entry 1 \(b\.png\) has 1 masks and 2 texts",
    ),
    "more masks": ([entry(mask=[[BOX], [BOX]])], r"entry 0 \(a\.png\) has 2 masks and 1 texts"),
    "no objects": ([{"image": "a.png", "mask": [], "text": []}], "has 0 masks and 0 texts"),
    "no lists": ([{"image": "a.png"}], r"entry 0 \(a\.png\) without the lists"),
    "empty phrase": ([entry(text=["  "])], r"entry 0 \(a\.png\), object 0: empty phrase '  '"),
    "control token": ([entry(text=["a [SEG]"])], r"a\.png: the phrase 'a \[SEG\]' holds \[SEG\]"),
    "missing": ([entry("gone.png")], r"gone\.png does not exist"),
    "twice": ([entry(), entry()], r"duplicate image 'a\.png' \(2 entries\)"),
    "two points": ([entry(mask=[[[1, 1, 2, 2]]])], r"object 0: polygon has 2 points, fewer than 3"),
    "outside": ([entry(mask=[[[1, 1, 90, 2, 3, 3]]])], "polygon outside the image.* 40 x 30 px"),
    "flat": ([entry(mask=[BOX])], "polygon is not a flat list of numbers"),
    "bad turns": ([talk("only a question")], r"entry 0 \(a\.png\): conversations out of form"),
    "seg": ([talk("Where?", "Sure, [SEG].")], r"\[SEG\] in a conversation without masks"),
    "empty answer": ([talk("Where?", " ")], r"entry 0 \(a\.png\): an empty answer"),
    "both": ([entry() | talk("a", "b")], "has conversations and masks"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name, load):
    entries, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        load(entries)
    assert caught.value.expected and caught.value.fix


def test_test_frames_with_one_phrase_in_two_spellings(load):
    entries = [entry(text=["ramus"]), entry("b.png", text=["Ramus"])]
    load(entries)  # training may word a phrase in several ways
    with pytest.raises(DataError, match="several spellings: 'Ramus' and 'ramus'"):
        load(entries, test_mode=True)
    entries = [entry(mask=[[BOX], []], text=["a ramus", "A  ramus"])]
    with pytest.raises(DataError, match="several masks for one phrase: 'a ramus' and 'A  ramus'"):
        load(entries, test_mode=True)

"""Segments, groups and absent phrases: what training draws and testing asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from projects.sa2va.datasets import ReferringVesselDataset
from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.evaluation.scoring import mask_hash

from .conftest import PROCESSOR, CocoFolder, square

GROUPS = {"right artery": ["1", "2"], "left tree": ["3", "4"]}
# name: phrase; by category id from 1
SEGMENTS = {"1": "right a", "2": "right b", "3": "left c", "4": "left d", "5": "ramus"}
# frame: its categories
LABELLED = [["1", "2"], ["3", "4", "5"], ["1"], ["5"], ["2", "3"], ["4"]]


@pytest.fixture
def folder(tmp_path) -> CocoFolder:
    """Six frames with the categories of LABELLED, a square for each, and one never labelled."""
    folder = CocoFolder(tmp_path / "segments", len(LABELLED))
    folder.data["categories"] = [
        {"id": k, "name": name, "description": phrase}
        for k, (name, phrase) in enumerate([*SEGMENTS.items(), ("stenosis", "stenosis")], 1)
    ]
    folder.data["annotations"] = [
        {
            "id": 10 * image + int(name),
            "image_id": image,
            "category_id": int(name),
            "iscrowd": 0,
            "segmentation": [square(3 * int(name), 2 * int(name), 8)],
        }
        for image, names in enumerate(LABELLED)
        for name in names
    ]
    return folder


@pytest.fixture
def load(folder, processor):
    def load(**kwargs) -> ReferringVesselDataset:
        folder.write()
        defaults = dict(
            processor=processor, data_root=folder.root, groups=GROUPS, exclude=["stenosis"]
        )
        return ReferringVesselDataset("ann.json", "images", **(defaults | kwargs))

    return load


def members(phrase: str) -> set[str]:
    """Names of the categories that a phrase means."""
    if phrase == "blood vessel":
        return set(SEGMENTS)
    by_phrase = {text: {name} for name, text in SEGMENTS.items()}
    return set(GROUPS[phrase]) if phrase in GROUPS else by_phrase[phrase]


def truth(image: int, phrase: str) -> np.ndarray:
    """The union of the phrase's squares, drawn by itself."""
    mask = np.zeros((30, 40), np.uint8)
    for name in members(phrase) & set(LABELLED[image]):
        x, y = 3 * int(name), 2 * int(name)
        mask[y : y + 8, x : x + 8] = 1
    return mask


def draws(dataset: ReferringVesselDataset, epochs: int = 60):
    for epoch in range(epochs):
        for image, record in enumerate(dataset.records):
            yield image, dataset.draw_questions(record, np.random.default_rng([epoch, image]))


def test_what_is_asked_is_there_or_absent_as_labelled(load):
    dataset = load()
    assert list(dataset.kinds) == ["blood vessel", *SEGMENTS.values(), *sorted(GROUPS)]
    kinds: Counter[str] = Counter()
    for image, questions in draws(dataset):
        asked = [phrase for question in questions for phrase, _ in question]
        assert 1 <= len(asked) <= 5 and len(set(asked)) == len(asked)
        for question in questions:
            assert len(question) <= 4
            for phrase, obj in question:
                there = bool(members(phrase) & set(LABELLED[image]))
                assert (obj is not None) == there
                if obj is not None:
                    assert np.array_equal(dataset.masks(image, [obj])[0], truth(image, phrase))
            if len(question) > 1:
                assert "blood vessel" not in dict(question)
                kinds["several"] += 1
                kinds["mixed"] += len({obj is None for _, obj in question}) == 2
                # Not in the order of what is there first, then the rest.
                kinds["absent first"] += question[0][1] is None and question[1][1] is not None
            else:
                ((phrase, obj),) = question
                kinds[dataset.kinds[phrase] if obj else "absent"] += 1
    assert (
        min(
            kinds[k]
            for k in ("tree", "segment", "group", "absent", "several", "mixed", "absent first")
        )
        > 20
    )


def test_items_hold_a_seg_for_each_mask_and_say_what_is_absent(load, processor):
    dataset = load()
    texts = []
    for virtual in range(5 * len(dataset)):
        item = dataset[virtual]
        said = item["input_ids"][item["labels"] == processor.seg_token_id]
        assert len(said) == len(item["masks"]) == len(item["meta"]["phrases"])
        for mask, phrase in zip(item["masks"], item["meta"]["phrases"], strict=True):
            assert np.array_equal(mask.numpy(), truth(virtual % len(dataset), phrase))
        texts.append(processor.decode(item["input_ids"]))
    assert any("There is no " in text for text in texts)
    assert any(": none" in text and ": [SEG]" in text for text in texts)


def test_draws_depend_on_seed_epoch_and_index_only(load):
    one, same, other = load(seed=3), load(seed=3, limit=4), load(seed=4)
    ids = [one[k]["input_ids"].tolist() for k in range(12)]
    assert ids[2] == same[2]["input_ids"].tolist()  # index 2 of epoch 0 in both
    assert [one[k]["input_ids"].tolist() for k in reversed(range(12))] == ids[::-1]
    assert ids[:6] != ids[6:]
    assert ids != [other[k]["input_ids"].tolist() for k in range(12)]
    again = load(seed=3, groups=dict(reversed(GROUPS.items())))
    assert [again[k]["input_ids"].tolist() for k in range(12)] == ids


def test_the_mix_decides_what_is_asked(load):
    for kind in ("tree", "segment", "absent"):
        dataset = load(mix={kind: 1})
        for _, questions in draws(dataset, 3):
            for question in questions:
                ((phrase, obj),) = question
                assert (dataset.kinds[phrase] if obj else "absent") == kind
    for _, questions in draws(load(mix={"several": 1}, several=(2, 3)), 10):
        assert all(2 <= len(question) <= 3 for question in questions)
    # Frame 3 has one segment: nothing more to ask about.
    few = load(mix={"segment": 1})
    assert len(few.draw_questions(few.records[3], np.random.default_rng(0))) == 1


@pytest.mark.parametrize(
    "changes", [dict(mix={"group": 1}), dict(mix={"several": 1}, max_phrases_per_sample=1)]
)
def test_frames_without_any_question_are_told_before_training(load, changes):
    with pytest.raises(DataError, match="frames that `mix` has no question for: P0"):
        load(**changes)
    assert len(load(**changes, test_mode=True)) == len(LABELLED)


def test_testing_asks_every_phrase_by_itself(load):
    dataset = load(test_mode=True)
    for image, names in enumerate(LABELLED):
        item = dataset[image]
        assert item["meta"]["phrases"] == list(dataset.kinds)
        for mask, phrase in zip(item["truth"], dataset.kinds, strict=True):
            assert np.array_equal(mask.numpy(), truth(image, phrase))
            assert bool(mask.any()) == bool(members(phrase) & set(names))
        assert item["asked"] == [(phrase,) for phrase in dataset.kinds]
    assert dataset.metainfo["phrase_kinds"] == dataset.kinds


def test_a_number_of_absent_phrases_is_fixed_by_the_frame(load):
    few = load(test_mode=True, absent=2, ask=["segment"])
    phrases = [[obj.phrase for obj in record.objects] for record in few.records]
    absent = set()
    for names, asked in zip(LABELLED, phrases, strict=True):
        own = {SEGMENTS[name] for name in names}
        assert own <= set(asked) <= set(SEGMENTS.values())
        assert len(asked) == len(own) + min(2, len(SEGMENTS) - len(own))
    part = load(test_mode=True, absent=2, ask=["segment"], indices=[4, 1], seed=9)
    assert [[obj.phrase for obj in r.objects] for r in part.records] == [phrases[4], phrases[1]]
    for names, asked in zip(LABELLED, phrases, strict=True):
        absent.add(tuple(phrase for phrase in asked if not members(phrase) & set(names)))
    assert len(absent) > 2
    alike = [replace(few.records[3], name=f"{k}.png", objects=[]) for k in range(8)]
    assert len({tuple(obj.phrase for obj in few._asked_in_test(r)) for r in alike}) > 2
    none = load(test_mode=True, absent=0, ask=["segment", "group"])
    assert all(mask.any() for item in none for mask in item["truth"])


def test_image_only_items_hold_every_phrase_in_every_step(load):
    dataset = load(processor={**PROCESSOR, "image_only": True}, max_phrases_per_sample=1)
    for image in range(len(LABELLED)):
        item = dataset[image + len(LABELLED)]
        assert item["phrases"] == item["meta"]["phrases"] == list(dataset.kinds)
        wanted = torch.from_numpy(np.stack([truth(image, phrase) for phrase in dataset.kinds]))
        assert torch.equal(item["masks"], wanted)


def test_checks_of_the_labels_see_each_region_once(load):
    for dataset in (load(), load(test_mode=True)):
        assert [obj.phrase for obj in dataset.labelled(1)] == ["left c", "left d", "ramus"]
    alone = load(test_mode=True, ask=["group"])
    assert [obj.phrase for obj in alone.labelled(1)] == ["left tree"]


def test_excluded_categories_are_no_part_of_the_tree(load):
    dataset = load(exclude=["stenosis", "5"], unlabelled="drop")
    assert [record.name for record in dataset.records] == [
        record.name for k, record in enumerate(load().records) if k != 3
    ]
    assert "ramus" not in dataset.kinds
    (tree,) = [obj for obj in dataset.records[1].objects if obj.phrase == "blood vessel"]
    whole = truth(1, "left tree").astype(bool)
    assert mask_hash(dataset.masks(1, [tree])[0].astype(bool)) == mask_hash(whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(groups={"x": ["1", "9"]}), "unknown category '9' in group 'x'"),
        (dict(groups={"x": []}), r"group 'x' of \[\]"),
        (dict(groups={"x": "12"}), "group 'x' of '12'"),
        (dict(groups={"ramus": ["1"]}), "ramus: the phrase of a group and of a segment"),
        (dict(phrase="ramus"), "ramus: the phrase of a tree and of a segment"),
        (dict(phrase="Ramus"), "'Ramus' and 'ramus': the phrase of a tree and of a segment"),
        (
            dict(groups={"left tree": ["5"], "Left  tree": ["5"]}),
            "'Left  tree' and 'left tree': the phrase of a group and of a group",
        ),
        (dict(phrase="left tree"), "left tree: the phrase of a tree and of a group"),
        (dict(exclude=["stenose"]), r"unknown category 'stenose' in exclude \(did you mean"),
        (dict(exclude=["1"]), "category '1' in group 'right artery' and in exclude"),
        (dict(mix={"segments": 1}), "segments=1 in `mix`"),
        (dict(mix={"segment": -1}), "segment=-1"),
        (dict(mix={"segment": 0}), "mix={'segment': 0}"),
        (dict(mix={"tree": 1}, phrase=None), "without `phrase`"),
        (dict(mix={"group": 1}, groups=None), "without `groups`"),
        (dict(several=(1, 3)), r"several=\(1, 3\)"),
        (dict(several=(3, 2)), r"several=\(3, 2\)"),
        (dict(absent="some"), "absent='some'"),
        (dict(absent=-1), "absent=-1"),
        (dict(ask=["segments"]), "ask="),
        (dict(ask=[]), "ask="),
        (dict(unlabelled="empty_mask"), "unlabelled='empty_mask'"),
        (dict(groups={"a and the b": ["1"]}), "cannot be asked with others in one question"),
    ],
)
def test_what_cannot_be(load, changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load(**changes)
    assert caught.value.expected and caught.value.fix


def test_arcade(shared_dir, processor):
    """The shipped data part on real frames; the names are those of the file."""
    from projects.sa2va.config import load_config
    from tests.conftest import ROOT

    path = ROOT / "projects/sa2va/configs/sa2va_arcade_segments_tiny.py"
    cfg = load_config(path, {"data_root": str(shared_dir / "data/arcade/syntax")})
    own = cfg.test_dataloader.dataset.to_dict()
    kind = own.pop("type")
    assert kind == "ReferringVesselDataset"
    dataset = ReferringVesselDataset(**{**own, "processor": processor, "limit": 3})
    kinds = Counter(dataset.kinds.values())
    assert kinds["tree"] == 1 and kinds["segment"] == 25 and "stenosis" not in dataset.kinds
    unet = load_config(ROOT / "projects/sa2va/configs/baselines/unet_arcade_segments.py")
    assert set(unet.model.classes) == set(dataset.kinds)
    for config in (cfg, unet):
        assert "hflip" not in config.train_dataloader.dataset.augment

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from projects.sa2va.datasets import CocoVesselDataset, sa2va_collate
from projects.sa2va.errors import ConfigError, DataError

AUGMENT = {"hflip": 0.5, "rotate": (-15, 15), "gamma": (0.8, 1.25)}


def equal(one, two):
    if isinstance(one, torch.Tensor):
        return one.shape == two.shape and bool((one == two).all())
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def test_train_item(load_coco, processor):
    item = load_coco(mode="category")[2]
    assert set(item) == {
        *("input_ids", "labels", "pad_id", "pixel_values", "grounding_pixels", "masks", "meta")
    }
    assert item["pixel_values"].shape == (1, 3, 28, 28)
    assert item["grounding_pixels"].shape == (3, 64, 64)
    assert item["masks"].shape == (2, 30, 40) and item["masks"].dtype == torch.uint8
    assert item["pad_id"] == processor.pad_token_id
    # K objects are K turns, one [SEG] each, labelled.
    assert (item["labels"] == processor.seg_token_id).sum() == 2
    text = processor.decode(item["input_ids"])
    assert text.index("left main artery") < text.index("side branch")
    meta = item["meta"]
    assert meta["phrases"] == ["left main artery", "side branch"]
    assert (meta["index"], meta["frame"], meta["patient"]) == (2, "P01_2", None)
    assert (meta["height"], meta["width"]) == (30, 40)


def test_test_item_keeps_truth_apart(load_coco, processor):
    item = load_coco(mode="category", test_mode=True)[1]
    assert set(item) == {
        *("pixel_values", "grounding_pixels", "prompts", "asked", "size", "truth", "meta")
    }
    assert item["size"] == (30, 40) and item["truth"].shape == (2, 30, 40)
    expected = [processor.prompt_ids(p, 1) for p in ("left main artery", "side branch")]
    assert equal(item["prompts"], expected)


def test_config_and_built_processor_give_the_same(load_coco, processor_cfg):
    assert equal(load_coco()[0], load_coco(processor=processor_cfg)[0])


def test_items_depend_on_seed_epoch_and_index_alone(load_coco):
    dataset = load_coco(mode="category", augment=AUGMENT, max_phrases_per_sample=1)
    again = load_coco(mode="category", augment=AUGMENT, max_phrases_per_sample=1)
    again[5], again[0]  # what was read before makes no difference
    assert all(equal(dataset[i], again[i]) for i in range(9))
    epochs = [dataset[1 + 3 * epoch] for epoch in range(12)]
    assert all(item["meta"]["index"] == 1 for item in epochs)
    assert len({item["grounding_pixels"].sum().item() for item in epochs}) == 12
    assert {tuple(item["meta"]["phrases"]) for item in epochs} == {
        ("left main artery",),
        ("side branch",),
    }
    other = load_coco(mode="category", augment=AUGMENT, max_phrases_per_sample=1, seed=1)
    assert not equal(dataset[0]["grounding_pixels"], other[0]["grounding_pixels"])


def test_equal_frames_are_augmented_differently(load_coco, coco_folder):
    images = coco_folder.root / "images"
    (images / "P00_1.png").write_bytes((images / "P00_0.png").read_bytes())
    plain, augmented = load_coco(), load_coco(augment=AUGMENT)
    assert equal(plain[0]["grounding_pixels"], plain[1]["grounding_pixels"])
    assert not equal(augmented[0]["grounding_pixels"], augmented[1]["grounding_pixels"])


def test_augmentation_does_not_change_the_drawn_phrases(load_coco):
    plain = load_coco(mode="category", max_phrases_per_sample=1)
    augmented = load_coco(mode="category", max_phrases_per_sample=1, augment=AUGMENT)
    for i in range(9):
        assert plain[i]["meta"]["phrases"] == augmented[i]["meta"]["phrases"]


def test_masks_follow_their_phrases_when_some_are_drawn(load_coco):
    dataset = load_coco(mode="category", max_phrases_per_sample=1)
    both = dict(zip(("left main artery", "side branch"), dataset.masks(0), strict=True))
    for epoch in range(8):
        item = dataset[3 * epoch]
        assert (item["masks"][0].numpy() == both[item["meta"]["phrases"][0]]).all()


def test_worker_processes_give_the_same_batches(load_coco):
    dataset = load_coco(augment=AUGMENT)
    kwargs = {"batch_size": 2, "sampler": range(6), "collate_fn": sa2va_collate}
    here = list(DataLoader(dataset, **kwargs))
    there = list(DataLoader(dataset, num_workers=2, **kwargs))
    assert len(here) == 3 and equal(here, there)
    assert equal(pickle.loads(pickle.dumps(dataset))[1], dataset[1])


def test_wordings_are_drawn_in_training_only(load_coco):
    dataset = load_coco(phrase="vessel", phrases=["artery", "blood vessel"])
    drawn = {dataset[3 * epoch]["meta"]["phrases"][0] for epoch in range(30)}
    assert drawn == {"vessel", "artery", "blood vessel"}
    tested = load_coco(phrase="vessel", phrases=["artery"], test_mode=True)
    assert [tested[i]["meta"]["phrases"] for i in range(3)] == [["vessel"]] * 3


def test_limit_and_indices_keep_the_frames_names(load_coco):
    assert load_coco(limit=2).frame_ids == ["P00_0", "P00_1"]
    assert load_coco(indices=[2, 0]).frame_ids == ["P01_2", "P00_0"]
    assert load_coco(indices=[2, 0], limit=1).frame_ids == ["P01_2"]
    assert load_coco(limit=99).frame_ids == ["P00_0", "P00_1", "P01_2"]


def test_patients_are_pseudonyms_and_raw_names_stay_inside(load_coco):
    dataset = load_coco(patient={"type": "regex", "pattern": r"^(P\d+)_"}, test_mode=True)
    assert dataset.metainfo["patients"] == 2 and dataset.patients[0] == dataset.patients[1]
    meta = dict(dataset[0]["meta"])
    meta.pop("image_path")
    assert "P00" not in str(meta) and meta["frame"].startswith(meta["patient"])
    assert [r.patient_raw for r in dataset.records] == ["P00", "P00", "P01"]
    with pytest.raises(DataError, match=r"(?s)3 of 3 image names.*P00_0\.png"):
        load_coco(patient={"type": "regex", "pattern": r"^(Q\d+)_"})


def test_index_range(load_coco):
    tested, trained = load_coco(test_mode=True), load_coco()
    for dataset, index in ((tested, 3), (tested, -1), (trained, -1)):
        with pytest.raises(IndexError, match=f"index {index} of a data set of 3 frames"):
            dataset[index]
    assert trained[300]["meta"]["index"] == 0
    assert len(list(trained)) == 3
    assert trained[np.int64(4)]["meta"]["index"] == 1


def test_16_bit_images_follow_intensity(load_coco, coco_folder):
    deep = np.full((30, 40), 1000, np.uint16)
    deep[:, :20] = 2000
    Image.fromarray(deep).save(coco_folder.root / "images" / "P00_0.png")
    assert load_coco().image(0).max() == 255
    assert load_coco(intensity="full_range").image(0).max() == round(2000 / 257)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_named_and_never_replaced(load_coco, coco_folder, truncate, workers):
    dataset = load_coco()
    truncate(coco_folder.root / "images" / "P00_1.png")
    loader = iter(DataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=sa2va_collate))
    assert next(loader)["meta"][0]["frame"] == "P00_0"
    # PyTorch can only rebuild errors of one argument, so from a worker it may be a RuntimeError.
    with pytest.raises((DataError, RuntimeError), match=r"(?s)P00_1\.png cannot be read.*again"):
        next(loader)


def test_an_image_that_changed_its_size_is_named(load_coco, coco_folder):
    dataset = load_coco()
    Image.new("L", (20, 10)).save(coco_folder.root / "images" / "P00_1.png")
    with pytest.raises(DataError, match=r"P00_1\.png is 20 x 10 px now, it was 40 x 30 px"):
        dataset[1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"augment": {"hflip": 0.5}, "test_mode": True}, "augment in a data set with test_mode"),
        ({"augment": {"hflp": 0.5}}, "did you mean 'hflip'"),
        ({"limit": 0}, "limit=0"),
        ({"max_phrases_per_sample": 0}, "max_phrases_per_sample=0"),
        ({"seed": -1}, "seed=-1"),
        ({"limit": True}, "limit=True"),
        ({"max_phrases_per_sample": True}, "max_phrases_per_sample=True"),
        ({"seed": False}, "seed=False"),
        ({"indices": [False, True]}, "indices outside the data set: False, True"),
        ({"intensity": "own"}, "did you mean 'own_range'"),
        ({"indices": [0, 3]}, "indices outside the data set: 3"),
        ({"indices": [0, 0]}, "indices that repeat"),
        ({"phrases": "vessel"}, "phrases='vessel'"),
        ({"phrases": ["x"], "mode": "category"}, "a single `phrase`"),
        ({"phrase": ""}, "empty phrase"),
        ({"phrase": "a [SEG]"}, r"holds \[SEG\]"),
        ({"phrases": ["vessel", " "]}, "empty phrase"),
    ],
)
def test_bad_arguments(load_coco, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        load_coco(**kwargs)


def test_zero_frames(load_coco):
    with pytest.raises(DataError, match="zero frames"):
        load_coco(indices=[])
    with pytest.raises(TypeError):
        CocoVesselDataset("a", "b", unknown_key=1)


def test_metainfo(load_coco):
    assert load_coco(mode="category").metainfo == {
        "dataset": "CocoVesselDataset",
        "frames": 3,
        "frames_of_split": 3,
        "patients": 0,
        "phrases": ["left main artery", "side branch"],
    }
    assert load_coco(limit=2).metainfo["frames_of_split"] == 3


def test_spacing_reaches_the_evaluator(load_coco):
    for given, expected in ((None, None), (0.3, (0.3, 0.3)), ([0.2, 0.4], (0.2, 0.4))):
        assert load_coco(spacing=given, test_mode=True)[0]["meta"]["spacing"] == expected
    for wrong in (0, -1.0, True, "0.3", [0.3], float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="spacing="):
            load_coco(spacing=wrong)


def test_items_of_images_alone(load_coco):
    processor = dict(tokenizer=dict(type="byte_level"), image_size=64)
    for test_mode in (False, True):
        whole = load_coco(test_mode=test_mode, processor=processor)[0]
        item = load_coco(test_mode=test_mode, processor={**processor, "image_only": True})[0]
        assert not {"pixel_values", "input_ids", "labels", "prompts"} & item.keys()
        assert item["phrases"] == item["meta"]["phrases"] == whole["meta"]["phrases"]
        assert item["grounding_pixels"].equal(whole["grounding_pixels"])
        masks = "truth" if test_mode else "masks"
        assert item[masks].equal(whole[masks])
        batch = sa2va_collate([item, item])
        sizes = {"sizes"} if test_mode else set()
        assert batch["inputs"].keys() == {"grounding_pixels", "phrases"} | sizes
        assert set(batch) == {"inputs", masks, "meta"}

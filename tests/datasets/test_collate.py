from __future__ import annotations

import pytest
import torch
from mmengine.registry import FUNCTIONS

from projects.sa2va.datasets import sa2va_collate


def train_item(length, tiles, objects, pad=9):
    return {
        "input_ids": torch.arange(length) + 9,
        "labels": torch.arange(length),
        "pad_id": pad,
        "pixel_values": torch.full((tiles, 3, 2, 2), float(tiles)),
        "grounding_pixels": torch.zeros(3, 4, 4),
        "masks": torch.zeros(objects, 5, 6 + objects, dtype=torch.uint8),
        "meta": {"frame": str(length)},
    }


def test_training_batch_is_padded_on_the_right():
    batch = sa2va_collate([train_item(3, 1, 0), train_item(5, 2, 2)])
    inputs = batch["inputs"]
    assert inputs["input_ids"].tolist() == [[9, 10, 11, 9, 9], [9, 10, 11, 12, 13]]
    assert inputs["labels"].tolist() == [[0, 1, 2, -100, -100], [0, 1, 2, 3, 4]]
    # The first token equals the pad id here and is still attended to.
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert all(inputs[k].dtype == torch.int64 for k in ("input_ids", "labels", "attention_mask"))
    assert inputs["tiles_per_image"] == [1, 2] and inputs["pixel_values"].shape == (3, 3, 2, 2)
    assert inputs["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0, 2.0]
    assert inputs["grounding_pixels"].shape == (2, 3, 4, 4)
    assert [m.shape for m in batch["masks"]] == [(0, 5, 6), (2, 5, 8)]
    assert [m["frame"] for m in batch["meta"]] == ["3", "5"]


def test_test_batch_has_no_truth_among_its_inputs(load_coco):
    dataset = load_coco(test_mode=True)
    batch = FUNCTIONS.get("sa2va_collate")([dataset[0], dataset[2]])
    assert set(batch) == {"inputs", "truth", "meta"}
    assert set(batch["inputs"]) == {
        *("pixel_values", "tiles_per_image", "grounding_pixels", "prompts", "asked", "sizes")
    }
    assert batch["inputs"]["asked"] == [[("blood vessel",)]] * 2
    assert batch["inputs"]["sizes"] == [(30, 40)] * 2
    assert [len(p) for p in batch["inputs"]["prompts"]] == [1, 1]
    assert all(t.shape == (1, 30, 40) and t.dtype == torch.uint8 for t in batch["truth"])


def test_mixed_and_empty_batches(load_coco):
    with pytest.raises(ValueError, match="at least one item"):
        sa2va_collate([])
    with pytest.raises(ValueError, match="cannot share a batch"):
        sa2va_collate([load_coco()[0], load_coco(test_mode=True)[0]])

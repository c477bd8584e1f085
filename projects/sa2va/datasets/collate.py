"""Items of a data set become one batch; what the model sees is kept apart from the masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import FUNCTIONS
from torch.nn.utils.rnn import pad_sequence

IGNORE_INDEX = -100


@FUNCTIONS.register_module()
def sa2va_collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collates items of :class:`projects.sa2va.datasets.base.VesselDataset`.

    Args:
        items: B items, all of a training set or all of a test set. Images may differ in size,
            number of tiles and number of objects; a training item's ``pad_id`` fills the prompts.

    Returns:
        Training: ``inputs`` with input_ids, labels (-100 where padded) and attention_mask, int64
        [B, L], right padded; pixel_values uint8 [sum of tiles, 3, T, T]; tiles_per_image;
        grounding_pixels uint8 [B, 3, S, S]. Beside it ``masks`` (B times uint8 [K, H, W]),
        ``meta`` and, of data sets that make them, ``skeletons`` (as the masks).

        Testing: ``inputs`` with pixel_values, tiles_per_image, grounding_pixels, prompts (B lists
        of K int64 [L]), asked (B lists of K tuples of phrases) and sizes (B times (H, W)). Beside
        it ``truth`` and ``meta``, which the test loop hands to the evaluator and never to the
        model.

        Of ``image_only`` items ``inputs`` has ``grounding_pixels``, ``phrases`` (B lists of K
        texts) and, in testing, ``sizes``.

    Raises:
        ValueError: no items, or training and test items in one batch.
    """
    if not items:
        raise ValueError("a batch needs at least one item")
    if len({"masks" in item for item in items}) != 1:
        raise ValueError("training and test items cannot share a batch")
    inputs = collate_inputs(items)
    meta = [item["meta"] for item in items]
    if "masks" in items[0]:
        labels = {
            key: [item[key] for item in items] for key in ("masks", "skeletons") if key in items[0]
        }
        return {"inputs": inputs, **labels, "meta": meta}
    return {"inputs": inputs, "truth": [item["truth"] for item in items], "meta": meta}


def collate_inputs(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The ``inputs`` of :func:`sa2va_collate`: all that a model may see of a batch.

    Args:
        items: B items, of a training set or what ``Sa2VAProcessor.prediction_item`` gave.
    """
    inputs: dict[str, Any] = {
        "grounding_pixels": torch.stack([item["grounding_pixels"] for item in items])
    }
    if "phrases" in items[0]:
        inputs["phrases"] = [item["phrases"] for item in items]
    else:
        inputs |= _for_language_model(items)
    if "size" in items[0]:
        inputs["sizes"] = [item["size"] for item in items]
    return inputs


def _for_language_model(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tiles, and prompts or padded conversations."""
    inputs: dict[str, Any] = {
        "pixel_values": torch.cat([item["pixel_values"] for item in items]),
        "tiles_per_image": [len(item["pixel_values"]) for item in items],
    }
    if "prompts" in items[0]:
        inputs["prompts"] = [item["prompts"] for item in items]
        inputs["asked"] = [item["asked"] for item in items]
        return inputs
    ids = [item["input_ids"] for item in items]
    labels = [item["labels"] for item in items]
    inputs["input_ids"] = pad_sequence(ids, True, padding_value=items[0]["pad_id"])
    inputs["labels"] = pad_sequence(labels, True, padding_value=IGNORE_INDEX)
    # By length, not by comparing with the pad id: that id may also occur inside a text.
    inputs["attention_mask"] = pad_sequence([torch.ones_like(row) for row in ids], True)
    return inputs

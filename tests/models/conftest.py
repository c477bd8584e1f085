"""A model far smaller than ``sa2va_tiny``: built in a tenth of a second, a step in as long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from projects.sa2va.datasets.collate import sa2va_collate
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.processing import Sa2VAProcessor

PHRASE = "blood vessel"

PROCESSOR: dict[str, Any] = dict(
    tokenizer=dict(type="byte_level"),
    tile_size=56,
    tokens_per_tile=4,
    max_tiles=1,
    image_size=64,
)
MLLM_CONFIG: dict[str, Any] = dict(
    tie_word_embeddings=False,
    text_config=dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.15,
    ),
    vision_config=dict(
        image_size=[56, 56],
        patch_size=[14, 14],
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
    ),
)
GROUNDING_CONFIG: dict[str, Any] = dict(
    vision_config=dict(
        model_type="sam2_vision_model",
        backbone_config=dict(
            model_type="sam2_hiera_det_model",
            hidden_size=16,
            num_attention_heads=1,
            blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[16, 32, 64, 128],
            num_attention_heads_per_stage=[1, 2, 4, 8],
            window_size_per_stage=[8, 4, 8, 4],
            global_attention_blocks=[3],
            window_positional_embedding_background_size=[7, 7],
        ),
        backbone_channel_list=[128, 64, 32, 16],
        fpn_hidden_size=64,
    ),
    prompt_encoder_config=dict(hidden_size=64),
    mask_decoder_config=dict(
        hidden_size=64, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
    ),
)


def merged(base: dict, changes: dict) -> dict:
    """``base`` with ``changes``, dicts merged key by key; neither is touched."""
    result = {k: merged(v, {}) if isinstance(v, dict) else v for k, v in base.items()}
    for key, value in changes.items():
        old = result.get(key)
        result[key] = (
            merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return result


def settings(**changes: Any) -> dict[str, Any]:
    """Keyword arguments of Sa2VAModel; ``changes`` are merged in."""
    base = dict(
        processor=PROCESSOR,
        autocast=None,
        mllm=dict(
            type="InternVLAdapter",
            dtype="float32",
            lora=dict(r=2, lora_alpha=4),
            config=MLLM_CONFIG,
        ),
        grounding=dict(
            type="Sam2Adapter", dtype="float32", train_image_encoder=True, config=GROUNDING_CONFIG
        ),
    )
    return merged(base, changes)


def build(**changes: Any) -> Sa2VAModel:
    """A tiny model; see :func:`settings`."""
    return Sa2VAModel(**settings(**changes))


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """uint8 RGB noise [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def blob_masks(seed: int, count: int, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    """uint8 [count, H, W]: rectangles."""
    masks = torch.zeros(count, *size, dtype=torch.uint8)
    rng = np.random.default_rng(seed)
    for mask in masks:
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        mask[top : top + size[0] // 3, left : left + size[1] // 3] = 1
    return masks


def train_item(
    processor: Sa2VAProcessor, image: np.ndarray, masks: torch.Tensor, frame: str = "frame"
) -> dict[str, Any]:
    """A training item as the data sets make it: a phrase and a [SEG] for every mask."""
    tiles = processor.tiles(image)
    phrases = [PHRASE, "artery", "catheter"][: len(masks)]
    turns = [(processor.question_for(phrase), processor.answer) for phrase in phrases]
    ids, labels = processor.conversation(
        turns or [("What is this?", "It is a vessel.")], len(tiles)
    )
    return {
        "input_ids": ids,
        "labels": labels,
        "pad_id": processor.pad_token_id,
        "pixel_values": tiles,
        "grounding_pixels": processor.grounding_pixels(image, training=True),
        "masks": masks,
        "meta": {"frame": frame},
    }


def train_batch(
    processor: Sa2VAProcessor,
    counts: Sequence[int] = (1, 2),
    sizes: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """A collated training batch of ``len(counts)`` noise images with so many masks each."""
    sizes = sizes or [(64, 64)] * len(counts)
    return sa2va_collate(
        [
            train_item(processor, picture(i, size), blob_masks(i, count, size), f"frame_{i}")
            for i, (count, size) in enumerate(zip(counts, sizes, strict=True))
        ]
    )


def predict_inputs(
    processor: Sa2VAProcessor, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """The model's part of a collated test batch."""
    tiles = [processor.tiles(image) for image in images]
    return {
        "pixel_values": torch.cat(tiles),
        "tiles_per_image": [len(t) for t in tiles],
        "grounding_pixels": torch.stack([processor.grounding_pixels(i) for i in images]),
        "prompts": [
            [processor.prompt_ids(phrase, len(t)) for phrase in group]
            for group, t in zip(phrases, tiles, strict=True)
        ],
        "sizes": [image.shape[:2] for image in images],
    }


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The scalar that training minimises."""
    return sum(losses.values())  # type: ignore[return-value]


@pytest.fixture(scope="session")
def processor() -> Sa2VAProcessor:
    return Sa2VAProcessor(**PROCESSOR)


@pytest.fixture(scope="module")
def frozen_model() -> Sa2VAModel:
    """A model in eval mode that tests of one module share and must not change."""
    return build().eval()

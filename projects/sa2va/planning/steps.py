"""One training step and one prediction of a model, followed by a :class:`StorageTracker`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projects.sa2va.models import Sa2VAModel

from .tracing import (
    FROZEN,
    INPUTS,
    TRAINED,
    CudaAutocast,
    Moment,
    StorageTracker,
    following_gradients,
    tensors_of,
)

MakeTensor = Callable[..., Tensor]  # (*shape, dtype=...) -> Tensor
_PHRASE = "blood vessel"  # what is asked and answered of every frame


@dataclass(frozen=True)
class Frames:
    """A batch.

    Attributes:
        batch: frames.
        side: their height and width in px.
        phrases: phrases of each.
    """

    batch: int = 1
    side: int = 1024
    phrases: int = 1


def tiles_of(model: Sa2VAModel) -> int:
    """Most tiles that a frame is cut into, the thumbnail counted."""
    processor = model.processor
    more = processor.max_tiles > 1 and processor.use_thumbnail
    return processor.max_tiles + int(more)


def training_batch(model: Sa2VAModel, frames: Frames, make: MakeTensor) -> tuple[dict, list, list]:
    """Arguments of ``Sa2VAModel.loss``: real ids, and images and masks made by ``make``."""
    ids, labels = (row.repeat(frames.batch, 1) for row in _conversation(model, frames.phrases))
    inputs = {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids),
        **_images(model, frames, make),
    }
    masks = [
        make(frames.phrases, frames.side, frames.side, dtype=torch.uint8)
        for _ in range(frames.batch)
    ]
    return inputs, masks, [{} for _ in range(frames.batch)]


def prompt_length(model: Sa2VAModel, phrases: int) -> int:
    """Tokens of a training sample with so many phrases."""
    return len(_conversation(model, phrases)[0])


def _conversation(model: Sa2VAModel, phrases: int) -> tuple[Tensor, Tensor]:
    """Ids and labels, int64 [L]."""
    processor = model.processor
    turn = processor.turn([_PHRASE], [True])
    return processor.conversation([turn] * phrases, tiles_of(model))


def _images(model: Sa2VAModel, frames: Frames, make: MakeTensor) -> dict[str, Tensor]:
    tile, side = model.processor.tile_size, model.processor.image_size
    return {
        "pixel_values": make(frames.batch * tiles_of(model), 3, tile, tile, dtype=torch.float32),
        "grounding_pixels": make(frames.batch, 3, side, side, dtype=torch.float32),
    }


def follow_training(
    model: Sa2VAModel, make: MakeTensor, frames: Frames, *, as_on_cuda: bool = True
) -> dict[str, Moment]:
    """Traces the forward and backward pass of one training step.

    Args:
        model: fake, or real on the CPU; its gradients are those of the step afterwards.
        make: makes a tensor without values, fake or real as the model's.
        frames: the batch.
        as_on_cuda: dtypes of autocast as on CUDA.

    Returns:
        The fullest moment of each part: ``start``, ``vision``, ``language``, ``sam2``, ``masks``,
        ``backward``.
    """
    model.train()
    inputs, masks, meta = training_batch(model, frames, make)
    skeletons = None
    if getattr(model.mask_loss, "skeleton_recall_weight", 0.0):
        skeletons = [make(*own.shape, dtype=own.dtype) for own in masks]
    tracker = _tracker(model, [inputs, masks, skeletons])
    model.mark, mark = tracker.mark, model.mark
    try:
        with (
            _casts(as_on_cuda),
            tracker,
            following_gradients(tracker, model.parameters()),
        ):
            tracker.mark("start")
            with _autocast(model):
                losses = model.loss(inputs, masks, meta, skeletons)
            loss = sum(losses.values())
            del losses
            loss.backward()
    finally:
        model.mark = mark
    return tracker.peaks


@torch.no_grad()
def follow_prediction(
    model: Sa2VAModel, make: MakeTensor, frames: Frames, *, as_on_cuda: bool = True
) -> dict[str, Moment]:
    """Traces a prediction as ``Sa2VAModel.predict`` makes it, by a forced answer.

    Generating holds the same tensors and the keys and values beside them; see
    :func:`cache_bytes`.

    Returns:
        The fullest moment of ``start``, ``images`` (both encoders) and ``answer``.
    """
    model.eval()
    images = _images(model, frames, make)
    tiles = tiles_of(model)
    prompt = model.processor.prompt_ids(_PHRASE, tiles)
    tracker = _tracker(model, [images])
    owner = [image for image in range(frames.batch) for _ in range(frames.phrases)]
    mode, model.answer_mode = model.answer_mode, "forced"
    try:
        with _casts(as_on_cuda), tracker, _autocast(model):
            tracker.mark("start")
            tracker.mark("images")
            visual = model.mllm.visual_tokens(images["pixel_values"]).split(tiles)
            features = model.encode_images(images["grounding_pixels"])
            tracker.mark("answer")
            some = owner[: model.max_phrases_per_pass]
            model._answer(
                [prompt] * len(some),
                torch.cat([visual[image] for image in some]),
                features.select(torch.tensor(some)),
                [(frames.side, frames.side)] * len(some),
                [(_PHRASE,)] * len(some),
            )
    finally:
        model.answer_mode = mode
    return tracker.peaks


def cache_bytes(model: Sa2VAModel, phrases: int) -> int:
    """Keys and values that generating ``phrases`` answers keeps."""
    text = model.mllm.model.config.text_config
    heads = text.num_key_value_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    length = len(model.processor.prompt_ids(_PHRASE, tiles_of(model)))
    width = 2 if model.autocast_dtype is not None else 4
    tokens = phrases * (length + model.max_new_tokens)
    return 2 * text.num_hidden_layers * heads * size * tokens * width


def _tracker(model: Sa2VAModel, batch: Any) -> StorageTracker:
    rows = model.mllm.model.config.text_config.vocab_size
    tracker = StorageTracker(rows)
    tracker.hold((p for p in model.parameters() if not p.requires_grad), FROZEN)
    tracker.hold(model.buffers(), FROZEN)
    tracker.hold((p for p in model.parameters() if p.requires_grad), TRAINED)
    tracker.hold(tensors_of(batch), INPUTS)
    return tracker


def _autocast(model: Sa2VAModel) -> Any:
    dtype = model.autocast_dtype
    return torch.autocast("cpu", dtype, enabled=dtype is not None)


def _casts(as_on_cuda: bool) -> Any:
    return CudaAutocast() if as_on_cuda else contextlib.nullcontext()

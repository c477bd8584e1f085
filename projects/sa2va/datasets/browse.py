"""Pictures of what the model is fed: after augmentation, tiling, resizing and tokenisation."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..processing.tokenizer import IMG_CONTEXT
from .base import VesselDataset

_PAPER, _INK, _FAINT = (22, 24, 28), (240, 240, 240), (160, 165, 172)
# One colour an object, from the light end of Okabe & Ito's palette.
_COLOURS = ((64, 156, 255), (240, 140, 20), (0, 200, 140), (240, 228, 66), (220, 130, 180))
_GAP, _LINE, _LETTER = 10, 13, 6.7


def draw_sample(
    dataset: VesselDataset, index: int, variants: int = 3, side: int = 320
) -> Image.Image:
    """Draws one sample: its image as stored, then each variant as the model gets it.

    A variant is a row: SAM2's input, the same with the masks laid over, InternVL's tiles, and the
    text. Row k is the sample of epoch k; test and validation samples have one row.

    Args:
        dataset: built with the processor of the config.
        index: of the record.
        variants: rows, in training.
        side: side of a panel in pixels.

    Returns:
        RGB picture; the frame is named by its output name.

    Raises:
        DataError: the sample cannot be read.
    """
    rows = 1 if dataset.test_mode else variants
    items = [dataset[epoch * len(dataset) + index] for epoch in range(rows)]
    strips = [_strip(dataset, item, side) for item in items]
    original = _panel(dataset.image(index), side)
    width = max(strip.width for strip in strips) + side + 3 * _GAP
    height = sum(strip.height + _GAP for strip in strips) + 40
    sheet = Image.new("RGB", (width, max(height, side + 50)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    record = dataset.records[index]
    title = f"{dataset.frame_ids[index]}   {record.width} x {record.height} px"
    draw.text((_GAP, 8), title, fill=_INK, font=_font())
    draw.text((_GAP, 22), "as stored", fill=_FAINT, font=_font())
    sheet.paste(original, (_GAP, 40))
    top = 40
    for strip in strips:
        sheet.paste(strip, (side + 2 * _GAP, top))
        top += strip.height + _GAP
    return sheet


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Returns one sheet with the pictures below one another."""
    sheet = Image.new(
        "RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), _PAPER
    )
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def pixels(read: Tensor) -> np.ndarray:
    """What a model reads, [3, H, W], as uint8 [H, W, 3]; of float32 the normalisation is undone."""
    if read.dtype == torch.uint8:
        return read.permute(1, 2, 0).numpy()
    mean, deviation = (
        torch.tensor(values).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    values = (read * deviation + mean).mul(255).round().clamp(0, 255)
    return values.permute(1, 2, 0).to(torch.uint8).numpy()


def overlay(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Lays masks [K, h, w] of any size over an image uint8 [H, W, 3], a colour each."""
    out = image.astype(np.float32)
    for number, mask in enumerate(masks):
        fitted = Image.fromarray(mask * np.uint8(255)).resize(
            image.shape[1::-1], Image.Resampling.NEAREST
        )
        inside = np.asarray(fitted) > 0
        colour = np.array(_COLOURS[number % len(_COLOURS)], np.float32)
        out[inside] = 0.4 * out[inside] + 0.6 * colour
    return np.rint(out).astype(np.uint8)


def text_of(dataset: VesselDataset, item: dict) -> str:
    """The text of an item as it is tokenised, repeated image tokens counted.

    Training: the whole conversation, ``« »`` around what the loss looks at. Testing: the prompts.
    """
    processor = dataset.processor
    if processor.image_only:
        return "\n".join(item["phrases"])
    if "prompts" in item:
        return "\n".join(_counted(processor.decode(prompt)) for prompt in item["prompts"])
    ids, labels = item["input_ids"], item["labels"]
    parts, start = [], 0
    learnt = (labels != -100).tolist()
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learnt[end] != learnt[start]:
            text = processor.decode(ids[start:end])
            parts.append(f"«{text}»" if learnt[start] else text)
            start = end
    return _counted("".join(parts))


def _counted(text: str) -> str:
    token = re.escape(IMG_CONTEXT)

    def count(match: re.Match[str]) -> str:
        return f"{IMG_CONTEXT} x {len(match[0]) // len(IMG_CONTEXT)}"

    return re.sub(rf"(?:{token})+", count, text)


def _strip(dataset: VesselDataset, item: dict, side: int) -> Image.Image:
    masks = item.get("masks", item.get("truth")).numpy()
    sam = pixels(item["grounding_pixels"])
    tiles = [pixels(tile) for tile in item.get("pixel_values", ())]
    panels = [_panel(image, side) for image in (sam, overlay(sam, masks), *tiles)]
    names = [
        f"SAM2 input {sam.shape[1]} x {sam.shape[0]}",
        f"masks: {', '.join(item['meta']['phrases']) or 'none'}",
        *(f"tile {n} of {len(tiles)}, {t.shape[1]} px" for n, t in enumerate(tiles, 1)),
    ]
    width = len(panels) * (side + _GAP)
    lines = [
        line
        for paragraph in text_of(dataset, item).splitlines()
        for line in textwrap.wrap(paragraph, int(width / _LETTER)) or [""]
    ]
    strip = Image.new("RGB", (width, side + 20 + _LINE * len(lines)), _PAPER)
    draw = ImageDraw.Draw(strip)
    for number, (panel, name) in enumerate(zip(panels, names, strict=True)):
        left = number * (side + _GAP)
        strip.paste(panel, (left, 14))
        draw.text((left, 0), name[: int(side / _LETTER)], fill=_FAINT, font=_font())
    for number, line in enumerate(lines):
        draw.text((0, side + 18 + number * _LINE), line, fill=_INK, font=_font())
    return strip


def _panel(image: np.ndarray, side: int) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(image))
    factor = side / max(picture.size)
    size = tuple(max(1, round(length * factor)) for length in picture.size)
    kind = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    return picture.resize(size, kind)


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Of one width, so that lines can be broken by counting; Pillow's own lacks most letters.
    return ImageFont.truetype(Path(get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf", 11)

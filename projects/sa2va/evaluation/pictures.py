"""Six-panel pictures of the best, the worst and some random frames, and a sheet of all of them.

Panels: image, truth, prediction, truth overlaid, prediction overlaid, difference. One colour code
holds throughout: blue is the truth alone, orange the prediction alone, white where both agree. The
three also differ in lightness, so they can be told apart with any colour vision and in grey
(blue and orange after Okabe & Ito, "Color Universal Design", 2008).

The drawing is done with Pillow at whole multiples of the pixels where the image is small and by
area where it is large, so that a vessel one pixel wide stays visible and the same input gives the
same bytes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from ..datasets.image_io import read_image
from ..errors import DataError
from ..files import write_atomic
from .rows import FrameResult, Row
from .writer import decode_mask

TRUTH_COLOUR = (64, 156, 255)
PREDICTION_COLOUR = (240, 140, 20)
BOTH_COLOUR = (255, 255, 255)
_PAPER, _INK, _FAINT = (22, 24, 28), (240, 240, 240), (160, 165, 172)
_PANEL, _GAP = 512, 12


@dataclass(frozen=True)
class PictureChoice:
    """How many frames of each kind are drawn; ``seed`` decides the random ones."""

    best: int = 3
    worst: int = 3
    random: int = 3
    seed: int = 0

    @property
    def total(self) -> int:
        """The most pictures that there can be."""
        return self.best + self.worst + self.random


@dataclass(frozen=True)
class Chosen:
    """A row to draw: the ``rank``-th (from 1) of its ``kind`` ('best', 'worst' or 'random')."""

    kind: str
    rank: int
    frame: FrameResult
    row: Row

    @property
    def dice(self) -> float:
        """Dice of the row; ``nan`` where undefined."""
        return self.row.counts.metrics()["dice"]

    @property
    def file_name(self) -> str:
        """``best_01_dice0.873_<stem>.png``; ``diceundefined`` where there is none."""
        dice = "undefined" if math.isnan(self.dice) else f"{self.dice:.3f}"
        return f"{self.kind}_{self.rank:02d}_dice{dice}_{self.row.stem}.png"


def choose(frames: Sequence[FrameResult], choice: PictureChoice) -> list[Chosen]:
    """Chooses rows by Dice. No row is taken twice: best first, then worst, then random.

    Rows without a defined Dice can only be among the random ones. Ties go to the earlier frame.
    """
    rows = [(frame, row) for frame in frames for row in frame.rows]
    dice = [row.counts.metrics()["dice"] for _, row in rows]
    defined = [number for number in range(len(rows)) if not math.isnan(dice[number])]
    best = sorted(defined, key=lambda number: (-dice[number], number))[: choice.best]
    left = [number for number in defined if number not in best]
    worst = sorted(left, key=lambda number: (dice[number], number))[: choice.worst]
    rest = [number for number in range(len(rows)) if number not in {*best, *worst}]
    drawn = random.Random(choice.seed).sample(rest, min(choice.random, len(rest)))
    return [
        Chosen(kind, rank, *rows[number])
        for kind, numbers in (("best", best), ("worst", worst), ("random", drawn))
        for rank, number in enumerate(numbers, 1)
    ]


def draw_all(frames: Sequence[FrameResult], choice: PictureChoice, folder: Path) -> list[Path]:
    """Draws the chosen rows and ``overview.png`` into ``folder``; returns the paths.

    Args:
        frames: with both masks of every row as RLE.
        choice: how many of each kind.
        folder: made if absent.

    Raises:
        DataError: an image cannot be read, or is not of its masks' size.
    """
    chosen = choose(frames, choice)
    if not chosen:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths, cells = [], []
    for item in chosen:
        panels = _panels(item)
        paths.append(folder / item.file_name)
        _save(_six_panels(item, panels), paths[-1])
        cells.append((item, panels["image"], panels["difference"]))
    paths.append(folder / "overview.png")
    _save(_overview(cells), paths[-1])
    return paths


def difference(prediction: np.ndarray, truth: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Colours agreement, false positives and false negatives over the dimmed image.

    Args:
        prediction, truth: bool [H, W].
        grey: uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3].
    """
    out = (grey * 0.35).astype(np.uint8)
    out[prediction & truth] = BOTH_COLOUR
    out[prediction & ~truth] = PREDICTION_COLOUR
    out[truth & ~prediction] = TRUTH_COLOUR
    return out


def overlay(
    image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = PREDICTION_COLOUR
) -> np.ndarray:
    """A mask, bool [H, W], in colour over an image; both uint8 [H, W, 3]."""
    out = image.astype(np.float32)
    out[mask] = 0.35 * out[mask] + 0.65 * np.array(colour, dtype=np.float32)
    return np.rint(out).astype(np.uint8)


def _panels(item: Chosen) -> dict[str, Image.Image]:
    image = read_image(item.frame.image_path)
    truth, prediction = decode_mask(item.row.truth_rle), decode_mask(item.row.prediction_rle)
    if image.shape[:2] != truth.shape:
        raise DataError(
            found=f"{item.frame.image_path} is {image.shape[0]} x {image.shape[1]} pixels, "
            f"its masks are {truth.shape[0]} x {truth.shape[1]}",
            expected="masks of the image's own size",
            fix="give the data set the images that the masks were drawn on",
        )
    binary = {"truth": truth, "prediction": prediction}
    panels = {
        "image": image,
        **{
            name: np.repeat(mask[..., None], 3, -1) * np.uint8(255) for name, mask in binary.items()
        },
        "truth overlaid": overlay(image, truth, TRUTH_COLOUR),
        "prediction overlaid": overlay(image, prediction, PREDICTION_COLOUR),
        "difference": difference(prediction, truth, image),
    }
    return {name: _fit(panel) for name, panel in panels.items()}


def _fit(panel: np.ndarray, side: int = _PANEL) -> Image.Image:
    """Scales uint8 [H, W, 3] to a long side of ``side`` at most."""
    image = Image.fromarray(np.ascontiguousarray(panel))
    factor = side / max(image.size)
    if factor >= 1:  # small images grow by whole factors, so that every pixel stays a square
        size = tuple(length * int(factor) for length in image.size)
        return image.resize(size, Image.Resampling.NEAREST)
    size = tuple(max(1, round(length * factor)) for length in image.size)
    return image.resize(size, Image.Resampling.BOX)


def _six_panels(item: Chosen, panels: dict[str, Image.Image]) -> Image.Image:
    width, height = panels["image"].size
    width = max(width, 240)  # a title has to fit above a tall narrow image, too
    top, caption, legend = 62, 26, 34
    canvas = Image.new(
        "RGB",
        (3 * width + 4 * _GAP, top + 2 * (height + caption) + _GAP + legend),
        _PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    room = canvas.width - 2 * _GAP
    metrics = item.row.counts.metrics()
    numbers = "   ".join(f"{name} {_number(metrics[name])}" for name in ("precision", "recall"))
    _text(
        draw,
        (_GAP, 10),
        f"frame {item.frame.frame}   Dice {_number(item.dice)}",
        20,
        room,
        bold=True,
    )
    empty = "" if item.row.seg_emitted else "   (no [SEG] in the answer)"
    line = f"{item.kind} {item.rank}   “{item.row.phrase}”   {numbers}{empty}"
    _text(draw, (_GAP, 36), line, 15, room, colour=_FAINT)
    counts = item.row.counts
    notes = {
        "truth": " (empty)" * counts.empty_truth,
        "prediction": " (empty)" * (counts.tp + counts.fp == 0),
    }
    for number, (name, panel) in enumerate(panels.items()):
        row, column = divmod(number, 3)
        x, y = _GAP + column * (width + _GAP), top + row * (height + caption + _GAP // 2)
        _text(draw, (x, y + 2), name + notes.get(name, ""), 15, width)
        canvas.paste(panel, (x + (width - panel.width) // 2, y + caption - 2))
    _legend(draw, _GAP, canvas.height - legend + 10, room, item.row)
    return canvas


def _legend(draw: ImageDraw.ImageDraw, x: int, y: int, room: int, row: Row | None = None) -> None:
    entries = [
        (BOTH_COLOUR, "correct (TP)", "tp"),
        (PREDICTION_COLOUR, "false positive: predicted only", "fp"),
        (TRUTH_COLOUR, "false negative: truth only", "fn"),
    ]
    texts = [
        label if row is None else f"{label}, {getattr(row.counts, count)} px"
        for _, label, count in entries
    ]
    size = 14
    while size > 7 and sum(_font(size).getlength(text) + 42 for text in texts) > room:
        size -= 1
    for (colour, _, _), text in zip(entries, texts, strict=True):
        draw.rectangle((x, y + 1, x + 14, y + 15), fill=colour)
        draw.text((x + 22, y), text, font=_font(size), fill=_INK)
        x += 42 + math.ceil(_font(size).getlength(text))


def _overview(cells: list[tuple[Chosen, Image.Image, Image.Image]]) -> Image.Image:
    """All chosen rows on one sheet: a column per kind, image beside difference."""
    kinds = [kind for kind in ("best", "worst", "random") if any(c[0].kind == kind for c in cells)]
    half = 224
    top, caption, legend = 44, 24, 34
    width, height = 2 * half + 4, half + caption + _GAP
    lines = max(item.rank for item, _, _ in cells)
    size = (len(kinds) * (width + 2 * _GAP) + _GAP, top + lines * height + legend)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, kind in enumerate(kinds):
        x = _GAP + column * (width + 2 * _GAP)
        _text(draw, (x, 10), f"{kind}: image, difference", 18, width, bold=True)
    for item, image, diff in cells:
        x = _GAP + kinds.index(item.kind) * (width + 2 * _GAP)
        y = top + (item.rank - 1) * height
        dice = f"Dice {_number(item.dice)}"
        _text(draw, (x, y), dice, 14, width, bold=True)
        start = math.ceil(_font(14, bold=True).getlength(dice)) + 10
        name = item.row.stem.replace("__", "  ")
        _text(draw, (x + start, y), name, 14, width - start, colour=_FAINT)
        for place, panel in enumerate((image, diff)):
            small = _fit(np.asarray(panel), half)
            left = x + place * (half + 4) + (half - small.width) // 2
            canvas.paste(small, (left, y + caption - 2 + (half - small.height) // 2))
    _legend(draw, _GAP, canvas.height - legend + 8, canvas.width - 2 * _GAP)
    return canvas


def _text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    room: float,
    *,
    bold: bool = False,
    colour: tuple[int, int, int] = _INK,
) -> None:
    """Draws one line; where it would run out of its room, an ellipsis takes its middle's place."""
    font, line = _font(size, bold), " ".join(text.split("\n"))
    cut, kept = line, len(line)
    while kept and font.getlength(cut) > room:
        kept -= 1
        tail = kept // 2
        cut = f"{line[: kept - tail]}…{line[len(line) - tail :]}"
    draw.text(place, cut, font=font, fill=colour)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib brings this font along, so pictures do not depend on the machine's fonts
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def _save(picture: Image.Image, path: Path) -> None:
    write_atomic(path, lambda file: picture.save(file, format="PNG"))

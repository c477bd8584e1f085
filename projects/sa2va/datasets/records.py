"""Masks as they are stored: one record an image, validated before any image is decoded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import DataError
from .image_io import read_mask

TOLERANCE_PX = 1.0
"""How far a vertex may lie outside its image before it is an error (drawing tools overshoot)."""


@dataclass
class Obj:
    """One phrase and the region it means; without polygons, rle and mask_path the region is empty.

    Attributes:
        phrase: the text that names the object.
        polygons: float64 [N, 2] each, x and y in pixels; the region is their union.
        rle: compressed COCO RLEs; the region is the union with the polygons.
        mask_path: a mask file of the image's size, see :func:`image_io.read_mask`.
    """

    phrase: str
    polygons: list[np.ndarray] = field(default_factory=list)
    rle: list[dict[str, Any]] = field(default_factory=list)
    mask_path: Path | None = None

    def fingerprint(self) -> list[Any]:
        """Returns phrase and region as plain JSON values, the same on every machine."""
        mask_hash = None
        if self.mask_path is not None:
            mask_hash = hashlib.sha256(self.mask_path.read_bytes()).hexdigest()
        rles = [[list(rle["size"]), _text(rle["counts"])] for rle in self.rle]
        return [self.phrase, [p.tolist() for p in self.polygons], rles, mask_hash]


@dataclass
class Record:
    """One image and its objects.

    Attributes:
        image_path: where the image is.
        name: its file name relative to the image folder, with forward slashes.
        width, height: size in pixels.
        objects: what is to be segmented; empty for language-only samples.
        turns: question and answer pairs of a language-only sample.
        patient_raw: the patient id as the user wrote it; never written to results.
    """

    image_path: Path
    name: str
    width: int
    height: int
    objects: list[Obj] = field(default_factory=list)
    turns: list[tuple[str, str]] = field(default_factory=list)
    patient_raw: str | None = None


def _text(counts: str | bytes) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def rasterise(obj: Obj, height: int, width: int) -> np.ndarray:
    """Draws the object: the union of its parts, so that overlaps stay 1.

    Polygons follow pycocotools' rule (the reference's too): a pixel belongs to the region if its
    centre does, up to rounding on a five times finer grid.

    Returns:
        uint8 [height, width] of {0, 1}.

    Raises:
        DataError: a mask file that cannot be read or has another size than the image.
    """
    mask = np.zeros((height, width), np.uint8)
    if obj.polygons:
        rles = coco_mask.frPyObjects([p.ravel().tolist() for p in obj.polygons], height, width)
        mask |= coco_mask.decode(coco_mask.merge(rles))
    if obj.rle:
        mask |= coco_mask.decode(coco_mask.merge(obj.rle))
    if obj.mask_path is not None:
        from_file = read_mask(obj.mask_path)
        if from_file.shape != mask.shape:
            raise mask_size_error(obj.mask_path, from_file.shape[::-1], (width, height))
        mask |= from_file
    return mask


def mask_size_error(path: Path, mask_size: Sequence[int], image_size: Sequence[int]) -> DataError:
    """Returns the error for a mask file of another size (width, height) than its image."""
    return DataError(
        f"mask {path} is {mask_size[0]} x {mask_size[1]} px, "
        f"its image is {image_size[0]} x {image_size[1]} px",
        "a mask of the size of its image",
        "export the mask at the image's own size (resizing a thin-vessel mask loses vessels)",
    )


def parse_polygon(points: Any, width: int, height: int) -> tuple[np.ndarray | None, str]:
    """Checks one polygon given as ``[x1, y1, x2, y2, ...]``.

    Returns:
        (float64 [N, 2], "") or (None, what is wrong with it).
    """
    if not isinstance(points, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in points
    ):
        return None, "polygon is not a flat list of numbers"
    if len(points) % 2:
        return None, f"polygon has an odd count of numbers ({len(points)})"
    if len(points) < 6:
        return None, f"polygon has {len(points) // 2} points, fewer than 3"
    xy = np.asarray(points, np.float64).reshape(-1, 2)
    if not np.isfinite(xy).all():
        return None, "polygon has a coordinate that is not finite"
    low, high = xy.min(axis=0), xy.max(axis=0)
    if (low < -TOLERANCE_PX).any() or (high > np.array([width, height]) + TOLERANCE_PX).any():
        return None, (
            f"polygon outside the image: it spans x {low[0]:g}..{high[0]:g}, "
            f"y {low[1]:g}..{high[1]:g} on an image of {width} x {height} px"
        )
    return xy, ""


def is_drawable(points: Any) -> bool:
    """Whether ``points`` is a flat list of finite x and y, of a point or more."""
    numbers = isinstance(points, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in points
    )
    return bool(numbers and points and len(points) % 2 == 0)


def parse_rle(rle: Any, width: int, height: int) -> tuple[dict[str, Any] | None, str]:
    """Checks one COCO RLE (counts as a list, or compressed as text).

    pycocotools returns uninitialised memory for counts that are too short, so the counts are
    added up here first.

    Returns:
        (compressed RLE, "") or (None, what is wrong with it).
    """
    if not isinstance(rle, dict) or "counts" not in rle or "size" not in rle:
        return None, "RLE without `counts` and `size`"
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, list) or len(size) != 2:
        return None, f"RLE size {size!r} is not [height, width]"
    if size != [height, width]:
        return None, (
            f"RLE is drawn at {size[1]} x {size[0]} px on an image of {width} x {height} px"
        )
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts):
            return None, "RLE counts are not all integers of 0 or more"
        runs = counts
    elif isinstance(counts, str) and counts.isascii():
        runs = _uncompressed_runs(counts)
    else:
        return None, "RLE counts are neither a list nor ASCII text"
    if runs is None or sum(runs) != width * height:
        total = "no whole number of" if runs is None else sum(runs)
        return None, f"RLE covers {total} pixels, the image has {width * height}"
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width), ""
    return {"size": [height, width], "counts": counts}, ""


def _uncompressed_runs(counts: str) -> list[int] | None:
    """Decodes COCO's compressed counts (maskApi.c, rleFrString); None if they are broken."""
    runs: list[int] = []
    value = shift = 0
    for char in counts:
        code = ord(char) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            return None
        value = shift = 0
    return runs if shift == 0 else None


def read_json(path: Path, what: str) -> Any:
    """Reads a JSON file; raises DataError naming ``what`` it should have been."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist",
            what,
            "correct `ann_file` or `data_root` in the config, or copy the file there",
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            what,
            "export the annotations again; the file must be UTF-8 JSON",
        ) from error


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    Attributes:
        found, expected, fix: as of :class:`~projects.sa2va.errors.UserError`.
        kind: what it is, one word for all of its sort.
        image: name of the image below the image folder, where it belongs to one.
        regions: polygons [x1, y1, ...] as they are written, where it belongs to some.
    """

    found: str
    expected: str
    fix: str
    kind: str = "annotations"
    image: str | None = None
    regions: tuple[tuple[float, ...], ...] = ()


_COLLECTED: ContextVar[list[Problem] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting() -> Iterator[list[Problem]]:
    """Lets readers go on past problems: they end in the list, and what can be read is read.

    A reader stops at its first problems, because nobody should train on half of a data set. The
    check of a data set (:mod:`.verify`) wants all of them.
    """
    problems: list[Problem] = []
    token = _COLLECTED.set(problems)
    try:
        yield problems
    finally:
        _COLLECTED.reset(token)


class Findings:
    """Collects everything that is wrong, so that a user mends a data set in one go, not in ten.

    Args:
        where: what was checked, for the head of the message.
        limit: how many findings the message lists; the rest is counted.
    """

    def __init__(self, where: object, limit: int = 20) -> None:
        self.where, self.limit = where, limit
        self._items: list[Problem] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(
        self,
        found: str,
        expected: str,
        fix: str,
        kind: str = "annotations",
        image: str | None = None,
        regions: Sequence[Sequence[float]] = (),
    ) -> None:
        """Notes one finding; equal ``expected`` and ``fix`` texts are written only once."""
        drawn = tuple(tuple(region) for region in regions)
        self._items.append(Problem(found, expected, fix, kind, image, drawn))

    def add_error(self, error: DataError, kind: str = "file", image: str | None = None) -> None:
        """Notes an error that was raised for one file."""
        self.add(error.found, error.expected, error.fix, kind, image)

    def raise_if_any(self) -> None:
        """Raises one DataError with all findings, if there are any (see :func:`collecting`)."""
        collected = _COLLECTED.get()
        if collected is not None:
            collected += self._items
            self._items = []
        if not self._items:
            return
        found = [item.found for item in self._items]
        if len(found) == 1:
            text = f"{self.where}: {found[0]}"
        else:
            lines = [f"\n    - {line}" for line in found[: self.limit]]
            if len(found) > self.limit:
                lines.append(f"\n    and {len(found) - self.limit} more")
            text = f"{len(found)} problems in {self.where}:{''.join(lines)}"
        expected, fix = (
            "; ".join(dict.fromkeys(getattr(item, part) for item in self._items))
            for part in ("expected", "fix")
        )
        raise DataError(text, expected, fix)

"""The folder of results: per-frame files while testing, the numbers at the end.

    metrics.json        everything; strict JSON, undefined values are null
    per_frame.csv       one line per row (frame, phrase); undefined values are empty
    probabilities/      <stem>.png, 8 bit: value = round(255 * probability), or
                        <stem>.npz, float16 [H, W] under the key ``probability``
    masks/              <stem>.png, 0 or 255
    masks.json          COCO results: a list of {image_id, category, segmentation (RLE)}
    pictures/           see :mod:`.pictures`
    report.html         see :mod:`.html_report`

``<stem>`` is the frame's name, followed by ``__<phrase>`` where the frame has several phrases.
Every file is written under another name first and then renamed, so a file that is there is whole.
Masks are cut from the float32 probabilities; cutting an 8-bit PNG again can move pixels whose
probability lies within 1/510 of the threshold, and float16 those within 1/4096 of it (relative).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..files import make_writable, write_atomic
from .rows import FrameResult

PROBABILITY_FORMATS = ("png", "npz", "none")
_PLAIN_PHRASE = re.compile(r"[A-Za-z0-9]+( [A-Za-z0-9]+)*")


def strict(value: Any) -> Any:
    """Turns ``value`` into what strict JSON holds: ``nan`` into None, numpy and paths into plain.

    Raises:
        TypeError: a value has no JSON form.
        ValueError: an infinite number, which no metric can be.
    """
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, np.generic):
        return strict(value.item())
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError("an infinite number has no place in the results")
        return None if math.isnan(value) else value
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def file_stem(frame: str, phrase: str | None = None) -> str:
    """Name of a row's files, without ending; ``phrase`` only where the frame has several.

    Characters that are not safe in file names become ``_``. A phrase of plain words is joined by
    ``-``; any other gets eight digits of its SHA-1 besides, so that two phrases never share a name.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", frame).lstrip(".") or "_"
    if phrase is None:
        return stem
    slug = re.sub(r"[^A-Za-z0-9]+", "-", phrase).strip("-")[:40].rstrip("-")
    if not _PLAIN_PHRASE.fullmatch(phrase) or len(phrase) > 40:
        digest = hashlib.sha1(phrase.encode(), usedforsecurity=False).hexdigest()[:8]
        slug = f"{slug}-{digest}" if slug else digest
    return f"{stem}__{slug}"


def encode_mask(mask: np.ndarray) -> dict:
    """COCO RLE of a bool mask [H, W], with ``counts`` as text, so that JSON can hold it."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: Mapping[str, Any]) -> np.ndarray:
    """The bool mask [H, W] of :func:`encode_mask`."""
    return coco_mask.decode(dict(rle)).astype(bool)


def frame_records(frames: Iterable[FrameResult]) -> list[dict[str, Any]]:
    """The ``per_frame`` list of metrics.json: one record per row (frame, phrase)."""
    return [
        {
            "frame": frame.frame,
            "patient": frame.patient,
            "phrase": row.phrase,
            **row.scores.values(),
            "counts": {name: getattr(row.counts, name) for name in ("tp", "fp", "fn", "tn")},
            "oracle": None if row.oracle is None else row.oracle.values(),
            "spacing_mm": frame.spacing,
            "truth": row.truth_hash,
            "seg_emitted": row.seg_emitted,
            "answer": row.answer,
            "file": row.stem,
            **({} if row.presence is None else {"presence": row.presence}),
        }
        for frame in frames
        for row in frame.rows
    ]


def write_probability(path: Path, probability: np.ndarray, kind: str) -> Path:
    """Writes a map, float32 [H, W] in [0, 1]; returns the file.

    Args:
        path: without ending.
        probability: the map.
        kind: 'png' (round(255 p), 8 bit) or 'npz' (float16, key ``probability``).
    """
    path = path.with_name(f"{path.name}.{kind}")
    if kind == "png":
        _write_png(path, np.rint(probability * 255).astype(np.uint8))
    else:
        half = probability.astype(np.float16)
        write_atomic(path, lambda file: np.savez_compressed(file, probability=half))
    return path


def write_mask(path: Path, mask: np.ndarray) -> Path:
    """Writes a bool mask [H, W] as PNG of 0 and 255; ``path`` without ending. Returns the file."""
    path = path.with_name(f"{path.name}.png")
    _write_png(path, mask.astype(np.uint8) * 255)
    return path


def _write_png(path: Path, levels: np.ndarray) -> None:
    write_atomic(path, lambda file: Image.fromarray(levels).save(file, format="PNG"))


class ResultsWriter:
    """Writes the folder of results that the module's docstring lists.

    Every process may hold one on the same folder: each writes the files of its own frames, and
    one of them the files at the end.

    Args:
        out_dir: the folder; made if absent.
        save_probabilities: 'png', 'npz' or 'none'.
        save_masks: whether masks/ and masks.json are written.

    Raises:
        SetupError: the folder cannot be written to. Found out here, before any long work.
    """

    def __init__(self, out_dir: str | Path, save_probabilities: str, save_masks: bool) -> None:
        self.out_dir = Path(out_dir)
        self.save_probabilities, self.save_masks = save_probabilities, save_masks
        folders = [self.out_dir]
        if save_probabilities != "none":
            folders.append(self.out_dir / "probabilities")
        if save_masks:
            folders.append(self.out_dir / "masks")
        for folder in folders:
            make_writable(folder, "--out, or out_dir of the evaluator in the config")

    def write_row(self, stem: str, probability: np.ndarray, mask: np.ndarray) -> None:
        """Writes one row's files.

        Args:
            stem: from :func:`file_stem`.
            probability: float32 [H, W] in [0, 1].
            mask: bool [H, W].
        """
        if self.save_probabilities != "none":
            write_probability(
                self.out_dir / "probabilities" / stem, probability, self.save_probabilities
            )
        if self.save_masks:
            write_mask(self.out_dir / "masks" / stem, mask)

    def write_json(self, name: str, content: Any) -> None:
        """Writes strict JSON (:func:`strict`)."""
        text = json.dumps(strict(content), indent=1, allow_nan=False, ensure_ascii=False)
        write_atomic(self.out_dir / name, lambda file: file.write(f"{text}\n".encode()))

    def write_table(self, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
        """Writes per_frame.csv from :func:`frame_records`; UTF-8, comma, undefined left empty.

        Args:
            records: one per row.
            names: the metrics among their keys, in the order of the columns.
        """
        columns = ["frame", "patient", "phrase", *names, "tp", "fp", "fn", "tn"]
        columns += ["seg_emitted", "answer", "file"]
        columns += ["presence"] if any("presence" in record for record in records) else []

        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns, extrasaction="ignore")
        table.writeheader()
        for record in records:
            table.writerow(strict({**record, **record["counts"]}))
        content = text.getvalue().encode()
        write_atomic(self.out_dir / "per_frame.csv", lambda file: file.write(content))

    def write_masks(self, frames: Iterable[FrameResult]) -> None:
        """Writes masks.json: COCO results whose ``image_id`` is the frame's output name."""
        self.write_json(
            "masks.json",
            [
                {
                    "image_id": frame.frame,
                    "category": row.phrase,
                    "segmentation": row.prediction_rle,
                }
                for frame in frames
                for row in frame.rows
            ],
        )

    def strangers(self, stems: set[str]) -> list[str]:
        """Files under probabilities/ and masks/ that belong to none of ``stems`` (an older run)."""
        folders = [self.out_dir / "probabilities", self.out_dir / "masks"]
        return sorted(
            f"{folder.name}/{path.name}"
            for folder in folders
            if folder.is_dir()
            for path in folder.iterdir()
            if path.stem not in stems and not path.name.endswith(".tmp")
        )

"""What a page about a test run is made from: the files of its folder, and nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..errors import DataError, listing
from .run_folder import read_report

CURVE = "threshold_curve.json"
_PICTURE = re.compile(r"(best|worst|random)_(\d+)_dice(undefined|\d\.\d{3})_(.+)\.png")
_WANTED = (
    *("mean", "patient_mean", "pooled", "undefined", "counts", "per_patient", "warnings"),
    *("invalid_because", "seg_emission_rate"),
)


@dataclass(frozen=True)
class RunRow:
    """One phrase of one frame, as ``per_frame`` of metrics.json has it.

    Attributes:
        number: position in the table, from 1.
        frame, patient, phrase, answer, stem: as in :class:`~.rows.FrameResult` and ``Row``.
        values: metric by name; ``nan`` where undefined.
        counts: tp, fp, fn and tn in pixels.
        seg_emitted: whether the answer held [SEG].
    """

    number: int
    frame: str
    patient: str | None
    phrase: str
    answer: str
    stem: str
    values: Mapping[str, float]
    counts: Mapping[str, int]
    seg_emitted: bool

    @property
    def vessel_fraction(self) -> float:
        """Share of the frame's pixels that are vessel in truth."""
        total = sum(self.counts.values())
        return (self.counts["tp"] + self.counts["fn"]) / total if total else math.nan

    @property
    def faults(self) -> list[str]:
        """What went wrong altogether; empty for most rows."""
        tp, fp, fn = (self.counts[name] for name in ("tp", "fp", "fn"))
        # Nothing there and nothing given is what should be.
        found = [] if self.seg_emitted or not tp + fn else ["no [SEG] in the answer"]
        if tp + fn and not tp + fp:
            found.append("empty prediction")
        elif fp and not tp + fn:
            found.append(f"{fp} px predicted where the truth is empty")
        elif tp + fn and not tp:
            found.append("prediction and truth share no pixel")
        return found


@dataclass(frozen=True)
class Panel:
    """A six-panel picture of a row; ``kind`` is 'best', 'worst' or 'random', ``rank`` from 1."""

    kind: str
    rank: int
    row: RunRow
    path: Path


class RunFiles:
    """The files of a results folder.

    Args:
        folder: of tools/test.py or tools/score.py.
        pictures: folder of the six-panel pictures; ``pictures`` in it by default.
        curve: threshold_curve.json of tools/tune_threshold.py; the one in it by default.

    Raises:
        DataError: metrics.json is missing, damaged or of another version.
    """

    def __init__(
        self,
        folder: str | Path,
        pictures: str | Path | None = None,
        curve: str | Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.curve = Path(curve or self.folder / CURVE)
        self.report = read_report(folder)
        missing = [key for key in _WANTED if key not in self.report]
        if missing:
            raise DataError(
                found=f"{self.folder / 'metrics.json'} lacks {listing(missing)}",
                expected="metrics.json as this version writes it",
                fix="test again, or score the stored maps again: tools/score.py RUN --out FOLDER",
            )
        self.names: list[str] = self.report["metrics"]
        self.rows = [
            _row(number, record, self.names)
            for number, record in enumerate(self.report["per_frame"], 1)
        ]
        self.panels = self._panels(Path(pictures or self.folder / "pictures"))

    @property
    def has_patients(self) -> bool:
        """Whether patients are known; output names are pseudonyms then."""
        return bool(self.report["counts"].get("patients"))

    def _panels(self, folder: Path) -> list[Panel]:
        """Those of this run: another run's in the same folder have other frames or another Dice."""
        rows = {row.stem: row for row in self.rows}
        found = []
        for path in sorted(folder.glob("*.png")):
            match = _PICTURE.fullmatch(path.name)
            row = rows.get(match[4]) if match else None
            if row is not None and match[3] == dice_text(row.values["dice"]):
                found.append(Panel(match[1], int(match[2]), row, path))
        return found


def dice_text(dice: float) -> str:
    """Dice as the names of pictures hold it."""
    return "undefined" if math.isnan(dice) else f"{dice:.3f}"


def read_picture(path: Path, width: int) -> Image.Image:
    """A picture, at most ``width`` pixels wide.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            image = picture.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(
            found=f"{path} cannot be read: {error}",
            expected="a picture of the test",
            fix="test again, or remove the file: the page is made without it",
        ) from error
    if image.width <= width:
        return image
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def number(value: float | None) -> float:
    """null of metrics.json is ``nan``."""
    return math.nan if value is None else float(value)


def _row(position: int, record: Mapping[str, Any], names: list[str]) -> RunRow:
    return RunRow(
        number=position,
        frame=record["frame"],
        patient=record["patient"],
        phrase=record["phrase"],
        answer=record["answer"],
        stem=record["file"],
        values={name: number(record[name]) for name in names},
        counts=record["counts"],
        seg_emitted=record["seg_emitted"],
    )

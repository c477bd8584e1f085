"""A results folder read back: maps beside the truth they were scored against, with no model.

    for row in StoredRun.open("work_dirs/x/20260101_000000").rows():
        row.frame, row.patient, row.phrase, row.probability, row.truth

The truth comes from the data set of the run's config, never from the folder. What does not belong
together is refused: another split, a frame more or less, a mask that changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import DataError, listing
from .chosen_threshold import model_digest
from .report import THRESHOLD_RULE
from .scoring import mask_hash

if TYPE_CHECKING:
    from ..datasets.base import VesselDataset

_RESCORE = "test again: tools/test.py CONFIG --checkpoint FILE --out FOLDER"


@dataclass(frozen=True)
class StoredRow:
    """One phrase of one frame.

    Attributes:
        index: position of the frame in the data set.
        frame: the frame's output name.
        patient: the patient's pseudonym, or None.
        phrase: the phrase that was asked for.
        probability: float32 [H, W], as saved (8 bit or float16).
        truth: bool [H, W].
        meta: of the data set's item.
        record: of ``per_frame`` in metrics.json.
    """

    index: int
    frame: str
    patient: str | None
    phrase: str
    probability: np.ndarray
    truth: np.ndarray
    meta: Mapping[str, Any]
    record: Mapping[str, Any]


def read_report(folder: str | Path) -> dict[str, Any]:
    """metrics.json of a results folder.

    Raises:
        DataError: it is not there, no JSON, or none of this program's.
    """
    path = Path(folder) / "metrics.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            found=f"{folder} holds no metrics.json",
            expected="a results folder of tools/test.py whose test ran to its end",
            fix=_RESCORE,
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            found=f"{path} cannot be read: {error}", expected="strict JSON", fix=_RESCORE
        ) from error
    wanted = ("per_frame", "threshold", "threshold_rule", "metrics", "valid")
    missing = [key for key in wanted if not isinstance(report, dict) or key not in report]
    if missing:
        raise DataError(
            found=f"{path} lacks {listing(missing)}",
            expected="metrics.json as this version writes it",
            fix=_RESCORE,
        )
    if report["threshold_rule"] != THRESHOLD_RULE:
        raise DataError(
            found=f"{path}: threshold_rule {report['threshold_rule']!r}",
            expected=repr(THRESHOLD_RULE),
            fix=_RESCORE,
        )
    return report


class StoredRun:
    """A results folder and the data set it was scored on.

    Args:
        folder: the results folder.
        report: its metrics.json.
        dataset: the frames that were scored, in test mode.
        model: digest of the config's model (:func:`.chosen_threshold.model_digest`).

    Raises:
        DataError: the data set is not the one of the run.
    """

    def __init__(
        self, folder: str | Path, report: dict[str, Any], dataset: VesselDataset, model: str = ""
    ) -> None:
        self.model = model
        self.folder, self.report, self.dataset = Path(folder), report, dataset
        self._records = {(item["frame"], item["phrase"]): item for item in report["per_frame"]}
        asked = {
            (frame, obj.phrase)
            for frame, record in zip(dataset.frame_ids, dataset.records, strict=True)
            for obj in record.objects
        }
        missing, foreign = asked - self._records.keys(), self._records.keys() - asked
        if missing or foreign:
            raise DataError(
                found=f"{folder}: {len(missing)} rows of the data set are missing "
                f"({listing(sorted(missing), 3)}), {len(foreign)} are none of it "
                f"({listing(sorted(foreign), 3)})",
                expected="every frame and phrase of the data set, and no other",
                fix="give the config and data that the run was tested with, or " + _RESCORE,
            )

    @classmethod
    def open(cls, folder: str | Path, config: str | Path | None = None) -> StoredRun:
        """Opens a results folder.

        Args:
            folder: the results folder of tools/test.py.
            config: in place of the ``config.py`` in it.

        Raises:
            DataError: a file is missing, or the data are not those of the run.
            ConfigError: the config cannot be read.
        """
        # The rules of configs know the evaluator, so that this package cannot import them first.
        from mmengine.registry import DATASETS

        from ..config import load_config
        from ..datasets.hashes import split_hash

        report = read_report(folder)
        path = Path(config) if config is not None else Path(folder) / "config.py"
        if not path.is_file():
            raise DataError(
                found=f"{path} does not exist",
                expected="the config of the test run, which tools/test.py writes there",
                fix="name it by --config, or " + _RESCORE,
            )
        cfg = load_config(path)
        dataset = DATASETS.build(cfg["test_dataloader"]["dataset"])
        found = split_hash(dataset)
        if found != report.get("split"):
            raise DataError(
                found=f"{folder} was scored on the split {str(report.get('split'))[:16]}, "
                f"{path.name} describes {found[:16]}",
                expected="the frames, labels and phrases that the run was tested on",
                fix="put the data back as they were, or " + _RESCORE,
            )
        return cls(folder, report, dataset, model_digest(cfg.model.to_dict()))

    def rows(self) -> Iterator[StoredRow]:
        """All rows in the order of the data set, read one by one.

        Raises:
            DataError: a map is missing or of another size, or a mask is not the one that the run
                was scored against.
        """
        for index, frame in enumerate(self.dataset.frame_ids):
            record = self.dataset.records[index]
            phrases = [obj.phrase for obj in record.objects]
            meta = {
                "index": index,
                "frame": frame,
                "patient": self.dataset.patients[index],
                "phrases": phrases,
                "image_path": str(record.image_path),
                "spacing": getattr(self.dataset, "spacing", None),
            }
            for phrase, mask in zip(phrases, self.dataset.masks(index), strict=True):
                stored, truth = self._records[frame, phrase], mask.astype(bool)
                if mask_hash(truth) != stored["truth"]:
                    raise DataError(
                        found=f"the mask of {frame!r} is not the one that {self.folder} was "
                        "scored against",
                        expected="labels that do not change between runs",
                        fix="put the labels back as they were, or " + _RESCORE,
                    )
                probability = read_probability(self.folder, stored["file"])
                if probability.shape != truth.shape:
                    raise DataError(
                        found=f"frame {frame!r}: map {probability.shape}, mask {truth.shape}",
                        expected="maps at the size of the frames",
                        fix=_RESCORE,
                    )
                yield StoredRow(
                    index, frame, meta["patient"], phrase, probability, truth, meta, stored
                )


def read_probability(folder: str | Path, stem: str) -> np.ndarray:
    """A stored map, float32 [H, W]: of ``probabilities/<stem>.png`` (8 bit) or ``.npz``.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    base = Path(folder) / "probabilities"
    png, npz = base / f"{stem}.png", base / f"{stem}.npz"
    try:
        if npz.is_file():
            with np.load(npz) as content:
                return content["probability"].astype(np.float32)
        with Image.open(png) as image:
            # Divided in float64: 255 levels to the float32 next to the true value.
            return (np.asarray(image) / 255).astype(np.float32)
    except FileNotFoundError as error:
        raise DataError(
            found=f"no map {stem}.png or {stem}.npz in {base}",
            expected="the probability map of every frame",
            fix="test with save_probabilities='png' or 'npz' in the evaluator",
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            found=f"the map {stem} in {base} cannot be read: {error}",
            expected="an 8-bit PNG, or an NPZ with the key 'probability'",
            fix=_RESCORE,
        ) from error

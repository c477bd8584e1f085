"""Scores that need no model: a stored run at another threshold, or masks of any origin."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from tqdm import tqdm

from ..datasets.image_io import IMAGE_SUFFIXES, read_mask
from ..datasets.patients import PatientIds, stem_names
from ..errors import DataError, listing
from .chosen_threshold import ChosenThreshold
from .report import PROVENANCE
from .run_folder import StoredRun
from .vessel_metric import VesselMetric


@dataclass
class _Stored:
    """What :class:`VesselMetric` reads of a prediction."""

    probabilities: torch.Tensor
    answers: list[str]
    seg_emitted: list[bool]
    presence: list[float] | None = None


def rescore(
    folder: str | Path,
    *,
    config: str | Path | None = None,
    threshold: float | ChosenThreshold | None = None,
    out_dir: str | Path | None = None,
    progress: bool = True,
    **evaluator: Any,
) -> dict[str, float]:
    """Scores a stored run again, from its saved maps.

    Args:
        folder: results folder of tools/test.py.
        config: in place of the ``config.py`` in it.
        threshold: in place of the run's, or the file that holds one with its post-processing; a
            number keeps the run's post-processing. Choose it on validation data.
        out_dir: where results are written, with ``rescored_from`` in metrics.json; None: nowhere.
        progress: show a bar.
        **evaluator: further arguments of :class:`VesselMetric`.

    Returns:
        As :meth:`VesselMetric.evaluate`.

    Raises:
        UserError: as :class:`StoredRun` and :class:`VesselMetric`.
    """
    run = StoredRun.open(folder, config)
    value, post, source = _threshold(run, threshold)
    metric = VesselMetric(
        **{"threshold": value, "postprocess": post, "out_dir": out_dir, **evaluator}
    )
    metric.dataset_meta = run.dataset.metainfo
    if run.report.get("oracle"):
        metric.set_grid(run.report["oracle"]["grid"])
    kept = (*PROVENANCE, "presence_threshold", "test_split")
    provenance = {key: run.report.get(key) for key in kept}
    own = {"threshold_source": source, "rescored_from": Path(folder).name}
    metric.set_provenance({**provenance, **own})
    rows = tqdm(run.rows(), "scoring", len(run.report["per_frame"]), disable=not progress)
    for _, group in groupby(rows, key=lambda row: row.index):
        items = list(group)
        stored = _Stored(
            torch.from_numpy(np.stack([item.probability for item in items])),
            [item.record["answer"] for item in items],
            [item.record["seg_emitted"] for item in items],
            [item.record["presence"] for item in items] if "presence" in items[0].record else None,
        )
        truth = torch.from_numpy(np.stack([item.truth for item in items]).astype(np.uint8))
        metric.process({"truth": [truth], "meta": [items[0].meta]}, [stored])
    return metric.evaluate(len(run.dataset))


def _threshold(
    run: StoredRun, threshold: float | ChosenThreshold | None
) -> tuple[float, dict[str, Any] | None, Any]:
    """Threshold, post-processing and their source."""
    report = run.report
    if threshold is None:
        return report["threshold"], report.get("postprocess"), report.get("threshold_source")
    if not isinstance(threshold, ChosenThreshold):
        return threshold, report.get("postprocess"), {"kind": "command line"}
    tested = report.get("checkpoint") or {}
    source, weights = f"the checkpoint of {run.folder}", tested.get("weights", "raw")
    for note in [
        *threshold.check_weights(tested.get("sha256"), run.model, source, weights),
        *threshold.check_frames(run.dataset, report.get("split_name") or "test"),
    ]:
        print_log(note, logger="current", level=logging.WARNING)
    return threshold.threshold, threshold.postprocess, threshold.source()


def score_masks(
    predictions: str | Path,
    truths: str | Path,
    *,
    patient: Mapping[str, Any] | None = None,
    phrase: str = "blood vessel",
    out_dir: str | Path | None = None,
    progress: bool = True,
    **evaluator: Any,
) -> dict[str, float]:
    """Scores a folder of masks against another: a second observer, or another program's output.

    Args:
        predictions: folder of masks, paired with ``truths`` by their path without suffix; any
            non-zero pixel is vessel.
        truths: folder of masks.
        patient: how to tell patients by the paths of ``truths``, as in a data set
            (:mod:`~projects.sa2va.datasets.patients`); None: not known.
        phrase: what the results call the masks.
        out_dir: where results are written; None: nowhere.
        progress: show a bar.
        **evaluator: further arguments of :class:`VesselMetric`, but for ``threshold``.

    Returns:
        As :meth:`VesselMetric.evaluate`.

    Raises:
        DataError: a mask without its partner, unreadable, or of another size.
    """
    pairs = list(_pairs(Path(predictions), Path(truths)))
    metric = VesselMetric(threshold=0.5, out_dir=out_dir, pictures=None, **evaluator)
    metric.dataset_meta = {"frames": len(pairs)}
    metric.set_provenance({**dict.fromkeys(PROVENANCE), "predictions": Path(predictions).name})
    names = [path.relative_to(truths).as_posix() for _, _, path in pairs]
    patients, frames = [None] * len(pairs), stem_names(names)
    if patient is not None:
        ids = PatientIds(patient)
        raw = ids.raw_ids(names)
        patients, frames = ids.pseudonyms(raw), ids.frame_names(names, raw)
    for index, (_, *paths) in enumerate(tqdm(pairs, "scoring", disable=not progress)):
        predicted, truth = (torch.from_numpy(read_mask(path))[None] for path in paths)
        meta = {
            "index": index,
            "frame": frames[index],
            "patient": patients[index],
            "phrases": [phrase],
            "image_path": "",
        }
        stored = _Stored(predicted.float(), [""], [True])
        metric.process({"truth": [truth], "meta": [meta]}, [stored])
    return metric.evaluate(len(pairs))


def _pairs(predictions: Path, truths: Path) -> Iterator[tuple[str, Path, Path]]:
    ours, theirs = _masks(predictions), _masks(truths)
    alone = [f"{predictions}/{name}" for name in sorted(ours.keys() - theirs.keys())]
    alone += [f"{truths}/{name}" for name in sorted(theirs.keys() - ours.keys())]
    if alone:
        raise DataError(
            found=f"{len(alone)} masks without a partner of the same name: {listing(alone)}",
            expected="one prediction for every true mask, and no other",
            fix="add what is missing; a frame that is left out would make the score look better",
        )
    for name in sorted(ours):
        yield name, ours[name], theirs[name]


def _masks(folder: Path) -> dict[str, Path]:
    """Mask files by their path below ``folder`` without suffix."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder", "a folder of masks", "correct the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(
                found=f"{found[name]} and {path} have one name",
                expected="one mask a name",
                fix="remove one of them",
            )
        found[name] = path
    if not found:
        raise DataError(f"no masks in {folder}", "image files", "correct the path")
    return found

"""Makes splits of a data set and writes them as files that its reader reads."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from ..config import dataset_configs, load_config
from ..errors import ConfigError, DataError, listing
from .hashes import split_hash
from .records import read_json
from .split_files import Frame, Pool
from .splits import Group, deal, folds, make_groups
from .verify import label_config

RECORD = "splits.json"
NAMES = ("train", "val", "test")
_LEAST_FOLDS = 3


@dataclass(frozen=True)
class Row:
    """One written split: its file below the folder, counts, mean vessel fraction, and hash."""

    file: str
    frames: int
    patients: int
    vessel_fraction: float
    hash: str


def source_configs(
    source: str | Path,
    *,
    images: str | None = None,
    masks: str | None = None,
    mask_suffix: str = "",
    patient: str | None = None,
    splits: Sequence[str] | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Returns the data set configs of what is to be split.

    Args:
        source: a config, an annotation file (COCO or the reference's), or a folder of images.
        images: folder of the images of an annotation file.
        masks: folder of the masks of a folder of images.
        mask_suffix: see :class:`~projects.sa2va.datasets.folder.FolderVesselDataset`.
        patient: pattern whose first group is the patient in a file name.
        splits: splits of a config to pool; None: all.
        cfg_options: overrides of a config.

    Raises:
        ConfigError: a source that is none of these, or options that do not belong to it.
        DataError: an annotation file that cannot be read.
    """
    path = Path(source)
    ids = {"patient": {"type": "regex", "pattern": patient}} if patient else {}
    if path.suffix == ".py":
        found = dataset_configs(load_config(path, cfg_options))
        wrong = [split for split in splits or () if split not in found]
        if wrong or not found:
            raise ConfigError(
                f"no split {listing(wrong or NAMES)} in {path}",
                f"splits of the config: {listing(found)}",
                "correct --split",
            )
        kept = {s: c for s, c in found.items() if not splits or s in splits}
        return {split: {**label_config(config), **ids} for split, config in kept.items()}
    common = {"processor": {"tokenizer": {"type": "byte_level"}}, **ids}
    if path.is_dir() and masks:
        kind = {"type": "FolderVesselDataset", "image_dir": str(path), "mask_dir": masks}
        return {"all": {**kind, "mask_suffix": mask_suffix, **common}}
    if path.suffix == ".json" and images:
        is_list = isinstance(read_json(path, "an annotation file"), list)
        kind = "Sa2VAJsonDataset" if is_list else "CocoVesselDataset"
        return {"all": {"type": kind, "ann_file": str(path), "image_dir": images, **common}}
    raise ConfigError(
        f"{path}"
        + (" without --masks" if path.is_dir() else "")
        + (" without --images" if path.suffix == ".json" else ""),
        "a config (.py), an annotation file (.json) with --images, or a folder of images with "
        "--masks",
        "correct the arguments",
    )


def make_splits(
    configs: Mapping[str, Mapping[str, Any]],
    out: str | Path,
    *,
    ratios: Sequence[float] | None = None,
    fold_count: int | None = None,
    unit: str = "patient",
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> list[Row]:
    """Writes splits; the same frames and seed give the same bytes, whatever their order.

    Args:
        configs: of :func:`source_configs`.
        out: folder to write. Fold k is ``fold_<k>``: part k tests, the next one validates.
        ratios: shares of train, val and (if there are three) test.
        fold_count: number of folds in place of ``ratios``.
        unit: ``patient`` or ``frame``.
        seed: 0 or more.
        force: replace what an earlier call wrote there.
        progress: show bars.

    Returns:
        What was written; it is in ``splits.json`` too.

    Raises:
        ConfigError: no patients, too few of them, ratios or folds that cannot be, a folder that is
            not empty.
        DataError: data that cannot be read.
    """
    out = Path(out)
    if (ratios is None) == (fold_count is None) or (ratios and len(ratios) not in (2, 3)):
        raise ConfigError(
            f"ratios {ratios} and {fold_count} folds",
            "--ratios TRAIN VAL [TEST], or --folds K",
            "give one of the two",
        )
    if fold_count is not None and fold_count < _LEAST_FOLDS:
        raise ConfigError(
            f"--folds {fold_count}",
            f"{_LEAST_FOLDS} or more: one part tests, one validates, the others train",
            "ask for more folds, or for --ratios",
        )
    _check_out(out, force)
    pool = Pool(configs)
    frames = pool.frames(unit, progress)
    groups = make_groups([f.group for f in frames], [f.vessel_fraction for f in frames])
    plan = _plan(groups, ratios, fold_count, seed)
    # Beside the folder, so that it can be renamed into its place.
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        rows = _write(pool, plan, frames, Path(temporary))
        record = {
            "unit": unit,
            "seed": seed,
            "ratios": None if ratios is None else list(ratios),
            "folds": fold_count,
            "type": pool.kind,
            "image_dir": pool.image_dir,
            "splits": [vars(row) for row in rows],
        }
        (Path(temporary) / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        _replace(Path(temporary), out)
    return rows


def options(out: str | Path) -> list[str]:
    """Returns the config overrides that read the splits of ``out`` (its first fold)."""
    record = json.loads((Path(out) / RECORD).read_text(encoding="utf-8"))
    first = [row for row in record["splits"] if "/" not in row["file"]] or [
        row for row in record["splits"] if row["file"].startswith("fold_0/")
    ]
    key = "frames_file" if record["type"] == "FolderVesselDataset" else "ann_file"
    lines = []
    for row in first:
        path = Path(out).resolve() / row["file"]
        head = f"{path.stem}_dataloader.dataset"
        lines += [f"{head}.{key}={path}", f"{head}.image_dir={record['image_dir']}"]
    return lines


def _plan(
    groups: Sequence[Group], ratios: Sequence[float] | None, fold_count: int | None, seed: int
) -> dict[str, set[str]]:
    """Group names of each split, by the split's path without file ending."""
    if ratios is not None:
        parts = deal(groups, ratios, seed)
        return {n: {g.name for g in part} for n, part in zip(NAMES, parts, strict=False)}
    parts = folds(groups, int(fold_count or 0), seed)
    plan = {}
    for k in range(len(parts)):
        val = (k + 1) % len(parts)
        rest = [part for number, part in enumerate(parts) if number not in (k, val)]
        for name, chosen in (("train", rest), ("val", [parts[val]]), ("test", [parts[k]])):
            plan[f"fold_{k}/{name}"] = {group.name for part in chosen for group in part}
    return plan


def _write(
    pool: Pool, plan: Mapping[str, set[str]], frames: Sequence[Frame], folder: Path
) -> list[Row]:
    rows = []
    for name, groups in plan.items():
        members = [frame for frame in frames if frame.group in groups]
        path = folder / f"{name}{pool.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pool.content({frame.name for frame in members}))
        config = next(iter(pool.configs.values())) | {"image_dir": pool.image_dir}
        key = "frames_file" if pool.kind == "FolderVesselDataset" else "ann_file"
        # Read back by the reader that will read it: a file that it refuses is found here.
        dataset = DATASETS.build({**config, key: str(path.resolve()), "limit": None})
        patients = {frame.patient for frame in members if frame.patient is not None}
        mean = float(np.mean([frame.vessel_fraction for frame in members]))
        row = Row(f"{name}{pool.suffix}", len(members), len(patients), mean, split_hash(dataset))
        rows.append(row)
    return rows


def _check_out(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise ConfigError(
            f"{out} exists and was not written by tools/make_splits.py (no {RECORD} in it)",
            "a new folder, or one with splits",
            "choose another folder",
        )
    if not force:
        raise ConfigError(
            f"{out} holds splits", "a new folder", "choose another folder, or replace it by --force"
        )


def _replace(new: Path, out: Path) -> None:
    """Moves the files of ``new`` into ``out``, and removes what an earlier call wrote there."""
    if (out / RECORD).is_file():
        try:
            old = json.loads((out / RECORD).read_text(encoding="utf-8"))["splits"]
            stale = [out / row["file"] for row in old]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{out / RECORD} is not as it was written: {error!r}",
                "the record of an earlier call",
                "choose another folder",
            ) from error
        for path in stale:
            path.unlink(missing_ok=True)
    for path in sorted(p for p in new.rglob("*") if p.is_file()):
        target = out / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    for folder in [p for p in out.glob("fold_*") if p.is_dir() and not any(p.iterdir())]:
        shutil.rmtree(folder)

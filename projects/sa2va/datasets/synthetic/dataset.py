"""Writes synthetic angiograms as a COCO data set on disk.

Layout (as the ARCADE challenge has it)::

    OUT/synthetic.json                          parameters that the set was made with
    OUT/{split}/images/P0007_F03.png            8-bit grey
    OUT/{split}/annotations/{split}.json        COCO instances, one per connected component

Component masks are compressed COCO RLE: polygons would fill the holes that crossing vessels leave.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage
from tqdm import tqdm

from projects.sa2va.datasets.synthetic.parameters import AngiogramParams
from projects.sa2va.datasets.synthetic.render import GENERATOR_VERSION, render
from projects.sa2va.errors import ConfigError, DataError, SetupError, listing

RECORD = "synthetic.json"
CATEGORY = {
    "id": 1,
    "name": "vessel",
    "description": "blood vessel",
    "supercategory": "coronary",
}
# File names are P0007_F03.png; this finds the patient.
PATIENT_PATTERN = r"^(P\d+)_F\d+"
_FIRST = {"train": 0, "val": 1, "test": 2}


def write_dataset(
    out: str | Path,
    frames: Mapping[str, int],
    size: int = 256,
    seed: int = 0,
    frames_per_patient: int = 4,
    *,
    params: AngiogramParams | None = None,
    overwrite: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> bool:
    """Writes a data set, or finds that the same one is already there.

    Patients are numbered through all splits, so no patient is in two of them; the frames of one
    patient share the tree and differ in view, cardiac phase, background and noise. The folder is
    filled under a temporary name beside ``out`` and renamed when complete.

    Args:
        out: folder to make.
        frames: frames per split, such as ``{'train': 64, 'val': 16, 'test': 32}``; a split of 0
            frames is left out.
        size: pixels per side.
        seed: 0 or more.
        frames_per_patient: the last patient of a split may have fewer.
        params: see :class:`AngiogramParams`.
        overwrite: replace a synthetic data set made with other parameters. A folder that holds
            anything else is never replaced.
        workers: processes that render; the result does not depend on it.
        progress: whether a bar is shown on stderr.

    Returns:
        True if frames were written, False if the complete set was already there.

    Raises:
        ConfigError: counts that make no data set.
        DataError: ``out`` holds a set with other parameters, an incomplete set, or other files.
        SetupError: the folder cannot be written.
    """
    out, params = Path(out), params or AngiogramParams()
    _check_counts(frames, size, seed, frames_per_patient, workers)
    # A fixed order: the patients' numbers must not depend on how the splits were listed.
    order = sorted(frames, key=lambda split: (_FIRST.get(split, len(_FIRST)), split))
    frames = {split: int(frames[split]) for split in order if frames[split]}
    record = {
        "generator_version": GENERATOR_VERSION,
        "frames": frames,
        "size": int(size),
        "seed": int(seed),
        "frames_per_patient": int(frames_per_patient),
        "params": params.to_dict(),
    }
    if _reusable(out, record, overwrite):
        return False
    with _replacing(out) as folder:
        _write_frames(folder, record, params, workers, progress)
        _write_json(folder / RECORD, record)
    return True


def _check_counts(
    frames: Mapping[str, int], size: int, seed: int, frames_per_patient: int, workers: int
) -> None:
    for split, count in frames.items():
        if not split or Path(split).name != split or split.startswith("."):
            raise ConfigError(
                found=f"split name '{split}'",
                expected="a plain folder name such as train, val or test",
                fix="rename the split",
            )
        if count != int(count) or count < 0:
            raise ConfigError(
                found=f"{count} frames in split '{split}'",
                expected="a whole number, at least 0",
                fix=f"set the number of {split} frames to 0 (no such split) or more",
            )
    if not any(frames.values()):
        raise ConfigError(
            found=f"no frames in any split ({dict(frames)})",
            expected="at least one frame",
            fix="ask for frames, for instance --train 64 --val 16 --test 32",
        )
    for name, value, least in (
        ("size", size, 32),
        ("seed", seed, 0),
        ("frames_per_patient", frames_per_patient, 1),
        ("workers", workers, 1),
    ):
        if value != int(value) or value < least:
            raise ConfigError(
                found=f"{name}={value}",
                expected=f"a whole number, at least {least}",
                fix=f"set {name} to {least} or more",
            )


def _reusable(out: Path, record: dict[str, Any], overwrite: bool) -> bool:
    """Whether ``out`` already is the wanted set; raises if it is something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / RECORD).is_file():
        raise DataError(
            found=f"{out} exists and was not written by this generator (no {RECORD} in it)",
            expected="a new folder, or one that holds a synthetic data set",
            fix="choose another folder, or move that one away yourself",
        )
    if overwrite:
        return False
    try:
        old = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            found=f"{out / RECORD} is not JSON ({error})",
            expected="the parameters of the data set",
            fix="write the set again with --overwrite",
        ) from error
    different = _differences(old, record)
    if different:
        raise DataError(
            found=f"{out} was made with other parameters: {listing(different)}",
            expected="the parameters asked for now",
            fix="choose another folder, ask for the old parameters, or replace it with --overwrite",
        )
    missing = [
        str(path.relative_to(out)) for path in _expected_files(out, record) if not path.is_file()
    ]
    if missing:
        raise DataError(
            found=f"{out} lacks {len(missing)} files: {listing(missing, 3)}",
            expected="a complete data set",
            fix="write the set again with --overwrite",
        )
    return True


def _differences(old: object, new: object, name: str = "") -> list[str]:
    """Lines such as ``size: 256 there, 512 asked for``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(new) + [key for key in old if key not in new]
        return [
            line
            for key in keys
            for line in _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name}: {old} there, {new} asked for"]


def _plan(record: dict[str, Any]) -> Iterator[tuple[str, int, int, str]]:
    """Yields (split, patient, frame, file name) of every frame."""
    patient = 0
    for split, count in record["frames"].items():
        for number in range(count):
            frame = number % record["frames_per_patient"]
            if frame == 0:
                patient += 1
            yield split, patient, frame + 1, f"P{patient:04d}_F{frame + 1:02d}.png"


def _expected_files(out: Path, record: dict[str, Any]) -> Iterator[Path]:
    for split in record["frames"]:
        yield out / split / "annotations" / f"{split}.json"
    for split, _, _, name in _plan(record):
        yield out / split / "images" / name


def _write_frames(
    folder: Path, record: dict[str, Any], params: AngiogramParams, workers: int, progress: bool
) -> None:
    plan = list(_plan(record))
    boxes: dict[str, dict[str, Any]] = {}
    for split in record["frames"]:
        (folder / split / "images").mkdir(parents=True)
        (folder / split / "annotations").mkdir()
        boxes[split] = {
            "info": {
                "description": "synthetic X-ray coronary angiograms",
                "version": str(GENERATOR_VERSION),
            },
            "licenses": [],
            "images": [],
            "annotations": [],
            "categories": [CATEGORY],
        }
    jobs = [
        (
            str(folder / split / "images" / name),
            record["seed"],
            record["size"],
            params,
            patient,
            frame,
        )
        for split, patient, frame, name in plan
    ]
    with _mapper(workers) as mapped:
        done = tqdm(
            mapped(_write_frame, jobs),
            total=len(jobs),
            desc="synthetic angiograms",
            unit="frame",
            disable=not progress,
        )
        for (split, _, _, name), components in zip(plan, done, strict=True):
            box = boxes[split]
            image_id = len(box["images"]) + 1
            box["images"].append(
                {
                    "id": image_id,
                    "file_name": name,
                    "width": record["size"],
                    "height": record["size"],
                }
            )
            for component in components:
                box["annotations"].append(
                    {
                        "id": len(box["annotations"]) + 1,
                        "image_id": image_id,
                        "category_id": CATEGORY["id"],
                        "iscrowd": 0,
                        **component,
                    }
                )
    for split, box in boxes.items():
        _write_json(folder / split / "annotations" / f"{split}.json", box)


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """A ``map`` that keeps the order: in this process, or over several."""
    if workers == 1:
        yield map
        return
    pool = ProcessPoolExecutor(workers)
    try:
        yield pool.map
    finally:
        # After an interrupt the frames still queued must not be rendered first.
        pool.shutdown(cancel_futures=True)


def _write_frame(
    job: tuple[str, int, int, AngiogramParams, int, int],
) -> list[dict[str, Any]]:
    """Renders and saves one frame; returns its connected components for the annotation file."""
    path, seed, size, params, patient, frame = job
    image, mask, _ = render(seed, size, params, patient=patient, frame=frame)
    Image.fromarray(image).save(path)
    return components_rle(mask)


def components_rle(mask: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """COCO fields of every 8-connected component of a mask.

    Args:
        mask: [H, W], nonzero where there is vessel.

    Returns:
        Per component ``segmentation`` (compressed RLE, counts as ASCII text), ``area`` in pixels
        and ``bbox`` [x, y, width, height]. Together they cover the mask exactly, without overlap.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    found = []
    for number in range(1, count + 1):
        rle = coco_mask.encode(np.asfortranarray((labels == number).astype(np.uint8)))
        found.append(
            {
                "segmentation": {
                    "size": [int(side) for side in rle["size"]],
                    "counts": rle["counts"].decode("ascii"),
                },
                "area": int(coco_mask.area(rle)),
                "bbox": [float(value) for value in coco_mask.toBbox(rle)],
            }
        )
    return found


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place if the block succeeds, and else is removed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise SetupError(
            found=f"cannot write beside {out}: {error.strerror}",
            expected="a folder that this user may write to",
            fix="choose another folder, or change the permissions of its parent",
        ) from error
    fresh, old = temporary / "new", temporary / "old"
    fresh.mkdir()
    try:
        yield fresh
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(fresh, out)
        except BaseException:
            if old.exists():
                os.rename(old, out)
            raise
    finally:
        # Also after Ctrl-C: half a data set under any name is of no use to anybody.
        shutil.rmtree(temporary, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

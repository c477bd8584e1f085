"""Corrected copies of annotation files, in a folder of their own; the source is only read.

What is corrected: labels drawn at another size than their images (rescaled), a wrong size in the
file (replaced), polygons with fewer than 3 points (left out). The folder has the layout of
``data_root``, with links to the images, so that ``data_root=FOLDER`` trains on it.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...config import dataset_configs
from ...errors import ConfigError, DataError
from ...files import write_atomic
from ..image_io import read_sizes
from ..records import TOLERANCE_PX, is_drawable, read_json

CHANGES_FILE = "changes.json"
_ENOUGH_FRAMES = 5
_ASPECT = 0.01
_TYPES = ("CocoVesselDataset", "Sa2VAJsonDataset")
_FORM = "an annotation file of the layouts in docs/data_formats.md"


@dataclass
class Changes:
    """What was changed, and what was seen and left alone.

    Attributes:
        rows: split, image, annotation (its id, or entry and object), change, before, after.
        left: texts.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def add(
        self, split: str, image: str, annotation: Any, change: str, before: Any, after: Any
    ) -> None:
        """Notes one change."""
        names = ("split", "image", "annotation", "change", "before", "after")
        values = (split, image, annotation, change, before, after)
        self.rows.append(dict(zip(names, values, strict=True)))

    def lines(self) -> list[str]:
        """A short text: changes of each kind, and what was left alone."""
        counts = Counter((row["split"], row["change"]) for row in self.rows)
        lines = [f"{split}: {change}: {count}" for (split, change), count in counts.items()]
        return [*(lines or ["nothing to change"]), *self.left]


def parse_size(text: str) -> tuple[int, int]:
    """Returns (width, height) of a text like ``800x800``.

    Raises:
        ConfigError: it is not of that form.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise ConfigError(
            f"--labels-size {text}", "width and height in pixels, such as 800x800", "correct it"
        )
    return int(match[1]), int(match[2])


def write_fixed(
    cfg: Mapping[str, Any],
    out: str | Path,
    splits: Sequence[str] | None = None,
    labels_size: tuple[int, int] | None = None,
) -> Changes:
    """Writes corrected annotations of a config's splits into a new folder.

    Args:
        cfg: a loaded config.
        out: a folder that does not exist or is empty, outside of the data.
        splits: which splits; None: all.
        labels_size: (width, height) in pixels that the labels were drawn at, for files that do not
            say it; None: only sizes that the files state are used.

    Returns:
        What was changed; it is in ``changes.json`` of the folder too.

    Raises:
        ConfigError: the folder is not empty, or is inside the data or around them; another layout.
        DataError: an annotation file that cannot be read, or labels that do not fit
            ``labels_size``.
    """
    out = Path(out).expanduser()
    configs = {s: c for s, c in dataset_configs(cfg).items() if not splits or s in splits}
    for split, config in configs.items():
        _check_config(split, config)
        _check_folder(out, Path(config.get("data_root", "")).expanduser())
    changes, fixed = Changes(), {}
    for split, config in configs.items():
        root = Path(config.get("data_root", "")).expanduser()
        data = read_json(root / config["ann_file"], _FORM)
        fix = _fix_coco if config["type"] == "CocoVesselDataset" else _fix_sa2va
        try:
            fixed[config["ann_file"]] = fix(
                split, data, root / config["image_dir"], labels_size, changes
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(
                f"{root / config['ann_file']} is not of its layout: {error!r}",
                _FORM,
                "export the annotations again; --fix mends sizes and polygons only",
            ) from error
    out.mkdir(parents=True, exist_ok=True)
    # Annotations first: whatever a link stands for afterwards, nothing is written through it.
    for name, data in [*fixed.items(), (CHANGES_FILE, changes.rows)]:
        text = json.dumps(data).encode()
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out / name, lambda file, text=text: file.write(text))
    for config in configs.values():
        root = Path(config.get("data_root", "")).expanduser().resolve()
        _link(root / config["image_dir"], out / config["image_dir"])
        table = (config.get("patient") or {}).get("file")
        if table and not Path(table).is_absolute():
            _link(root / table, out / table)
    return changes


def _check_config(split: str, config: Mapping[str, Any]) -> None:
    if config["type"] not in _TYPES:
        raise ConfigError(
            f"--fix with {split} of {config['type']}",
            f"one of {', '.join(_TYPES)}: masks in files have no coordinates to rescale",
            "choose other splits by --split",
        )
    for key in ("ann_file", "image_dir"):
        path = Path(config[key])
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(
                f"--fix with {split}.{key}={config[key]!r}",
                "a path below data_root, so that the new folder can have the same layout",
                f"set data_root, and `{key}` relative to it",
            )


def _check_folder(out: Path, root: Path) -> None:
    inner, outer = out.resolve(), root.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise ConfigError(
            f"--fix {out}, and data_root is {root}",
            "a folder outside of the data, which are never changed",
            "give a new folder elsewhere",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"--fix {out}, which is not empty", "a new or empty folder", "give another folder"
        )


def _link(source: Path, target: Path) -> None:
    """Links a file or folder; where the folder exists already, what is in it one by one."""
    if not source.exists():
        return  # its frames are findings
    if target.is_dir() and not target.is_symlink():
        for child in sorted(source.iterdir()):
            _link(child, target / child.name)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())


# --------------------------------------------------------------------------------------- layouts


def _fix_coco(
    split: str,
    data: dict[str, Any],
    images: Path,
    labels_size: tuple[int, int] | None,
    changes: Changes,
) -> dict[str, Any]:
    data = copy.deepcopy(data)
    by_image: dict[Any, list[dict]] = defaultdict(list)
    for annotation in data["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    real = read_sizes([images / image["file_name"] for image in data["images"]])
    frames = [
        _Frame(
            image["file_name"],
            (image["width"], image["height"]),
            size,
            [a["segmentation"] for a in by_image[image["id"]]],
        )
        for image, size in zip(data["images"], real, strict=True)
        if not isinstance(size, DataError)
    ]
    factors = _factors(split, frames, labels_size, changes)
    for image in data["images"]:
        name = image["file_name"]
        if name not in factors:
            continue
        factor, size = factors[name]
        if (image["width"], image["height"]) != size:
            before = [image["width"], image["height"]]
            changes.add(split, name, None, "size in the file", before, list(size))
            image["width"], image["height"] = size
        for annotation in by_image[image["id"]]:
            if not np.allclose(factor, 1.0):
                _scale(split, name, annotation, factor, changes)
    kept = []
    names = {image["id"]: image["file_name"] for image in data["images"]}
    for annotation in data["annotations"]:
        where = split, names.get(annotation["image_id"], ""), annotation["id"]
        if _without_short(where, annotation, changes):
            kept.append(annotation)
    data["annotations"] = kept
    return data


def _fix_sa2va(
    split: str,
    data: list[dict[str, Any]],
    images: Path,
    labels_size: tuple[int, int] | None,
    changes: Changes,
) -> list[dict[str, Any]]:
    data = copy.deepcopy(data)
    entries = [entry for entry in data if "conversations" not in entry]
    real = read_sizes([images / entry["image"] for entry in entries])
    frames = [
        _Frame(entry["image"], size, size, entry["mask"])
        for entry, size in zip(entries, real, strict=True)
        if not isinstance(size, DataError)
    ]
    factors = _factors(split, frames, labels_size, changes)
    for entry in entries:
        factor, _ = factors.get(entry["image"], (np.ones(2), None))
        objects = []
        for number, (mask, text) in enumerate(zip(entry["mask"], entry["text"], strict=True)):
            holder = {"segmentation": mask, "id": number}
            if not np.allclose(factor, 1.0):
                _scale(split, entry["image"], holder, factor, changes)
            # An empty list would say that the phrase names nothing, which nobody has said.
            if _without_short((split, entry["image"], number), holder, changes):
                objects.append((holder["segmentation"], text))
        entry["mask"], entry["text"] = [o[0] for o in objects], [o[1] for o in objects]
    return [entry for entry in data if "conversations" in entry or entry["mask"]]


# ----------------------------------------------------------------------------------------- sizes


@dataclass
class _Frame:
    """A frame: what the file says its size is, what it is, and its segmentations."""

    name: str
    written: tuple[int, int]
    real: tuple[int, int]
    segmentations: list[Any]

    def extent(self) -> np.ndarray | None:
        """The greatest x and y of its polygons; None without polygons."""
        points = [
            np.asarray(polygon, np.float64).reshape(-1, 2)
            for segmentation in self.segmentations
            if isinstance(segmentation, list)
            for polygon in segmentation
            if is_drawable(polygon)
        ]
        return np.concatenate(points).max(axis=0) if points else None

    def has_rle(self) -> bool:
        return any(isinstance(segmentation, dict) for segmentation in self.segmentations)


def _factors(
    split: str, frames: list[_Frame], labels_size: tuple[int, int] | None, changes: Changes
) -> dict[str, tuple[np.ndarray, tuple[int, int]]]:
    """Returns factor of x and y, and true size, of each frame whose labels are to be mended."""
    groups: dict[tuple, list[_Frame]] = defaultdict(list)
    for frame in frames:
        groups[frame.written, frame.real].append(frame)
    factors: dict[str, tuple[np.ndarray, tuple[int, int]]] = {}
    for (written, real), members in groups.items():
        drawn = written if written != real else (labels_size or written)
        title = f"{split}: {len(members)} frames of {real[0]} x {real[1]} px"
        extents = [extent for frame in members if (extent := frame.extent()) is not None]
        reach = np.max(extents, axis=0) if extents else np.zeros(2)
        if drawn == real:
            outside = sum(bool((e > np.add(real, TOLERANCE_PX)).any()) for e in extents)
            if outside:
                changes.left.append(
                    f"{title}: left as they are, though polygons of {outside} lie outside (up to "
                    f"x {reach[0]:g}, y {reach[1]:g}): give --labels-size if they were drawn at "
                    "another size"
                )
            continue
        if (reach > np.add(drawn, TOLERANCE_PX)).any() and (
            labels_size or (reach > np.add(real, TOLERANCE_PX)).any()
        ):
            raise DataError(
                f"{title}: labels reach x {reach[0]:g}, y {reach[1]:g}",
                f"labels inside the {drawn[0]} x {drawn[1]} px that they were drawn at",
                "give the right --labels-size, or other splits by --split",
            )
        problem = _unclear(drawn, real, members, extents, reach, labels_size is not None)
        if problem:
            changes.left.append(f"{title}, labels of {drawn[0]} x {drawn[1]} px: {problem}")
            continue
        fits_real = not (reach > np.add(real, TOLERANCE_PX)).any()
        only_header = written != real and fits_real and _is_header_only(drawn, real, reach)
        factor = np.ones(2) if only_header else np.divide(real, drawn)
        factors |= {frame.name: (factor, real) for frame in members}
    return factors


def _is_header_only(drawn: Sequence[int], real: Sequence[int], reach: np.ndarray) -> bool:
    """Whether labels that fit the image were drawn on it, and the written size is wrong."""
    larger = np.prod(drawn) > np.prod(real)
    return bool(larger or (reach > np.add(drawn, TOLERANCE_PX)).any())


def _unclear(
    drawn: Sequence[int],
    real: Sequence[int],
    members: list[_Frame],
    extents: list[np.ndarray],
    reach: np.ndarray,
    told: bool,
) -> str:
    """Why labels cannot be mended; empty where they can."""
    ratio = np.divide(real, drawn)
    if abs(ratio[0] / ratio[1] - 1) > _ASPECT:
        return "left as they are: another aspect ratio, so the frames were cut or turned"
    if any(frame.has_rle() for frame in members):
        return "left as they are: run lengths (RLE) cannot be rescaled without losing thin vessels"
    larger = np.prod(drawn) > np.prod(real)
    inside = not (reach > np.add(real, TOLERANCE_PX)).any()
    if not told and larger and inside and 0 < len(extents) < _ENOUGH_FRAMES:
        return (
            f"left as they are: {len(extents)} frames are too few to tell whether the labels or "
            "the written size are wrong; correct width and height in the file if it is the size"
        )
    return ""


def _scale(
    split: str, image: str, annotation: dict[str, Any], factor: np.ndarray, changes: Changes
) -> None:
    """Rescales polygons, box and area of an annotation in place."""
    polygons = annotation["segmentation"]
    if not isinstance(polygons, list) or not polygons:
        return
    scaled = [
        np.round(np.reshape(p, (-1, 2)) * factor, 3).ravel().tolist() if is_drawable(p) else p
        for p in polygons
    ]
    changes.add(split, image, annotation["id"], "rescaled", None, np.round(factor, 6).tolist())
    annotation["segmentation"] = scaled
    if "bbox" in annotation:
        annotation["bbox"] = np.round(
            np.multiply(annotation["bbox"], [*factor, *factor]), 3
        ).tolist()
    if "area" in annotation:
        annotation["area"] = float(annotation["area"] * factor.prod())


def _without_short(where: tuple[str, str, Any], holder: dict[str, Any], changes: Changes) -> bool:
    """Leaves out polygons with fewer than 3 points; returns whether anything is left."""
    polygons = holder["segmentation"]
    if not isinstance(polygons, list) or not polygons:
        return True
    kept = [p for p in polygons if not isinstance(p, list) or len(p) >= 6]
    if len(kept) < len(polygons):
        changes.add(*where, "polygons of fewer than 3 points left out", len(polygons), len(kept))
        holder["segmentation"] = kept
    return bool(kept)

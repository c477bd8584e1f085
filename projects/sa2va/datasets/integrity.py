"""What is wrong with data sets and splits, found before hours of work and not in the middle."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError, DataError, listing, suggest
from .base import VesselDataset
from .image_io import exif_orientation, read_sizes
from .records import Findings, mask_size_error

_T = TypeVar("_T")
_LEVELS = ("full", "header", "off")
_MOSTLY_FOREGROUND = 0.5


@dataclass
class IntegrityReport:
    """What :func:`check_dataset` found that is no error.

    Attributes:
        frames: number of frames.
        empty: output names of frames with at least one empty mask (only with verify='full').
        warnings: one line each, to be logged; file names appear in them, so keep them local.
    """

    frames: int
    empty: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Frame:
    """What decoding one frame showed."""

    error: DataError | None = None
    pixel_hash: str = ""
    empty: bool = False
    inverted: bool = False
    turned: bool = False


def check_dataset(
    dataset: VesselDataset,
    verify: str = "full",
    *,
    workers: int | None = None,
    progress: bool = True,
) -> IntegrityReport:
    """Checks that every image and mask of a data set can be read and has its size.

    Args:
        dataset: what is checked; only the records that it uses (``limit``, ``indices``).
        verify: ``full`` decodes every file (finds truncated ones), ``header`` reads sizes only,
            ``off`` only counts frames.
        workers: threads; None takes one a processor, at most 16.
        progress: show a bar with the time that is left.

    Returns:
        Warnings: empty masks, masks that are mostly foreground (inverted?), EXIF orientations
        (never applied), frames that are pixel for pixel the same.

    Raises:
        ConfigError: unknown ``verify``.
        DataError: zero frames, or all unreadable and mismatched files in one message.
    """
    _check_level(verify)
    name = type(dataset).__name__
    if len(dataset) == 0:
        raise DataError(
            f"zero frames in {name} ({dataset.image_root})",
            "at least one frame",
            "check `data_root` and the other paths of this data set in the config",
        )
    report = IntegrityReport(frames=len(dataset))
    findings = Findings(f"{name} ({dataset.image_root})")
    if verify == "header":
        _check_headers(dataset, findings)
    elif verify == "full":
        frames = _parallel(
            lambda index: _decode(dataset, index), len(dataset), "verifying", workers, progress
        )
        for frame in frames:
            if frame.error is not None:
                findings.add_error(frame.error)
        findings.raise_if_any()
        dataset.image_hashes["pixels"] = [frame.pixel_hash for frame in frames]
        report.empty = [n for n, f in zip(dataset.frame_ids, frames, strict=True) if f.empty]
        report.warnings = _warnings(dataset, frames)
    findings.raise_if_any()
    return report


def check_splits(
    splits: Mapping[str, VesselDataset],
    verify: str = "full",
    *,
    workers: int | None = None,
    progress: bool = True,
) -> list[str]:
    """Checks that no image and no patient is in two splits.

    Args:
        splits: data sets by name.
        verify: ``full`` compares decoded pixels (finds an image that was saved again in another
            file format), ``header`` compares file contents, ``off`` compares patients only.
        workers: threads; None takes one a processor, at most 16.
        progress: show a bar with the time that is left.

    Returns:
        Warnings: splits whose patients cannot be compared because no ids are configured.

    Raises:
        ConfigError: unknown ``verify``.
        DataError: shared images or patients, up to 10 pairs named and the rest counted.
    """
    _check_level(verify)
    findings = Findings("splits")
    by = {"full": "pixels", "header": "bytes"}.get(verify)
    if by is not None:
        hashes = {n: image_hashes(d, by, workers, progress) for n, d in splits.items()}
        pairs = _shared(splits, hashes)
        if pairs:
            findings.add(
                f"{len(pairs)} images in two splits: {listing(pairs)}",
                "every image in one split only",
                "take the images out of one of the splits and make its annotations again",
            )
    without = [n for n, d in splits.items() if any(r.patient_raw is None for r in d.records)]
    patients = {n: [r.patient_raw for r in d.records] for n, d in splits.items()}
    groups = _shared_patients(splits, patients)
    if groups:
        findings.add(
            f"{len(groups)} patients in two splits: {listing(groups)}",
            "all images of a patient in one split",
            "split by patient, so that test patients are never trained on",
        )
    findings.raise_if_any()
    if not without:
        return []
    return [
        f"no patient ids for {listing(without)}: whether splits share patients cannot be checked "
        "(set `patient` of the data sets)"
    ]


def image_hashes(
    dataset: VesselDataset, by: str = "pixels", workers: int | None = None, progress: bool = False
) -> list[str]:
    """Returns the sha256 of every image, of its decoded ``pixels`` or of its file's ``bytes``.

    They are kept in ``dataset.image_hashes``, so that a data set is read once.

    Raises:
        DataError: images that cannot be read, all in one message.
    """
    if by not in dataset.image_hashes:

        def digest(index: int) -> str | DataError:
            try:
                if by == "pixels":
                    return _pixel_hash(dataset.image(index))
                return _file_hash(dataset.records[index].image_path)
            except DataError as error:
                return error

        results = _parallel(digest, len(dataset), f"hashing {by}", workers, progress)
        findings = Findings(dataset.image_root)
        for result in results:
            if isinstance(result, DataError):
                findings.add_error(result)
        findings.raise_if_any()
        dataset.image_hashes[by] = [str(result) for result in results]
    return dataset.image_hashes[by]


def split_hash(dataset: VesselDataset) -> str:
    """Returns a sha256 that stands for the data set's frames, labels and phrases.

    It goes over the sorted (file name below the image folder, hash of the file's bytes, objects),
    so it depends neither on the order of the annotations nor on where the data lies, and changes
    with every pixel, vertex and phrase. File bytes and not decoded pixels, because decoders
    differ by machine (JPEG).
    """
    rows = [
        json.dumps(
            [
                record.name,
                file_hash,
                sorted(json.dumps(obj.fingerprint()) for obj in record.objects),
                record.turns,
            ]
        )
        for record, file_hash in zip(dataset.records, image_hashes(dataset, "bytes"), strict=True)
    ]
    return hashlib.sha256("\n".join(sorted(rows)).encode("utf-8")).hexdigest()


def _check_level(verify: str) -> None:
    if verify not in _LEVELS:
        raise ConfigError(
            f"verify={verify!r}{suggest(str(verify), _LEVELS)}",
            f"one of {', '.join(_LEVELS)}",
            "correct `verify`",
        )


def _parallel(
    work: Callable[[int], _T], count: int, title: str, workers: int | None, progress: bool
) -> list[_T]:
    # Threads: decoding releases the interpreter lock, and images need not be copied back.
    with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
        results = pool.map(work, range(count))
        return list(tqdm(results, title, count, disable=not progress, unit="frame", leave=False))


def _decode(dataset: VesselDataset, index: int) -> _Frame:
    """Reads image and masks of one frame in full."""
    try:
        pixel_hash = _pixel_hash(dataset.image(index))
        masks = dataset.masks(index)
        turned = exif_orientation(dataset.records[index].image_path) != 1
    except DataError as error:
        return _Frame(error=error)
    shares = masks.reshape(len(masks), -1).mean(axis=1)
    return _Frame(
        pixel_hash=pixel_hash,
        empty=bool((shares == 0).any()),
        inverted=bool((shares > _MOSTLY_FOREGROUND).any()),
        turned=turned,
    )


def _check_headers(dataset: VesselDataset, findings: Findings) -> None:
    """Compares the sizes that files state with the records."""
    wanted: list[tuple[Path, tuple[int, int], bool]] = []
    for record in dataset.records:
        size = (record.width, record.height)
        wanted.append((record.image_path, size, False))
        wanted += [(o.mask_path, size, True) for o in record.objects if o.mask_path is not None]
    sizes = read_sizes([path for path, _, _ in wanted])
    for (path, size, is_mask), found in zip(wanted, sizes, strict=True):
        if isinstance(found, DataError):
            findings.add_error(found)
        elif found != size and is_mask:
            findings.add_error(mask_size_error(path, found, size))
        elif found != size:
            findings.add(
                f"{path} is {found[0]} x {found[1]} px, "
                f"its labels are for {size[0]} x {size[1]} px",
                "images of the size that the annotations state",
                "annotate the frames that are used, or scale the annotations to them",
            )


def _warnings(dataset: VesselDataset, frames: list[_Frame]) -> list[str]:
    names = [record.name for record in dataset.records]

    def named(flag: str) -> list[str]:
        return [name for name, frame in zip(names, frames, strict=True) if getattr(frame, flag)]

    texts = {
        "empty": "frames with an empty mask (nothing is labelled there)",
        "inverted": "frames with more than half of the image labelled (is the mask inverted?)",
        "turned": "frames with an EXIF orientation, which is not applied",
    }
    warnings = [
        f"{len(named(flag))} {text}: {listing(named(flag))}"
        for flag, text in texts.items()
        if named(flag)
    ]
    same: dict[str, list[str]] = defaultdict(list)
    # Language-only samples may ask several questions about one image.
    for record, frame in zip(dataset.records, frames, strict=True):
        if record.objects:
            same[frame.pixel_hash].append(record.name)
    twins = [" = ".join(group) for group in same.values() if len(group) > 1]
    if twins:
        warnings.append(f"{len(twins)} groups of frames with equal pixels: {listing(twins)}")
    return warnings


def _shared(splits: Mapping[str, VesselDataset], hashes: Mapping[str, list[str]]) -> list[str]:
    """Returns a text for every image (by hash) that is in two splits."""
    where: dict[str, dict[str, str]] = defaultdict(dict)
    for split, dataset in splits.items():
        for record, digest in zip(dataset.records, hashes[split], strict=True):
            where[digest].setdefault(split, record.name)
    return [
        f"{a}/{found[a]} = {b}/{found[b]}"
        for found in where.values()
        for a, b in combinations(found, 2)
    ]


def _shared_patients(
    splits: Mapping[str, VesselDataset], patients: Mapping[str, list[Any]]
) -> list[str]:
    """Returns a text for every patient that is in two splits, with one frame of each."""
    where: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for split, dataset in splits.items():
        rows = zip(dataset.records, patients[split], dataset.patients, strict=True)
        for record, raw, alias in rows:
            if raw is not None:
                where[raw].setdefault(split, (record.name, str(alias)))
    return [
        f"{found[a][1]} ({a}/{found[a][0]}, {b}/{found[b][0]})"
        for found in where.values()
        for a, b in combinations(found, 2)
    ]


def _pixel_hash(image: np.ndarray) -> str:
    head = f"{image.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error}", "a file that can be read", "copy the file again"
        ) from error

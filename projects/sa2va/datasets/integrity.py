"""What is wrong with data sets and splits, found before hours of work and not in the middle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, listing, suggest
from .base import VesselDataset
from .hashes import image_hashes, in_parallel, pixel_hash, split_hash
from .image_io import exif_orientation, read_sizes
from .leakage import check_near_duplicates
from .near_duplicates import perceptual_hash
from .records import Findings, mask_size_error

__all__ = [
    "MOSTLY_FOREGROUND",
    "IntegrityReport",
    "check_dataset",
    "check_splits",
    "image_hashes",
    "split_hash",
]

_LEVELS = ("full", "header", "off")
MOSTLY_FOREGROUND = 0.5


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
    perceptual_hash: str = ""
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
    files = dataset.on_disk()
    if files is not dataset:
        dataset.image(0)  # shows at once whether frames can be made at all
        if files is not None:
            report.warnings = check_dataset(
                files, verify, workers=workers, progress=progress
            ).warnings
        return report
    findings = Findings(f"{name} ({dataset.image_root})")
    if verify == "header":
        _check_headers(dataset, findings)
    elif verify == "full":
        frames = in_parallel(
            lambda index: _decode(dataset, index), len(dataset), "verifying", workers, progress
        )
        for frame in frames:
            if frame.error is not None:
                findings.add_error(frame.error)
        findings.raise_if_any()
        dataset.image_hashes["pixels"] = [frame.pixel_hash for frame in frames]
        dataset.image_hashes["perceptual"] = [frame.perceptual_hash for frame in frames]
        report.empty = [n for n, f in zip(dataset.frame_ids, frames, strict=True) if f.empty]
        report.warnings = _warnings(dataset, frames)
    findings.raise_if_any()
    return report


def check_splits(
    splits: Mapping[str, VesselDataset],
    verify: str = "full",
    *,
    allow_near_duplicates: bool | Sequence[str] = (),
    workers: int | None = None,
    progress: bool = True,
) -> list[str]:
    """Checks that no image, no near-duplicate of it and no patient is in two splits.

    Args:
        splits: data sets by name.
        verify: ``full`` compares decoded pixels (finds an image that was saved again in another
            file format) and looks for near-duplicates, ``header`` compares file contents, ``off``
            compares patients only.
        allow_near_duplicates: see :func:`~projects.sa2va.datasets.leakage.check_near_duplicates`.
        workers: threads; None takes one a processor, at most 16.
        progress: show a bar with the time that is left.

    Returns:
        Warnings: near-duplicates that are allowed; splits whose patients cannot be compared
        because no ids are configured.

    Raises:
        ConfigError: unknown ``verify``.
        DataError: shared images or patients, up to 10 pairs named and the rest counted.
    """
    _check_level(verify)
    findings, warnings = Findings("splits"), []
    on_disk = {name: dataset.on_disk() for name, dataset in splits.items()}
    splits = {name: dataset for name, dataset in on_disk.items() if dataset is not None}
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
    if verify == "full":
        warnings += check_near_duplicates(
            splits, findings, allow_near_duplicates, workers=workers, progress=progress
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
        return warnings
    return [
        *warnings,
        f"no patient ids for {listing(without)}: whether splits share patients cannot be checked "
        "(set `patient` of the data sets)",
    ]


def _check_level(verify: str) -> None:
    if verify not in _LEVELS:
        raise ConfigError(
            f"verify={verify!r}{suggest(str(verify), _LEVELS)}",
            f"one of {', '.join(_LEVELS)}",
            "correct `verify`",
        )


def _decode(dataset: VesselDataset, index: int) -> _Frame:
    """Reads image and masks of one frame in full."""
    try:
        image = dataset.image(index)
        masks = dataset.masks(index, dataset.labelled(index))
        turned = exif_orientation(dataset.records[index].image_path) != 1
    except DataError as error:
        return _Frame(error=error)
    shares = masks.mean(axis=(1, 2))
    return _Frame(
        pixel_hash=pixel_hash(image),
        perceptual_hash=perceptual_hash(image),
        empty=bool((shares == 0).any()),
        inverted=bool((shares > MOSTLY_FOREGROUND).any()),
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

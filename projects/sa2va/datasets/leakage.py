"""Frames and patients that training and evaluation share, also where training is long over.

:func:`training_record` stands for the frames that a run trained on. It goes into
``data_splits.json`` and, with that, into every checkpoint, so that a test can tell whether the
weights have seen its frames even when the config was edited in between. It holds no picture, no
file name and no patient id: hashes, and the pseudonyms of :mod:`.patients`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from ..errors import DataError, listing
from .base import VesselDataset
from .hashes import image_hashes
from .near_duplicates import (
    CANDIDATE_BITS,
    HASH_BYTES,
    RECORDED_BITS,
    SIMILAR,
    near_pairs,
    pack_hashes,
    similarity,
    thumbnail,
)
from .records import Findings

_NO_PATIENT = ""  # in place of a key's check: frames without patients
_PIXEL_DIGITS = 16  # 64 bits: among 50,000 frames a chance collision has probability 1e-10
_FORM = "a record written by tools/train.py"
_ONE_SPLIT = "every picture, also saved again or changed a little, in one split only"
_LOOK = (
    "look at the pairs (tools/verify_dataset.py CONFIG draws them) and take the frames out of one "
    "split; if they are different pictures after all, name them in allow_near_duplicates"
)


@dataclass(frozen=True)
class NearPair:
    """Two frames that show the same picture, or nearly.

    Attributes:
        left, right: (split, index) of the frames.
        similarity: normalised cross-correlation, :data:`~.near_duplicates.SIMILAR` to 1.
    """

    left: tuple[str, int]
    right: tuple[str, int]
    similarity: float


def find_near_pairs(
    pixels: Mapping[str, Sequence[str]],
    perceptual: Mapping[str, Sequence[str]],
    small: Callable[[str, int], np.ndarray],
    *,
    within: bool = False,
) -> list[NearPair]:
    """Returns the pairs of near-duplicates between splits (or within each of them).

    Frames that are equal pixel for pixel are left out: they are reported as that.

    Args:
        pixels: hash of each frame's pixels, by split.
        perceptual: perceptual hash of each frame, by split.
        small: gives the thumbnail of (split, index), of candidates only.
        within: pairs within each split instead.
    """
    packed = {split: pack_hashes(rows) for split, rows in perceptual.items()}
    kept = cache(small)
    pairs = []
    for a, b in [(s, s) for s in packed] if within else combinations(packed, 2):
        for i, j, _ in near_pairs(packed[a], packed[b], CANDIDATE_BITS):
            if (within and i >= j) or pixels[a][i] == pixels[b][j]:
                continue
            score = similarity(kept(a, i), kept(b, j))
            if score >= SIMILAR:
                pairs.append(NearPair((a, i), (b, j), score))
    return pairs


def check_near_duplicates(
    splits: Mapping[str, VesselDataset],
    findings: Findings,
    allow: bool | Sequence[str] = (),
    *,
    workers: int | None = None,
    progress: bool = False,
) -> list[str]:
    """Adds near-duplicates between splits to ``findings``.

    Args:
        splits: data sets by name.
        findings: where they go.
        allow: what the user looked at: ``split/output name`` of frames whose pairs are no error,
            or True for all pairs.
        workers: threads that read images.
        progress: show a bar while they are read.

    Returns:
        A warning for the pairs that were allowed.
    """
    refused, allowed = [], []
    hashes = (
        {split: image_hashes(dataset, by, workers, progress) for split, dataset in splits.items()}
        for by in ("pixels", "perceptual")
    )
    for pair in find_near_pairs(
        *hashes, lambda split, index: thumbnail(splits[split].image(index))
    ):
        names = [f"{s}/{splits[s].frame_ids[i]}" for s, i in (pair.left, pair.right)]
        text = f"{names[0]} ~ {names[1]} (correlation {pair.similarity:.3f})"
        (allowed if is_allowed(names, allow) else refused).append(text)
    if refused:
        found = f"{len(refused)} near-duplicates in two splits: {listing(refused)}"
        findings.add(found, _ONE_SPLIT, _LOOK)
    if not allowed:
        return []
    return [f"{len(allowed)} near-duplicates in two splits, allowed: {listing(allowed)}"]


def is_allowed(names: Sequence[str], allow: bool | Sequence[str]) -> bool:
    """Whether ``allow_near_duplicates`` lets a pair of these frames (``split/name``) pass."""
    return allow if isinstance(allow, bool) else any(name in allow for name in names)


# ------------------------------------------------------------------------- the record of a run


def training_record(
    dataset: VesselDataset, earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns what a checkpoint keeps of its training frames.

    Args:
        dataset: the training split.
        earlier: record of the checkpoint that the run starts from, whose frames count too.

    Returns:
        ``pixels`` and ``perceptual``: 16 and 64 hexadecimal digits a frame, one text each (80
        bytes a frame); ``patients``: their pseudonyms, by a value that is equal where pseudonyms
        were made with the same key; an empty list under "" stands for frames without patients.
        Sorted, so that it says nothing of the order.
    """
    files, rows = dataset.on_disk(), set()
    patients = {} if earlier is None else _patients_of(earlier)
    if files is not None:
        pixels = [text[:_PIXEL_DIGITS] for text in image_hashes(files, "pixels")]
        rows = set(zip(pixels, image_hashes(files, "perceptual"), strict=True))
        own = {name for name in files.patients if name is not None}
        patients.setdefault(files.pseudonym_check or _NO_PATIENT, set()).update(own)
    if earlier is not None:
        rows |= set(zip(*_hashes_of(earlier), strict=True))
    ordered = sorted(rows)
    return {
        "pixels": "".join(row[0] for row in ordered),
        "perceptual": "".join(row[1] for row in ordered),
        "patients": {check: sorted(names) for check, names in sorted(patients.items())},
    }


def check_unseen(
    splits: Mapping[str, VesselDataset],
    record: Mapping[str, Any],
    source: str,
    allow: bool | Sequence[str] = (),
    *,
    workers: int | None = None,
    progress: bool = False,
) -> list[str]:
    """Checks that no frame and no patient of ``splits`` is in the record of a training run.

    Args:
        splits: what is evaluated.
        record: of :func:`training_record`.
        source: the checkpoint that it comes from, for messages.
        allow: see :func:`check_near_duplicates`; here the frames of ``splits`` are named.
        workers: threads that read images.
        progress: show a bar while they are read.

    Returns:
        Warnings: near-duplicates that are allowed; patients that cannot be compared.

    Raises:
        DataError: shared frames, near-duplicates or patients, all in one message.
    """
    pixels, perceptual = _hashes_of(record)
    known, packed = set(pixels), pack_hashes(perceptual)
    findings, warnings = Findings(source), []
    for split, evaluated in splits.items():
        dataset = evaluated.on_disk()
        if dataset is None:
            continue
        names = [f"{split}/{name}" for name in dataset.frame_ids]
        own = image_hashes(dataset, "pixels", workers, progress)
        same = {n for n, text in zip(names, own, strict=True) if text[:_PIXEL_DIGITS] in known}
        if same:
            findings.add(
                f"{len(same)} frames that it was trained on: {listing(sorted(same))}",
                "frames that the weights have never seen",
                "take them out of the evaluated split, or train again without them",
            )
        looks = pack_hashes(image_hashes(dataset, "perceptual", workers, progress))
        near = {names[i] for i, _, _ in near_pairs(looks, packed, RECORDED_BITS)} - same
        refused = sorted(name for name in near if not is_allowed([name], allow))
        if refused:
            findings.add(
                f"{len(refused)} near-duplicates of frames that it was trained on: "
                f"{listing(refused)}",
                "frames that the weights have never seen, also not saved again or changed a little",
                _LOOK,
            )
        if len(refused) < len(near):
            passed = sorted(near.difference(refused))
            warnings.append(
                f"{len(passed)} near-duplicates of training frames, allowed: {listing(passed)}"
            )
        warnings += _check_patients(split, dataset, record, findings)
    findings.raise_if_any()
    return warnings


def _check_patients(
    split: str, dataset: VesselDataset, record: Mapping[str, Any], findings: Findings
) -> list[str]:
    """Adds shared patients; returns warnings on those that cannot be compared."""
    known, check = _patients_of(record), dataset.pseudonym_check or _NO_PATIENT
    shared = sorted({p for p in dataset.patients if p is not None} & known.get(check, set()))
    if shared:
        findings.add(
            f"{len(shared)} patients of {split} that it was trained on: {listing(shared)}",
            "patients that the weights have never seen",
            "split by patient (tools/make_splits.py), and train again",
        )
    whose = "some frames of the training run have" if check in known else "the training run has"
    if check == _NO_PATIENT:
        others = ["patient ids, which the config lacks"] if known.keys() - {check} else []
    else:
        kinds = {"no patient ids": _NO_PATIENT in known}
        kinds["pseudonyms of another key"] = bool(known.keys() - {check, _NO_PATIENT})
        others = [kind for kind, is_there in kinds.items() if is_there]
    return [f"{split}: {whose} {ids}: patients were not compared with it" for ids in others]


def _patients_of(record: Mapping[str, Any]) -> dict[str, set[str]]:
    """The pseudonyms of a record, by the check of their key."""
    patients = record["patients"]
    if isinstance(patients, list):  # a record of one key, as it was written at first
        patients = {record["pseudonym_check"] or _NO_PATIENT: patients}
    return {check: set(names) for check, names in patients.items()}


def _hashes_of(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The hashes of each frame of a record; raises DataError where it is none."""
    columns = []
    for name, digits in (("pixels", _PIXEL_DIGITS), ("perceptual", 2 * HASH_BYTES)):
        text = record.get(name)
        if not isinstance(text, str) or len(text) % digits:
            raise DataError(
                f"a record of training frames without (or with broken) `{name}`",
                _FORM,
                "use a checkpoint as training wrote it",
            )
        columns.append([text[at : at + digits] for at in range(0, len(text), digits)])
    return columns[0], columns[1]

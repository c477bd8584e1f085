"""Hashes of images and splits, each frame read once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from ..errors import DataError
from .base import VesselDataset
from .near_duplicates import perceptual_hash
from .records import Findings

_T = TypeVar("_T")


def image_hashes(
    dataset: VesselDataset, by: str = "pixels", workers: int | None = None, progress: bool = False
) -> list[str]:
    """Returns a hash of every image.

    Args:
        dataset: whose images.
        by: ``pixels``: sha256 of the decoded image; ``bytes``: sha256 of its file;
            ``perceptual``: see :mod:`.near_duplicates`.
        workers: threads; None takes one a processor, at most 16.
        progress: show a bar.

    They are kept in ``dataset.image_hashes``, so that a data set is read once; ``pixels`` and
    ``perceptual`` are made together.

    Raises:
        DataError: images that cannot be read, all in one message.
    """
    if by not in dataset.image_hashes:
        kinds = ("bytes",) if by == "bytes" else ("pixels", "perceptual")

        def digests(index: int) -> tuple[str, ...] | DataError:
            try:
                if by == "bytes":
                    return (_file_hash(dataset.records[index].image_path),)
                image = dataset.image(index)
                return pixel_hash(image), perceptual_hash(image)
            except DataError as error:
                return error

        findings, rows = Findings(dataset.image_root), []
        for result in in_parallel(digests, len(dataset), f"hashing {by}", workers, progress):
            if isinstance(result, DataError):
                findings.add_error(result)
            else:
                rows.append(result)
        findings.raise_if_any()
        for number, kind in enumerate(kinds):
            dataset.image_hashes[kind] = [row[number] for row in rows]
    return dataset.image_hashes[by]


def split_hash(dataset: VesselDataset) -> str:
    """Returns a sha256 that stands for the data set's frames, labels and phrases.

    It goes over the sorted (file name below the image folder, hash of the file's bytes, objects),
    so it depends neither on the order of the annotations nor on where the data lies, and changes
    with every pixel, vertex and phrase. File bytes and not decoded pixels, because decoders
    differ by machine (JPEG). Data sets that make their frames have an identity of their own.
    """
    own = dataset.identity()
    if own is not None:
        return own
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


def pixel_hash(image: np.ndarray) -> str:
    """Returns the sha256 of an image uint8 [H, W, 3]: of its shape and pixels."""
    head = f"{image.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()


def in_parallel(
    work: Callable[[int], _T], count: int, title: str, workers: int | None, progress: bool
) -> list[_T]:
    """Returns ``work(0)`` to ``work(count - 1)``, done by threads, with a bar of that title."""
    # Threads: decoding releases the interpreter lock, and images need not be copied back.
    with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
        results = pool.map(work, range(count))
        return list(tqdm(results, title, count, disable=not progress, unit="frame", leave=False))


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error}", "a file that can be read", "copy the file again"
        ) from error

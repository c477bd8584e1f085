"""What may be uploaded, and how it is read: by the readers that training and testing use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...datasets.image_io import read_image, read_size
from ...errors import DataError

UPLOADED = "the uploaded file"


@dataclass(frozen=True)
class Limits:
    """What a frame may be.

    Attributes:
        max_side: pixels of the longer side.
        max_mib: size of the file in MiB.
    """

    max_side: int = 4096
    max_mib: float = 32.0

    @property
    def max_bytes(self) -> int:
        """``max_mib`` in bytes."""
        return int(self.max_mib * 2**20)


def read_upload(path: Path, limits: Limits, intensity: str = "own_range") -> np.ndarray:
    """Reads an uploaded frame; size and header are looked at before anything is decoded.

    Args:
        path: the file; neither its name nor its folder is in any message.
        limits: what it may be.
        intensity: how values deeper than 8 bits become 8 bits (``datasets/image_io.py``).

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        DataError: too large, or no frame that can be read.
    """
    try:
        size = path.stat().st_size if path.is_file() else 0
        if size > limits.max_bytes:
            raise too_many_bytes(size, limits)
        check_size(read_size(path), limits)
        return read_image(path, intensity)
    except DataError as error:
        # Without its cause, which names the file: a log would show it.
        raise _without_name(error, path, limits) from None


def _without_name(error: DataError, path: Path, limits: Limits) -> DataError:
    if isinstance(error.__cause__, Image.DecompressionBombError):
        most = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        return _too_many_pixels(f"more than {most} million pixels", limits)
    return DataError(error.found.replace(str(path), UPLOADED), error.expected, error.fix)


def too_many_bytes(size: int, limits: Limits) -> DataError:
    """The error of a file of ``size`` bytes."""
    return DataError(
        found=f"{UPLOADED} has {size / 2**20:.1f} MiB",
        expected=f"at most {limits.max_mib:g} MiB",
        fix="give one frame as PNG, or start the page with a larger --max-mib",
    )


def check_size(size: tuple[int, int], limits: Limits) -> None:
    """Raises DataError where width or height, in pixels, is above the limit."""
    if max(size) > limits.max_side:
        raise _too_many_pixels(f"{size[0]} x {size[1]} pixels", limits)


def _too_many_pixels(what: str, limits: Limits) -> DataError:
    return DataError(
        found=f"{UPLOADED} has {what}",
        expected=f"at most {limits.max_side} pixels a side",
        fix="make the frame smaller, or start the page with a larger --max-side",
    )

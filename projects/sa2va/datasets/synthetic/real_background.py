"""Backgrounds from real frames whose own vessels are taken out without anyone's labels.

Synthetic vessels on real angiograms train segmentation without labels: SSVS (Y. Ma et al.,
Self-Supervised Vessel Segmentation via Adversarial Learning, ICCV 2021) and FreeCOS (T. Shi et al.,
FreeCOS: Self-Supervised Learning from Fractals and Unlabeled Images for Curvilinear Object
Segmentation, ICCV 2023). Both put them on frames as they are; here the frame's own vessels go
first, since what is drawn is the only truth that the masks know.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from projects.sa2va.datasets.base import VesselDataset
from projects.sa2va.datasets.image_io import IMAGE_SUFFIXES, read_sizes
from projects.sa2va.datasets.records import Findings, Record
from projects.sa2va.errors import ConfigError, DataError

Array = NDArray[np.float32]

# Calibre of the largest coronary artery in parts of a frame's width: 36 of 512 pixels, where the
# widest twentieth of ARCADE's labels begins at 18.
_WIDEST = 0.07
_SHALLOW = 4.0  # grey levels
_KEPT = 256  # prepared frames that a worker keeps: 64 MiB at 512 x 512


class BackgroundFrames(VesselDataset):
    """The frames of a folder, without labels, as the checks of files and leaks want them.

    Args:
        image_dir: folder of the images, below ``data_root``.
        **common: see :class:`VesselDataset`.

    Raises:
        DataError: no folder, no images, images that cannot be read.
    """

    def __init__(self, image_dir: str | Path, **common: Any) -> None:
        self.image_dir = Path(image_dir)
        super().__init__(**common)

    def load_records(self) -> list[Record]:
        """Lists the images; see :class:`VesselDataset`."""
        self.image_root = self.resolve(self.image_dir)
        if not self.image_root.is_dir():
            raise DataError(
                f"{self.image_root} is no folder",
                "a folder of training images",
                "correct `background.image_dir` or `data_root` of the data set",
            )
        paths = [
            path
            for path in sorted(self.image_root.iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        ]
        findings, records = Findings(self.image_root), []
        for path, size in zip(paths, read_sizes(paths), strict=True):
            if isinstance(size, DataError):
                findings.add_error(size, image=path.name)
            else:
                records.append(Record(path, path.name, *size))
        findings.raise_if_any()
        return records


class RealBackground:
    """Real frames as grounds for synthetic vessels.

    Args:
        image_dir: folder of training frames, below ``data_root``; their labels are not looked at.
        share: of the frames that get a real ground, in (0, 1].
        limit: only the first so many files, by name.

    Raises:
        ConfigError: a share outside its range.
        DataError: see :class:`BackgroundFrames`.
    """

    def __init__(self, image_dir: str | Path, share: float = 0.5, limit: int | None = None) -> None:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ConfigError(
                f"background.share={share!r}",
                "a number above 0, at most 1",
                "set `background.share`, or remove `background` for drawn scenes only",
            )
        self.image_dir, self.share, self.limit = image_dir, float(share), limit
        self.frames: BackgroundFrames | None = None
        self._kept: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()

    def open(self, **common: Any) -> BackgroundFrames:
        """Opens the folder with the arguments of the data set that it belongs to."""
        self.frames = BackgroundFrames(self.image_dir, limit=self.limit, **common)
        return self.frames

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.uint8] | None:
        """A ground uint8 [size, size] without vessels, flipped and warped; None for a drawn scene.

        Raises:
            DataError: the frame cannot be read.
        """
        if rng.random() >= self.share or self.frames is None:
            return None
        ground = self._prepared(int(rng.integers(len(self.frames))), size)
        if rng.random() < 0.5:
            ground = ground[:, ::-1]
        if rng.random() < 0.15:
            ground = ground[::-1]
        turn, zoom = rng.uniform(-20, 20), rng.uniform(1.0, 1.5)
        move = cv2.getRotationMatrix2D((size / 2, size / 2), turn, zoom)
        move[:, 2] += rng.uniform(-0.1, 0.1, 2) * size
        return cv2.warpAffine(
            np.ascontiguousarray(ground), move, (size, size), borderMode=cv2.BORDER_REFLECT_101
        )

    def _prepared(self, index: int, size: int) -> NDArray[np.uint8]:
        key = index, size
        if key not in self._kept:
            grey = cv2.cvtColor(self.frames.image(index), cv2.COLOR_RGB2GRAY)
            grey = cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA)
            self._kept[key] = without_vessels(grey)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]


def without_vessels(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Takes thin dark structures out of a frame and leaves its edges and its noise.

    A grey-scale closing by a disc wider than any vessel fills whatever is dark and narrower than
    the disc; what the frame has beyond its own smooth version is put back as texture, from a place
    without vessels where the closing filled one.

    Args:
        grey: uint8 [size, size].

    Returns:
        uint8 [size, size].
    """
    size = len(grey)
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), size / 340)
    texture = grey.astype(np.float32) - smooth
    # The closing is of something smooth, so half the resolution shows the same in a quarter.
    half = cv2.resize(smooth, (size // 2, size // 2), interpolation=cv2.INTER_AREA)
    width = max(3, int(_WIDEST * size / 2) | 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    closed = cv2.morphologyEx(half, cv2.MORPH_CLOSE, disc)
    depth = closed - half
    # Slopes and noise lift a closing everywhere; vessels are what lies deeper than that.
    bound = float(np.median(depth)) + _SHALLOW
    thin = cv2.dilate((depth > bound).astype(np.float32), np.ones((5, 5), np.uint8))
    # A closing leaves flat discs; blurring hides them.
    closed = cv2.GaussianBlur(closed - np.float32(np.median(depth)), (0, 0), size / 128)
    share, filled = (
        cv2.resize(field, (size, size), interpolation=cv2.INTER_LINEAR)
        for field in (cv2.GaussianBlur(thin, (0, 0), 1.0), closed)
    )
    other = _plain_texture(texture, thin)
    ground = share * (filled + other) + (1 - share) * grey
    return np.clip(np.rint(ground), 0, 255).astype(np.uint8)


def _plain_texture(texture: Array, thin: Array) -> Array:
    """The texture of the tile with the fewest vessels, repeated over the picture.

    Args:
        texture: float32 [size, size].
        thin: float32 [size / 2, size / 2], 1 where vessels are.
    """
    size = len(texture)
    side = size // 8
    share = cv2.blur(thin, (side // 2, side // 2), borderType=cv2.BORDER_REPLICATE)
    inner = share[side // 2 : -(side // 2), side // 2 : -(side // 2)]
    row, column = np.unravel_index(int(inner.argmin()), inner.shape)
    # `share` is at half the resolution, and names the middle of a tile.
    row, column = 2 * int(row) + side // 2, 2 * int(column) + side // 2
    tile = texture[row : row + side, column : column + side]
    both = np.block([[tile, tile[:, ::-1]], [tile[::-1], tile[::-1, ::-1]]])
    times = -(-size // len(both))
    return np.tile(both, (times, times))[:size, :size]

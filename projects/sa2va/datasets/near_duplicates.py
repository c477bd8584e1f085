"""Frames that show the same picture in other bytes: saved again, resized, brighter, cropped.

Two steps, so that the decision is solid:

1. **Hash.** pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions",
   2010) with 256 bits in place of its 64: the signs of the 16 x 16 lowest DCT coefficients about
   their median, of the image shrunk by area to 64 x 64. Angiograms look alike, so 64 bits are too
   few. Pairs of at most :data:`CANDIDATE_BITS` different bits are candidates.
2. **Correlation.** The inner part of one thumbnail is searched in the other, after a band pass
   that takes away illumination and noise; the greatest normalised cross-correlation decides
   (:data:`SIMILAR`). The search forgives a shift of 8 of 64 pixels, so a small crop is found too.

A record of frames that holds hashes alone (no pictures) can take the first step only; there
:data:`RECORDED_BITS` is stricter. docs/data_quality.md has the measurements behind the numbers.
Mirrored, rotated and inverted copies are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

HASH_BYTES = 32
CANDIDATE_BITS = 48
RECORDED_BITS = 32
SIMILAR = 0.9

_THUMBNAIL, _SIDE, _MARGIN = 64, 16, 8
_NOISE_SIGMA, _LIGHT_SIGMA = 1.0, 6.0
_ROWS_AT_ONCE = 1024


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shrinks an image uint8 [H, W, 3] to grey float32 [64, 64], by area."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32)


def perceptual_hash(image: NDArray[np.uint8]) -> str:
    """Returns the hash of an image uint8 [H, W, 3], 64 hexadecimal digits."""
    lowest = dctn(thumbnail(image), norm="ortho")[:_SIDE, :_SIDE].ravel()
    # The first coefficient is the brightness, which must not count.
    return np.packbits(lowest > np.median(lowest[1:])).tobytes().hex()


def pack_hashes(hashes: Sequence[str]) -> NDArray[np.uint64]:
    """Returns hashes of 64 hexadecimal digits as uint64 [N, 4], for :func:`near_pairs`."""
    data = bytes.fromhex("".join(hashes))
    return np.frombuffer(data, np.uint64).reshape(len(hashes), HASH_BYTES // 8)


def near_pairs(
    left: NDArray[np.uint64], right: NDArray[np.uint64], bits: int = CANDIDATE_BITS
) -> Iterator[tuple[int, int, int]]:
    """Yields (row of ``left``, row of ``right``, different bits) of all pairs within ``bits``."""
    for start in range(0, len(left), _ROWS_AT_ONCE):
        block = left[start : start + _ROWS_AT_ONCE]
        distance = np.zeros((len(block), len(right)), np.uint16)
        for word in range(left.shape[1]):
            distance += np.bitwise_count(block[:, word, None] ^ right[None, :, word])
        for row, column in np.argwhere(distance <= bits):
            yield start + int(row), int(column), int(distance[row, column])


def similarity(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Returns the greatest normalised cross-correlation of two thumbnails [64, 64], -1 to 1.

    0 where one of them is of one grey value, which correlates with nothing.
    """
    inner = _band_pass(left)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    whole = _band_pass(right)
    if min(float(inner.std()), float(whole.std())) < 1e-3:
        return 0.0
    return float(np.clip(cv2.matchTemplate(whole, inner, cv2.TM_CCOEFF_NORMED), -1, 1).max())


def _band_pass(image: NDArray[np.float32]) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(image, (0, 0), _NOISE_SIGMA)
    return smooth - cv2.GaussianBlur(image, (0, 0), _LIGHT_SIGMA)

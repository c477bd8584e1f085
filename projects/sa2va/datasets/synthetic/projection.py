"""Path lengths of parallel X-rays through tubes, exact for unions of balls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Balls this far apart (in radii) leave a tube's wall smooth to r / 128.
SPACING = 0.25


def tube_balls(points: Array, radius: Array, finest_mm: float) -> tuple[Array, Array]:
    """Fills a tube with overlapping balls.

    Args:
        points: centreline [N, 3] in mm, N >= 2.
        radius: [N] in mm.
        finest_mm: balls need not be closer than this.

    Returns:
        Centres [M, 3] and radii [M], both in mm.
    """
    gaps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(gaps)])
    spacing = np.maximum(SPACING * radius, finest_mm)
    # Number of balls up to each point = integral of the local density 1 / spacing.
    density = np.concatenate([[0.0], np.cumsum(gaps * 2 / (spacing[1:] + spacing[:-1]))])
    count = max(2, int(np.ceil(density[-1])) + 1)
    at = np.interp(np.linspace(0, density[-1], count), density, along)
    centres = np.stack([np.interp(at, along, points[:, axis]) for axis in range(3)], axis=1)
    return centres, np.interp(at, along, radius)


def path_length(centres: Array, radii: Array, size: int, pixel_mm: float, rays: int = 2) -> Array:
    """Mean length of rays along z inside the union of balls, per pixel.

    Each ball gives a ray one interval of depth; the union of a ray's intervals is measured, so
    lumen that belongs to two branches at their junction counts once, while branches that merely
    cross in the picture add up, as they do in a patient.

    Args:
        centres: [M, 3] in mm; x to the right, y down, the picture's centre at (0, 0).
        radii: [M] in mm.
        size: pixels per side of the picture.
        pixel_mm: side of a pixel.
        rays: rays per pixel side.

    Returns:
        float64 [size, size] in mm.
    """
    fine, cell = size * rays, pixel_mm / rays
    column = centres[:, 0] / cell + fine / 2 - 0.5
    row = centres[:, 1] / cell + fine / 2 - 0.5
    reach = np.floor(radii / cell).astype(int) + 1
    inside = (column > -reach) & (column < fine + reach) & (row > -reach) & (row < fine + reach)
    pixels, lows, highs = [], [], []
    for width in np.unique(reach[inside]):
        chosen = np.flatnonzero(inside & (reach == width))
        offsets = np.arange(-width, width + 1)
        rows = np.rint(row[chosen]).astype(int)[:, None, None] + offsets[None, :, None]
        columns = np.rint(column[chosen]).astype(int)[:, None, None] + offsets[None, None, :]
        square = (radii[chosen] / cell)[:, None, None] ** 2
        square = square - (rows - row[chosen, None, None]) ** 2
        square = square - (columns - column[chosen, None, None]) ** 2
        hit = (square > 0) & (rows >= 0) & (rows < fine) & (columns >= 0) & (columns < fine)
        half = np.sqrt(square[hit]) * cell
        which = np.nonzero(hit)[0]
        depth = centres[chosen[which], 2]
        pixels.append((rows * fine + columns)[hit])
        lows.append(depth - half)
        highs.append(depth + half)
    if not any(len(pixel) for pixel in pixels):
        return np.zeros((size, size))
    pixel, low, high = np.concatenate(pixels), np.concatenate(lows), np.concatenate(highs)
    # One number line holds all rays: each ray's depths are moved to a stretch of its own.
    bottom = low.min()
    stretch = high.max() - bottom + 1.0
    low, high = low - bottom + pixel * stretch, high - bottom + pixel * stretch
    order = np.argsort(low, kind="stable")
    low, high, pixel = low[order], high[order], pixel[order]
    covered = np.concatenate([[-np.inf], np.maximum.accumulate(high)[:-1]])
    new = np.maximum(high - np.maximum(low, covered), 0.0)
    total = np.bincount(pixel, weights=new, minlength=fine * fine)
    return total.reshape(size, rays, size, rays).mean(axis=(1, 3))

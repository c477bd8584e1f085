"""Path lengths of parallel X-rays through tubes, fast: chords of tapering cylinders.

:mod:`.projection` measures unions of balls exactly; here a tube is a chain of short pieces whose
chord is taken at each pixel's distance from the axis, at a small part of the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Pieces need not be shorter than this part of their radius.
_SPACING = 1.0
# A pixel's own width (variance 1/12) and the gaps between pixel centres: a thinner tube is drawn
# wider by this and paler, so that it absorbs the same and does not break into beads.
_PIXEL_VARIANCE = np.float32(0.3)
# Half a pixel for the rounded middle of a window, and what _PIXEL_VARIANCE widens.
_MARGIN = 0.8
# Windows of these half widths: a piece costs the square of its window's.
_REACHES = (0, 3, 4, 5, 7, 10, 14, np.inf)
# A tube seen end on has an endless chord; a real one turns away long before.
_MOST_STRETCH = 2.5


@dataclass
class Pieces:
    """Short straight pieces of tubes, in pixels; z runs along the rays.

    Attributes:
        start, end: float32 [S, 3].
        radius: float32 [S, 2], at both ends.
        labelled: bool [S].
        weight: float32 [S], factor on the path length.
    """

    start: Array
    end: Array
    radius: Array
    labelled: NDArray[np.bool_]
    weight: Array

    @classmethod
    def of(cls, points: NDArray, radius: NDArray, labelled: int = 0, weight: float = 1.0) -> Pieces:
        """Cuts one tube up.

        Args:
            points: centreline [N, 3].
            radius: [N].
            labelled: so many of the first points are labelled.
            weight: factor on the path length.
        """
        points, radius = points.astype(np.float32), radius.astype(np.float32)
        step = float(np.linalg.norm(points[1:] - points[:-1], axis=1).mean())
        every = max(1, int(_SPACING * float(radius.mean()) / max(step, 1e-6)))
        kept = np.append(np.arange(0, len(points) - 1, every), len(points) - 1)
        points, radius = points[kept], radius[kept]
        ends = np.stack([radius[:-1], radius[1:]], axis=1)
        count = len(ends)
        factor = np.full(count, weight, np.float32)
        return cls(points[:-1], points[1:], ends, kept[1:] < labelled, factor)

    @classmethod
    def of_fine(
        cls, lines: Sequence[NDArray], radii: Sequence[NDArray], weights: Sequence[float]
    ) -> Pieces:
        """Cuts many thin unlabelled tubes up at each of their points."""
        points = np.concatenate(lines).astype(np.float32)
        radius = np.concatenate(radii).astype(np.float32)
        lengths = np.array([len(line) for line in lines])
        # The last point of a line and the first of the next are no piece.
        kept = np.delete(np.arange(len(points) - 1), np.cumsum(lengths)[:-1] - 1)
        ends = np.stack([radius[kept], radius[kept + 1]], axis=1)
        factor = np.repeat(np.asarray(weights, np.float32), lengths - 1)
        return cls(points[kept], points[kept + 1], ends, np.zeros(len(kept), bool), factor)

    @classmethod
    def joined(cls, parts: Sequence[Pieces]) -> Pieces:
        """The pieces of several tubes as one."""
        names = ("start", "end", "radius", "labelled", "weight")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


Root = tuple[float, float, float]
"""x, y and radius of the place on another tube where a tube begins."""


class Lumen:
    """Sums tubes: path lengths add up where tubes cross, and count once where one leaves another.

    Attributes:
        path_px: float32 [size, size], path length in pixels through everything drawn.
        inside: bool [size, size], pixels whose centre lies in a labelled part.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.path_px = np.zeros((size, size), np.float32)
        self.inside = np.zeros((size, size), bool)
        self._own = np.zeros(size * size, np.float32)

    def add(
        self,
        tubes: Sequence[Pieces],
        roots: Sequence[Root | None] | None = None,
    ) -> None:
        """Draws tubes, one after the other.

        Args:
            tubes: where pieces of one tube overlap, the longest path counts.
            roots: of each tube; near its root a tube and what was drawn before are one lumen.
        """
        if not tubes:
            return
        counts = [len(tube.weight) for tube in tubes]
        number = np.repeat(np.arange(len(tubes)), counts)
        # All pieces of a thickness at once: a call on arrays costs as much as a hundred pieces.
        found = [
            (*_chords(part, self.size), owner)
            for part, owner in _by_reach(Pieces.joined(tubes), number, self.size)
        ]
        spans = [np.searchsorted(o[w], np.arange(len(tubes) + 1)) for _, _, _, w, o in found]
        for tube in range(len(tubes)):
            parts = [
                [column[span[tube] : span[tube + 1]] for column in columns[:3]]
                for columns, span in zip(found, spans, strict=True)
                if span[tube + 1] > span[tube]
            ]
            if parts:
                pixel, chord, inside = (np.concatenate(c) for c in zip(*parts, strict=True))
                self._add(pixel, chord, inside, roots[tube] if roots else None)

    def _add(
        self,
        pixel: NDArray[np.intp],
        chord: Array,
        inside: NDArray[np.bool_],
        root: Root | None,
    ) -> None:
        np.maximum.at(self._own, pixel, chord)
        own = self._own[pixel]
        total = self.path_px.reshape(-1)
        before = total[pixel]
        after = before + own
        if root is not None:
            after -= self.near(root).reshape(-1)[pixel] * np.minimum(own, before)
        total[pixel] = after
        self._own[pixel] = 0.0
        self.inside.reshape(-1)[pixel[inside]] = True

    def near(self, root: Root) -> Array:
        """1 within 1.5 radii of a root, falling to 0 at 3 radii; float32 [size, size]."""
        x, y, radius = root
        out = np.zeros((self.size, self.size), np.float32)
        left, top = (max(0, int(at - 3 * radius)) for at in (x, y))
        right, bottom = (max(0, int(at + 3 * radius) + 2) for at in (x, y))
        patch = out[top:bottom, left:right]
        rows, columns = (
            np.arange(start, start + n) for start, n in zip((top, left), patch.shape, strict=True)
        )
        away = np.hypot(columns[None, :] - x, rows[:, None] - y)
        patch[...] = np.clip(2.0 - away / (1.5 * radius), 0.0, 1.0)
        return out


def _by_reach(
    pieces: Pieces, number: NDArray[np.intp], size: int
) -> list[tuple[Pieces, NDArray[np.intp]]]:
    """Pieces that touch the picture, those of about the same thickness together, with numbers."""
    middle = (pieces.start[:, :2] + pieces.end[:, :2]) / 2
    half = np.hypot(*(pieces.end[:, :2] - pieces.start[:, :2]).T) / 2
    reach = np.ceil(pieces.radius.max(axis=1) + half + _MARGIN)
    seen = ((middle > -reach[:, None]) & (middle < size + reach[:, None])).all(axis=1)
    groups = []
    for low, high in itertools.pairwise(_REACHES):
        chosen = seen & (reach > low) & (reach <= high)
        if chosen.any():
            fields = (pieces.start, pieces.end, pieces.radius, pieces.labelled, pieces.weight)
            groups.append((Pieces(*(field[chosen] for field in fields)), number[chosen]))
    return groups


def _chords(
    pieces: Pieces, size: int
) -> tuple[NDArray[np.intp], Array, NDArray[np.bool_], NDArray[np.intp]]:
    """(pixel, weighted chord, is inside a labelled piece, piece) of the pixels of every piece."""
    step = pieces.end - pieces.start
    length = np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-3)
    stretch = np.minimum(np.linalg.norm(step, axis=1) / length, _MOST_STRETCH)
    reach = int(np.ceil((pieces.radius.max(axis=1) + length / 2).max() + _MARGIN))
    offset = np.arange(-reach, reach + 1)
    column, row = (
        np.rint((pieces.start[:, axis] + pieces.end[:, axis]) / 2).astype(np.intp)[:, None] + offset
        for axis in (0, 1)
    )
    dx = (column - pieces.start[:, :1]).astype(np.float32)[:, None, :]
    dy = (row - pieces.start[:, 1:2]).astype(np.float32)[:, :, None]
    ux, uy = ((step[:, axis] / length)[:, None, None] for axis in (0, 1))
    along = dx * ux + dy * uy
    np.clip(along, 0.0, length[:, None, None], out=along)
    square = (dx - along * ux) ** 2
    square += (dy - along * uy) ** 2
    change = (pieces.radius[:, 1] - pieces.radius[:, 0]) / length
    radius = pieces.radius[:, :1, None] + along * change[:, None, None]
    radius *= radius
    inner = radius - square
    good = inner > -_PIXEL_VARIANCE
    good &= ((column >= 0) & (column < size))[:, None, :] & ((row >= 0) & (row < size))[:, :, None]
    which, down, right = np.nonzero(good)
    inner, radius = inner[good], radius[good]
    chord = 2 * np.sqrt(inner + _PIXEL_VARIANCE)
    chord *= radius / (radius + _PIXEL_VARIANCE)
    chord *= (stretch * pieces.weight)[which]
    pixel = row[which, down] * size + column[which, right]
    return pixel, chord, (inner >= 0) & pieces.labelled[which], which

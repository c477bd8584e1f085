"""What the metrics of shape need of one mask, each computed once and only when asked for."""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np
from scipy.spatial import cKDTree
from skimage.morphology import skeletonize

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


class MaskGeometry:
    """Skeleton, outline and Betti numbers of a mask.

    All work is done on the mask's bounding box with a margin of one background pixel, which
    changes nothing in the results: outside the image counts as background.

    Args:
        mask: bool [H, W].
    """

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask

    @cached_property
    def _crop(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounding box with its margin, bool [h, w], and its corner (row, column)."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        if not len(rows):
            return np.zeros((2, 2), bool), np.zeros(2, np.intp)
        box = self.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return np.pad(box, 1), np.array([rows[0] - 1, columns[0] - 1])

    def _points(self, crop: np.ndarray) -> np.ndarray:
        """Coordinates in the image of the set pixels of a crop, int64 [N, 2], row by row."""
        rows, columns = np.divmod(np.flatnonzero(crop), crop.shape[1])
        return np.stack((rows, columns), 1) + self._crop[1]

    @cached_property
    def _skeleton_crop(self) -> np.ndarray:
        return skeletonize(self._crop[0])

    @cached_property
    def skeleton(self) -> np.ndarray:
        """Centreline pixels (Zhang & Suen's thinning, scikit-image), int64 [N, 2].

        A mask that is not empty has a skeleton that is not empty.
        """
        return self._points(self._skeleton_crop)

    @cached_property
    def tube(self) -> np.ndarray:
        """The skeleton made two pixels thicker on each side, within the mask, int64 [N, 2].

        The target of skeleton recall: Kirchhoff et al., "Skeleton Recall Loss", ECCV 2024.
        """
        thick = cv2.dilate(self._skeleton_crop.view(np.uint8), _CROSS, iterations=2)
        return self._points(thick.view(bool) & self._crop[0])

    @cached_property
    def edges(self) -> np.ndarray:
        """Outline: pixels of the mask with a 4-neighbour outside of it, int64 [N, 2].

        Pixels on the image's border belong to it, as in MONAI's ``get_mask_edges``.
        """
        box = self._crop[0]
        inner = box.copy()
        inner[1:-1, 1:-1] &= box[:-2, 1:-1] & box[2:, 1:-1] & box[1:-1, :-2] & box[1:-1, 2:]
        return self._points(box & ~inner)

    @cached_property
    def betti(self) -> tuple[int, int]:
        """Number of components (8-connected) and of holes (4-connected background) in the image."""
        box = self._crop[0]
        pieces = cv2.connectedComponents(box.view(np.uint8), connectivity=8)[0]
        # The margin joins all background that reaches the crop's border into one component.
        spaces = cv2.connectedComponents((~box).view(np.uint8), connectivity=4)[0]
        return pieces - 1, spaces - 2  # OpenCV counts the zeros as one more


def inside(points: np.ndarray, mask: np.ndarray) -> int:
    """How many of ``points`` [N, 2] lie on set pixels of ``mask``."""
    return int(np.count_nonzero(mask[points[:, 0], points[:, 1]]))


def nearest(points: np.ndarray, others: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Euclidean distance of each point to the nearest of ``others``.

    Args:
        points, others: int [N, 2] and [M, 2]; M > 0.
        spacing: float [2], of rows and columns; the distances are in its unit.

    Returns:
        float64 [N].
    """
    width = 1 + max(points[:, 1].max(initial=0), others[:, 1].max(initial=0))
    # Outlines of a good prediction share many pixels; only the others need a search.
    apart = np.isin(points @ [width, 1], others @ [width, 1], invert=True, kind="table")
    distances = np.zeros(len(points))
    if apart.any():
        tree = cKDTree(others * spacing, balanced_tree=False, compact_nodes=False)
        distances[apart] = tree.query(points[apart] * spacing)[0]
    return distances

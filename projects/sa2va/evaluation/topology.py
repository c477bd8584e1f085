"""Errors of topology: how many pieces and how many holes there are too many or too few.

    betti0_error = |b0(P) - b0(T)|      b0: components of the mask, 8-connected
    betti1_error = |b1(P) - b1(T)|      b1: holes, 4-connected components of the background that do
                                        not reach the outside of the image

after Hu et al., "Topology-Preserving Deep Image Segmentation", NeurIPS 2019, but over the whole
image instead of patches, so that no loop is cut. A vessel tree in one piece has b0 = 1; each break
adds one; vessels that cross in projection close loops, which are holes. The numbers say nothing
about where: read them beside clDice. Less is better, and they are defined for empty masks too
(no piece, no hole). Pooled, the errors of all rows are summed and divided by their number, which is
the mean over rows.
"""

from __future__ import annotations

import numpy as np

from .geometry import MaskGeometry
from .overlap import ratio

TOPOLOGY_NAMES = ("betti0_error", "betti1_error")


def topology_parts(prediction: MaskGeometry, truth: MaskGeometry) -> np.ndarray:
    """int64 [3]: both errors, and 1 for the row."""
    errors = (abs(p - t) for p, t in zip(prediction.betti, truth.betti, strict=True))
    return np.array([*errors, 1], np.int64)


def pooled_topology(parts: np.ndarray) -> dict[str, np.ndarray]:
    """Errors a row, from summed [..., 3] of :func:`topology_parts`."""
    parts = np.asarray(parts, float)
    return {name: ratio(parts[..., k], parts[..., 2]) for k, name in enumerate(TOPOLOGY_NAMES)}

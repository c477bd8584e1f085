"""Metrics of centrelines: what counts is length, so that thin vessels weigh as much as thick ones.

With S_P, S_T the skeletons of prediction and truth and V_P, V_T the masks:

    cldice               = 2 a b / (a + b),  a = |S_P in V_T| / |S_P|,  b = |S_T in V_P| / |S_T|
    centreline_precision = share of S_P within ``tolerance`` px of S_T
    centreline_recall    = share of S_T within ``tolerance`` px of S_P
    skeleton_recall      = share of the true tube that was predicted; the tube is S_T thickened by
                           two pixels, within V_T

clDice: Shit et al., CVPR 2021 (doi:10.1109/CVPR46437.2021.01629), on hard masks; the tolerance as
in the evaluation of road centrelines (Heipke et al. 1997: correctness and completeness); skeleton
recall: Kirchhoff et al., ECCV 2024, whose loss is one minus it. Pooled, numerators and
denominators are summed over the rows first.

    truth    prediction   cldice      centreline_precision  centreline_recall, skeleton_recall
    empty    empty        undefined   undefined             undefined
    empty    some         0           0                     undefined
    some     empty        0           undefined             0
"""

from __future__ import annotations

import numpy as np

from .geometry import MaskGeometry, inside, nearest
from .overlap import ratio

CENTRELINE_NAMES = ("cldice", "centreline_precision", "centreline_recall", "skeleton_recall")
_PIXELS = np.ones(2)


def centreline_parts(prediction: MaskGeometry, truth: MaskGeometry, tolerance: float) -> np.ndarray:
    """The lengths and areas that the metrics are ratios of.

    Args:
        prediction, truth: masks of one size.
        tolerance: in px.

    Returns:
        int64 [8]: |S_P|, |S_P in V_T|, |S_P near S_T|, |S_T|, |S_T in V_P|, |S_T near S_P|, |tube|,
        |tube in V_P|.
    """
    ours, theirs = prediction.skeleton, truth.skeleton
    near_t = near_p = 0
    if len(ours) and len(theirs):
        near_t = np.count_nonzero(nearest(ours, theirs, _PIXELS) <= tolerance)
        near_p = np.count_nonzero(nearest(theirs, ours, _PIXELS) <= tolerance)
    return np.array(
        [
            *(len(ours), inside(ours, truth.mask), near_t),
            *(len(theirs), inside(theirs, prediction.mask), near_p),
            *(len(truth.tube), inside(truth.tube, prediction.mask)),
        ],
        np.int64,
    )


def pooled_centreline(parts: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of one row, or of summed parts.

    Args:
        parts: [..., 8] of :func:`centreline_parts`.

    Returns:
        Each metric, float64 [...]; ``nan`` where undefined.
    """
    n_p, in_t, near_t, n_t, in_p, near_p, tube, tube_hit = np.moveaxis(
        np.asarray(parts, float), -1, 0
    )
    # 2ab / (a + b) times |S_P| |S_T| above and below, so that only two empty sides give 0/0.
    below = in_t * n_t + in_p * n_p
    nothing_shared = (below == 0) & (n_p + n_t > 0)
    return {
        "cldice": np.where(nothing_shared, 0.0, ratio(2 * in_t * in_p, below)),
        "centreline_precision": ratio(near_t, n_p),
        "centreline_recall": ratio(near_p, n_t),
        "skeleton_recall": ratio(tube_hit, tube),
    }

"""Pairs of masks for the tests of single metrics."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
# Whole empty and whole full masks have to come often, they are where metrics are undefined.
FILLS = st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])


@st.composite
def mask_pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, truth), bool [H, W]."""
    shape, pair = draw(SHAPES), []
    for fill in (draw(FILLS), draw(FILLS)):
        noise = draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 0.96875, width=32)))
        pair.append(noise < fill)
    return pair[0], pair[1]


def same(left: float, right: float, tolerance: float = 0.0) -> bool:
    """Equal within ``tolerance``, or both undefined."""
    return (math.isnan(left) and math.isnan(right)) or abs(left - right) <= tolerance


def vessels(seed: int = 0, side: int = 96) -> np.ndarray:
    """A mask of a few thick lines, bool [side, side]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    mask = np.zeros((side, side), bool)
    for _ in range(4):
        (r0, c0), angle = rng.uniform(20, side - 20, 2), rng.uniform(0, math.pi)
        along = (rows - r0) * math.cos(angle) + (columns - c0) * math.sin(angle)
        across = (columns - c0) * math.cos(angle) - (rows - r0) * math.sin(angle)
        mask |= (np.abs(across) < rng.uniform(1, 3)) & (np.abs(along) < rng.uniform(20, 60))
    return mask

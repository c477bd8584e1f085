"""Hysteresis and removal of small pieces: against scipy and scikit-image, and in the results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import binary_propagation
from skimage.morphology import remove_small_objects

from projects.sa2va.errors import ConfigError
from projects.sa2va.evaluation.metrics import Scorer
from projects.sa2va.evaluation.postprocess import PostProcess

# Few levels, among them the thresholds themselves, so that >= and > differ.
maps = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from(
        [np.float32(v) for v in (0, 0.1, 0.3, 0.31, 0.5, 0.7, 1)]
    ),
)  # fmt: skip
_EIGHT = np.ones((3, 3), bool)


@given(maps, st.sampled_from([0.3, 0.5, 0.7]), st.sampled_from([0.1, 0.3]))
def test_hysteresis_is_propagation_over_eight_neighbours(probability, high, low):
    found = PostProcess(low=low).cut(probability, high)
    strong, weak = (probability >= np.float32(cut) for cut in (high, low))
    assert np.array_equal(found, binary_propagation(strong, _EIGHT, mask=weak))


@given(maps, st.integers(0, 12))
def test_small_pieces_go_as_with_scikit_image(probability, area):
    mask = probability >= np.float32(0.5)
    found = PostProcess(min_area=area).cut(probability, 0.5)
    # Theirs removes pieces of max_size or less.
    expected = remove_small_objects(mask, max_size=area - 1, connectivity=2) if area else mask
    assert np.array_equal(found, expected)


def test_both_keep_a_thin_diagonal_and_its_faint_end():
    probability = np.zeros((20, 20), np.float32)
    np.fill_diagonal(probability, 0.4)
    probability[3, 3] = 0.9
    probability[15, 2] = 0.9
    mask = PostProcess(low=0.3, min_area=5).cut(probability, 0.5)
    assert np.array_equal(mask, np.eye(20, dtype=bool))
    assert Scorer(0.5, postprocess=PostProcess(low=0.3)).cut(probability).sum() == 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 0}, "low=0 "),
        ({"low": True}, "low=True"),
        ({"low": 0.6}, r"low=0\.6"),
        ({"min_area": -1}, "min_area=-1"),
        ({"min_area": 2.5}, r"min_area=2\.5"),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PostProcess(**arguments).check(0.5)


def test_nothing_done_says_nothing():
    nothing = PostProcess(min_area=1)
    assert (nothing.as_dict(), nothing.describe(), nothing.kinds()) == (None, "", [])
    both = PostProcess(0.2, 9)
    assert both.as_dict() == {"low": 0.2, "min_area": 9}
    assert both.kinds() == ["hysteresis", "components"] and "9 px" in both.describe()

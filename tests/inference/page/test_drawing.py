"""Files hold what the result holds; pictures on the page stay small."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from projects.sa2va.inference.page import drawing
from projects.sa2va.inference.results import InferenceResult

MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(0, 1, width=32),
)


def result_of(probability: np.ndarray, threshold: float = 0.5) -> InferenceResult:
    image = np.zeros((*probability.shape, 3), np.uint8)
    return InferenceResult(
        "x", ["vessel"], threshold, _image=image, _probabilities=probability[None],
        _answers=["[SEG]"], _seg_emitted=[True],
    )  # fmt: skip


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


@settings(max_examples=50, deadline=None)
@given(MAPS, st.floats(0.01, 1))
def test_files_can_be_read_back(probability, threshold):
    result = result_of(probability, threshold)
    mask = decoded(drawing.mask_png(result))
    np.testing.assert_array_equal(mask, np.where(probability >= threshold, 255, 0))
    deep = decoded(drawing.probability_png(result))
    assert deep.dtype == np.uint16
    assert np.abs(deep / 65535 - probability).max() <= 0.5 / 65535 + 1e-9
    stored = np.load(io.BytesIO(drawing.probability_npz(result)))["probability"]
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, probability)
    over = decoded(drawing.overlay_png(result))
    np.testing.assert_array_equal(over.any(axis=2), probability >= threshold)


@pytest.mark.parametrize("shape", [(5, 7), (1024, 3), (3000, 1500)])
def test_previews_are_small(shape):
    picture = decoded(drawing.preview_png(np.full(shape, 9, np.uint8)))
    factor = min(1, 1024 / max(shape))
    assert picture.shape == (round(shape[0] * factor), round(shape[1] * factor))
    assert (picture == 9).all()


def test_a_thin_line_survives_shrinking():
    line = np.zeros((4000, 4000), np.uint8)
    line[:, 2001] = 255
    assert (decoded(drawing.preview_png(line)).max(axis=1) > 50).all()


def test_heat_goes_from_dark_to_light():
    colours = drawing.heat_map(np.linspace(0, 1, 11, dtype=np.float32)[None]).astype(float)
    assert (np.diff(colours.sum(axis=2)) > 0).all()
    assert drawing.heat_gradient().count("#") == 9


def test_every_view_can_be_drawn():
    result = result_of(np.eye(4, dtype=np.float32))
    for kind in drawing.VIEWS:
        assert decoded(drawing.view_png(result, kind)).shape[:2] == (4, 4)

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from skimage.draw import polygon2mask

from projects.sa2va.datasets.records import (
    Findings,
    Obj,
    parse_polygon,
    parse_rle,
    rasterise,
)
from projects.sa2va.errors import DataError


@settings(max_examples=40, deadline=None)
@given(
    centre=st.tuples(st.floats(20, 44), st.floats(20, 36)),
    radii=st.lists(st.floats(4, 18), min_size=3, max_size=9),
)
def test_area_agrees_with_an_independent_rasteriser(centre, radii):
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    xy = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array(radii)[:, None] + centre
    ours = rasterise(Obj("v", [xy]), 56, 64)
    # skimage counts a pixel by its index, pycocotools by its centre at index + 0.5.
    theirs = polygon2mask((56, 64), xy[:, ::-1] - 0.5)
    perimeter = np.linalg.norm(xy - np.roll(xy, 1, axis=0), axis=1).sum()
    assert ours.shape == (56, 64) and set(np.unique(ours)) <= {0, 1}
    assert np.logical_xor(ours, theirs).sum() <= 0.5 * perimeter + 4
    x, y = xy.T
    shoelace = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert abs(int(ours.sum()) - shoelace) <= 0.5 * perimeter + 4


def test_overlaps_stay_one_and_sources_unite(tmp_path):
    box = np.array([[2, 2], [12, 2], [12, 12], [2, 12]], float)
    overlapping = rasterise(Obj("v", [box, box + 3]), 30, 40)
    assert overlapping.max() == 1 and overlapping.sum() == 100 + 100 - 49
    other = np.zeros((30, 40), np.uint8)
    other[20:25, 20:30] = 1
    rle = coco_mask.encode(np.asfortranarray(other))
    Image.fromarray(np.eye(30, 40, dtype=np.uint8)).save(tmp_path / "m.png")
    united = rasterise(Obj("v", [box], [rle], tmp_path / "m.png"), 30, 40)
    expected = np.eye(30, 40, dtype=np.uint8) | other
    expected[2:12, 2:12] = 1
    assert (united == expected).all()
    assert not rasterise(Obj("v"), 30, 40).any()


def test_mask_file_of_another_size(tmp_path):
    Image.fromarray(np.ones((10, 20), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png is 20 x 10 px, its image is 40 x 30 px"):
        rasterise(Obj("v", mask_path=tmp_path / "m.png"), 30, 40)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 12), height=st.integers(1, 12))
def test_every_rle_form_comes_back_and_every_cut_one_is_refused(seed, width, height):
    mask = (np.random.default_rng(seed).random((height, width)) < 0.4).astype(np.uint8)
    compressed = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": [height, width], "counts": compressed["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    for rle in (text, {"size": [height, width], "counts": runs}):
        parsed, problem = parse_rle(rle, width, height)
        assert problem == "" and (rasterise(Obj("v", rle=[parsed]), height, width) == mask).all()
    # pycocotools would fill the missing rest with uninitialised memory.
    for counts in (text["counts"][:-1], runs[:-1] if runs[-1] else [*runs[:-1], 1], ""):
        assert parse_rle({"size": [height, width], "counts": counts}, width, height)[0] is None


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [800, 800], "counts": [640000]}, "drawn at 800 x 800 px on an image of 40 x 30"),
        ({"size": [30, 40], "counts": [10, 5]}, "covers 15 pixels, the image has 1200"),
        ({"size": [30, 40], "counts": [1300, -100]}, "not all integers of 0 or more"),
        ({"size": [30, 40], "counts": "!!"}, "no whole number of pixels"),
        ({"size": [30, 40], "counts": 7}, "neither a list nor ASCII"),
        ({"size": 30, "counts": [1200]}, r"not \[height, width\]"),
        ({"counts": [1200]}, "without `counts` and `size`"),
    ],
)
def test_bad_rle(rle, message):
    parsed, problem = parse_rle(rle, 40, 30)
    assert parsed is None
    assert re.search(message, problem), problem


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([1, 1, 5, 5], "2 points, fewer than 3"),
        ([], "0 points, fewer than 3"),
        ([1, 1, 5, 5, 9, 9, 3], r"odd count of numbers \(7\)"),
        ([1, 1, 42.5, 1, 5, 5], r"outside the image: it spans x 1..42.5, y 1..5 .* 40 x 30 px"),
        ([1, -1.5, 4, 1, 5, 5], "outside the image"),
        ([1, 1, float("nan"), 1, 5, 5], "not finite"),
        ([[1, 1], [2, 2], [3, 1]], "not a flat list of numbers"),
        ([1, "2", 3, 4, 5, 6], "not a flat list of numbers"),
        (None, "not a flat list of numbers"),
    ],
)
def test_bad_polygons(points, message):
    xy, problem = parse_polygon(points, 40, 30)
    assert xy is None
    assert re.search(message, problem), problem


def test_a_vertex_may_overshoot_by_one_pixel():
    xy, problem = parse_polygon([-1, 0, 41, 0, 20, 31], 40, 30)
    assert problem == "" and xy.shape == (3, 2)
    assert rasterise(Obj("v", [xy]), 30, 40).sum() > 500


def test_findings_list_20_and_count_the_rest():
    findings = Findings("set.json")
    findings.raise_if_any()
    for i in range(25):
        findings.add(f"bad {i}.", "good", "mend")
    with pytest.raises(DataError) as caught:
        findings.raise_if_any()
    message = str(caught.value)
    assert "25 problems in set.json" in message and "and 5 more" in message
    assert "bad 19." in message and "bad 20." not in message
    assert message.count("mend") == 1

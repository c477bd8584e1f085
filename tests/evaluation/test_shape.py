"""Centrelines, surfaces and topology against MONAI, scikit-image and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage
from skimage.measure import euler_number
from skimage.morphology import skeletonize

from projects.sa2va.evaluation.centreline import centreline_parts, pooled_centreline
from projects.sa2va.evaluation.geometry import MaskGeometry
from projects.sa2va.evaluation.surface import SurfaceDistances, pooled_assd, pooled_hd95
from projects.sa2va.evaluation.topology import topology_parts

from .masks import mask_pairs, same, vessels

CROSS = ndimage.generate_binary_structure(2, 1)
PIXELS = np.ones(2)


def scores(prediction: np.ndarray, truth: np.ndarray, tolerance: float = 2.0) -> dict[str, float]:
    shapes = MaskGeometry(prediction), MaskGeometry(truth)
    values = pooled_centreline(centreline_parts(*shapes, tolerance))
    return {name: float(value) for name, value in values.items()}


def surfaces(prediction: np.ndarray, truth: np.ndarray, spacing=PIXELS) -> SurfaceDistances:
    geometry = MaskGeometry(prediction), MaskGeometry(truth)
    return SurfaceDistances.between(*geometry, np.asarray(spacing))


# ------------------------------------------------------------------------------------ geometry


@settings(deadline=None, max_examples=150)
@given(mask_pairs())
def test_cropping_changes_nothing(pair):
    mask = pair[0]
    shape, framed = MaskGeometry(mask), np.pad(mask, 1)
    thin = skeletonize(framed)
    tube = ndimage.binary_dilation(thin, CROSS, iterations=2) & framed
    assert np.array_equal(shape.skeleton, np.argwhere(thin) - 1)
    assert np.array_equal(shape.tube, np.argwhere(tube) - 1)
    edges = framed & ~ndimage.binary_erosion(framed, CROSS)
    assert np.array_equal(shape.edges, np.argwhere(edges) - 1)
    assert bool(len(shape.skeleton)) == bool(mask.any())


def test_no_small_shape_loses_its_skeleton():
    """Thinning that deletes 2 x 2 squares would make clDice of thin vessels undefined."""
    bits = np.arange(1, 2**9)[:, None] >> np.arange(9) & 1
    for mask in bits.astype(bool).reshape(-1, 3, 3):
        assert len(MaskGeometry(mask).skeleton)


# ---------------------------------------------------------------------------------- centreline


@settings(deadline=None, max_examples=100)
@given(mask_pairs(), st.sampled_from([0.0, 1.0, 1.5, 3.0]))
def test_centrelines_equal_dense_arithmetic(pair, tolerance):
    prediction, truth = (np.pad(mask, 1) for mask in pair)
    thin_p, thin_t = skeletonize(prediction), skeletonize(truth)

    def share(part: np.ndarray, whole: np.ndarray) -> float:
        return (part & whole).sum() / whole.sum() if whole.any() else math.nan

    def near(skeleton: np.ndarray) -> np.ndarray:
        if not skeleton.any():
            return skeleton
        return ndimage.distance_transform_edt(~skeleton) <= tolerance

    a, b = share(truth, thin_p), share(prediction, thin_t)
    tube = ndimage.binary_dilation(thin_t, CROSS, iterations=2) & truth
    if math.isnan(a) and math.isnan(b):
        joint = math.nan
    else:  # Shit et al. have no rule for empty masks; ours is that of Dice: 0 unless both are
        joint = 2 * a * b / (a + b) if np.nansum([a, b]) and not math.isnan(a + b) else 0.0
    expected = {
        "cldice": joint,
        "centreline_precision": share(near(thin_t), thin_p),
        "centreline_recall": share(near(thin_p), thin_t),
        "skeleton_recall": share(prediction, tube),
    }
    found = scores(*pair, tolerance)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert same(found[name], value, 1e-12), name


def test_centrelines_of_known_shapes():
    truth = np.zeros((30, 40), bool)
    truth[10:13, 5:35] = True
    assert set(scores(truth, truth).values()) == {1.0}
    moved = np.roll(truth, 2, axis=0)  # its centreline lies beside the true mask, 2 px off
    found = scores(moved, truth)
    assert found["cldice"] == 0
    assert found["centreline_precision"] == found["centreline_recall"] == 1
    assert scores(moved, truth, 1.9)["centreline_recall"] < 0.2
    half = truth.copy()
    half[:, 20:] = False
    assert scores(half, truth)["centreline_precision"] == 1
    assert 0.4 < scores(half, truth)["skeleton_recall"] < 0.6
    # Length counts, not area: a thick second vessel does not hide that a thin one is missed.
    both = truth.copy()
    both[15:28, 5:35] = True
    assert scores(both & ~truth, both)["skeleton_recall"] < 0.75


@pytest.mark.parametrize(
    ("prediction", "truth", "undefined", "zero"),
    [
        (0, 0, {"cldice", "centreline_precision", "centreline_recall", "skeleton_recall"}, set()),
        (1, 0, {"centreline_recall", "skeleton_recall"}, {"cldice", "centreline_precision"}),
        (0, 1, {"centreline_precision"}, {"cldice", "centreline_recall", "skeleton_recall"}),
    ],
)
def test_the_written_rule_for_empty_centrelines(prediction, truth, undefined, zero):
    mask = vessels()
    found = scores(mask & bool(prediction), mask & bool(truth))
    assert {name for name, value in found.items() if math.isnan(value)} == undefined
    assert {name for name, value in found.items() if value == 0} == zero


# ------------------------------------------------------------------------------------- surface


@settings(deadline=None, max_examples=60)
@given(mask_pairs(), st.sampled_from([(1.0, 1.0), (0.3, 0.3), (0.25, 0.7)]))
def test_surfaces_equal_monai(pair, spacing):
    prediction, truth = pair
    found = surfaces(prediction, truth, spacing)
    hd95, assd = found.hd95(), float(pooled_assd(found.sums()))
    if not prediction.any() or not truth.any():
        assert math.isnan(hd95) and math.isnan(assd)
        return
    # A frame of background, because MONAI crops to the masks and then treats borders otherwise.
    both = [torch.from_numpy(np.pad(mask, 2))[None, None].float() for mask in pair]
    theirs = {"include_background": True, "spacing": list(spacing)}
    expected = compute_hausdorff_distance(*both, percentile=95, **theirs)
    assert hd95 == pytest.approx(float(expected), abs=1e-5)
    expected = compute_average_surface_distance(*both, symmetric=True, **theirs)
    assert assd == pytest.approx(float(expected), abs=1e-5)
    assert same(hd95, surfaces(truth, prediction, spacing).hd95(), 1e-12)


def test_surfaces_of_known_shapes_and_units():
    truth = np.zeros((40, 40), bool)
    truth[10:30, 20] = True
    moved = np.roll(truth, 3, axis=1)
    found = surfaces(moved, truth)
    assert found.hd95() == 3 and pooled_assd(found.sums()) == 3
    assert found.scaled(0.5).hd95() == 1.5
    assert surfaces(moved, truth, (9.0, 0.5)).hd95() == 1.5  # columns count, rows do not
    assert surfaces(truth, truth).hd95() == 0


def test_pooled_hd95_is_that_of_all_distances():
    rng = np.random.default_rng(0)
    sides = [[rng.integers(0, 30, rng.integers(1, 50)) for _ in range(2)] for _ in range(7)]
    rows = [SurfaceDistances(*side) for side in sides]
    there, back = (np.concatenate(side) for side in zip(*sides, strict=True))
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert pooled_hd95(rows) == pytest.approx(expected, abs=1e-12)
    nothing = SurfaceDistances(np.empty(0), np.empty(0))
    assert pooled_hd95([*rows, nothing]) == pooled_hd95(rows)
    assert math.isnan(pooled_hd95([nothing])) and math.isnan(pooled_hd95([]))


# ------------------------------------------------------------------------------------ topology


@settings(deadline=None, max_examples=150)
@given(mask_pairs())
def test_betti_numbers_equal_eulers_and_labels(pair):
    for mask in pair:
        pieces, holes = MaskGeometry(mask).betti
        framed = np.pad(mask, 1)
        assert pieces - holes == euler_number(framed, connectivity=2)
        assert pieces == ndimage.label(framed, np.ones((3, 3)))[1]
        assert holes == ndimage.label(~framed, CROSS)[1] - 1
    errors = topology_parts(*map(MaskGeometry, pair))
    assert np.array_equal(errors, topology_parts(*map(MaskGeometry, pair[::-1])))


def test_betti_numbers_of_known_shapes():
    ring = np.zeros((9, 9), bool)
    ring[2:7, 2:7], ring[3:6, 3:6] = True, False
    diagonal = np.eye(9, dtype=bool)
    assert MaskGeometry(ring).betti == (1, 1)
    assert MaskGeometry(diagonal).betti == (1, 0)  # eight-connected: one piece
    assert MaskGeometry(ring & False).betti == (0, 0)
    assert MaskGeometry(ring | True).betti == (1, 0)
    open_ring = ring[:, 4:]  # what the image's border closes is no hole
    assert MaskGeometry(open_ring).betti == (1, 0)
    assert topology_parts(MaskGeometry(diagonal), MaskGeometry(ring)).tolist() == [0, 1, 1]
    assert topology_parts(MaskGeometry(ring & False), MaskGeometry(ring)).tolist() == [1, 1, 1]

"""Synthetic angiograms: physics, anatomy, determinism, parameters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.datasets.synthetic import AngiogramParams, render, render_layers
from projects.sa2va.datasets.synthetic.anatomy import view_rotation
from projects.sa2va.datasets.synthetic.projection import path_length, tube_balls
from projects.sa2va.errors import ConfigError

SIZE = 96
# Nothing between the X-ray source and the picture but contrast: the physics shows as it is.
BARE = AngiogramParams(
    difficulty=0,
    background=(0, 0),
    collimator=(0, 0),
    vignetting=(0, 0),
    distractors=(0, 0),
    scatter=(0, 0),
    motion_blur_mm=(0, 0),
    detector_blur_mm=0,
    quantum_noise=False,
    catheter=False,
)


def with_(params: AngiogramParams, **changes: object) -> AngiogramParams:
    return AngiogramParams.from_dict({**params.to_dict(), **changes})


# --- path lengths ---------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    radius=st.floats(0.5, 4.0),
    tilt=st.floats(-1.0, 1.0),
    turn=st.floats(0.0, 6.28),
)
def test_tube_path_is_the_chord_of_the_tilted_cylinder(radius, tilt, turn):
    axis = np.array([np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)])
    points = np.linspace(-40, 40, 50)[:, None] * axis
    size, pixel = 61, 0.2
    found = path_length(*tube_balls(points, np.full(50, radius), 0.01), size, pixel, rays=1)
    at = (np.arange(size) + 0.5) * pixel - size * pixel / 2
    x, y = np.meshgrid(at, at)
    distance = np.abs(-np.sin(turn) * x + np.cos(turn) * y)
    # Balls r / 4 apart lie inside the tube and fill one whose radius is smaller by r / 128.
    longest, shortest = (
        2 * np.sqrt(np.maximum(r**2 - distance**2, 0)) / np.cos(tilt)
        for r in (radius, radius * np.sqrt(1 - (0.25 / 2) ** 2))
    )
    assert longest.max() > radius
    assert (found <= longest + 1e-6).all()
    assert (found >= shortest - 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(
    radius=st.floats(0.8, 3.0),
    x=st.floats(-2.0, 2.0),
    y=st.floats(-2.0, 2.0),
    z=st.floats(-50.0, 50.0),
    rays=st.sampled_from([1, 2, 3]),
)
def test_path_times_area_is_the_volume_of_a_ball(radius, x, y, z, rays):
    path = path_length(np.array([[x, y, z]]), np.array([radius]), 80, 0.15, rays)
    assert path.sum() * 0.15**2 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)
    row, column = np.unravel_index(path.argmax(), path.shape)
    assert abs((column + 0.5) * 0.15 - 6 - x) < 0.25
    assert abs((row + 0.5) * 0.15 - 6 - y) < 0.25


def test_overlap_in_depth_counts_once_and_crossing_adds():
    """A junction's lumen is one lumen; arteries that cross at different depths are two."""
    ball = np.array([[0.0, 0.0, 0.0]])
    one = path_length(ball, np.array([2.0]), 41, 0.2, 1)
    same = path_length(np.repeat(ball, 3, axis=0), np.full(3, 2.0), 41, 0.2, 1)
    shifted = path_length(np.array([[0, 0, 0.0], [0, 0, 1.0]]), np.full(2, 2.0), 41, 0.2, 1)
    apart = path_length(np.array([[0, 0, 0.0], [0, 0, 30.0]]), np.full(2, 2.0), 41, 0.2, 1)
    np.testing.assert_allclose(same, one, atol=1e-9)
    np.testing.assert_allclose(apart, 2 * one, atol=1e-9)
    assert one[20, 20] == pytest.approx(4.0)
    assert shifted[20, 20] == pytest.approx(5.0)


def test_balls_outside_the_picture_leave_it_empty():
    path = path_length(np.array([[100.0, 0.0, 0.0]]), np.array([3.0]), 32, 1.0)
    assert path.shape == (32, 32) and not path.any()


# --- the rendered frame ---------------------------------------------------------------------------


def test_beer_lambert_log_attenuation_is_proportional_to_path_length():
    params = with_(BARE, mu_per_mm=(0.1, 0.1), grey=(140, 140), twigs=(4, 4))
    for patient in range(3):
        layers = render_layers(3, 128, params, patient=patient)
        clear = np.median(layers.image[layers.vessel_mm == 0])
        assert clear == pytest.approx(140, abs=1)
        path = layers.vessel_mm
        thick = (path > 1.5) & (layers.image > 20)
        assert thick.sum() > 100
        attenuation = -np.log(layers.image[thick] / clear)
        slope = (attenuation * path[thick]).sum() / (path[thick] ** 2).sum()
        assert slope == pytest.approx(layers.mu_per_mm, rel=0.02)
        # One grey level of rounding is all that may separate a pixel from the line.
        expected = clear * np.exp(-layers.mu_per_mm * path)
        assert np.abs(layers.image - expected).max() <= 1.0


def test_every_layer_obeys_the_same_law():
    """Also with tissue, catheter, collimator and wires in the beam."""
    params = with_(
        BARE, background=(1, 1), collimator=(1, 1), distractors=(4, 4), catheter=True,
        vignetting=(0.3, 0.3),
    )  # fmt: skip
    layers = render_layers(5, SIZE, params)
    ideal = np.exp(-layers.mu_per_mm * layers.vessel_mm - layers.shade) * layers.light
    expected = np.clip(layers.gain * ideal, 0, 255)
    assert np.abs(layers.image - expected).max() <= 0.5 + 1e-6


def test_same_seed_same_bytes_and_other_seeds_differ():
    first = render(11, SIZE, patient=2, frame=1)
    np.random.seed(0)  # the global state must not matter
    again = render(11, SIZE, patient=2, frame=1)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    assert first[2] == again[2]
    for change in ({"seed": 12}, {"patient": 3}, {"frame": 2}):
        other = render(**{"seed": 11, "size": SIZE, "patient": 2, "frame": 1, **change})
        assert (other[0] != first[0]).mean() > 0.5
        assert (other[1] != first[1]).any()


@pytest.mark.parametrize("difficulty", [0.0, 0.3, 1.0])
def test_types_and_vessel_fraction(difficulty):
    params = AngiogramParams(difficulty=difficulty)
    for patient in range(12):
        image, mask, meta = render(1, SIZE, params, patient=patient)
        assert image.shape == mask.shape == (SIZE, SIZE)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        assert 0.015 < mask.mean() < 0.1
        assert meta["vessel_fraction"] == pytest.approx(mask.mean(), abs=1e-6)
        json.dumps(meta)


def test_mask_is_where_the_labelled_path_exceeds_the_stated_minimum():
    for minimum in (0.3, 1.0):
        layers = render_layers(4, SIZE, with_(BARE, min_path_mm=minimum))
        np.testing.assert_array_equal(layers.mask, layers.labelled_mm > minimum)
    closed = render_layers(4, SIZE, with_(BARE, collimator=(1, 1), field_of_view_mm=(70, 70)))
    assert (closed.labelled_mm[closed.mask == 1] > 0.3).all()
    assert (closed.light[closed.mask == 1] > 0.5).all()


def test_vessels_are_darker_than_their_surroundings():
    for patient in range(4):
        layers = render_layers(9, 128, AngiogramParams(difficulty=0.3), patient=patient)
        ring = np.zeros_like(layers.mask, bool)
        for dy, dx in ((4, 0), (-4, 0), (0, 4), (0, -4)):
            ring |= np.roll(layers.mask, (dy, dx), (0, 1)).astype(bool)
        ring &= (layers.vessel_mm == 0) & (layers.light > 0.5)
        assert layers.image[layers.mask == 1].mean() < 0.9 * layers.image[ring].mean()


def test_catheter_is_drawn_and_not_labelled():
    for patient in range(4):
        bare = render_layers(2, SIZE, BARE, patient=patient)
        drawn = render_layers(2, SIZE, with_(BARE, catheter=True), patient=patient)
        np.testing.assert_array_equal(drawn.mask, bare.mask)
        alone = (drawn.catheter_mm > 1.0) & (drawn.vessel_mm == 0)
        assert alone.sum() > 15
        assert not drawn.mask[alone].any()
        clear = (drawn.catheter_mm == 0) & (drawn.vessel_mm == 0)
        assert drawn.image[alone].mean() < 0.9 * drawn.image[clear].mean()
        # It comes from a border and ends at the ostium.
        edge = np.concatenate(
            [drawn.catheter_mm[[0, -1]].ravel(), drawn.catheter_mm[:, [0, -1]].ravel()]
        )
        assert edge.max() > 0.5
        assert ((drawn.catheter_mm > 0) & (drawn.labelled_mm > 0)).any()


def test_twigs_and_thin_ends_are_drawn_and_not_labelled():
    few = render_layers(6, 128, with_(BARE, twigs=(0, 0)))
    many = render_layers(6, 128, with_(BARE, twigs=(8, 8)))
    np.testing.assert_array_equal(few.mask, many.mask)
    extra = (many.vessel_mm > 0) & (few.vessel_mm == 0)
    assert extra.sum() > 30 and not many.mask[extra].any()
    thick = render_layers(6, 128, with_(BARE, min_label_mm=2.5))
    assert 0 < thick.mask.sum() < 0.8 * few.mask.sum()
    assert not (thick.mask & ~few.mask.astype(bool)).any()


def test_the_same_scene_at_every_size():
    small = render_layers(8, 96, BARE)
    large = render_layers(8, 192, BARE)
    shrunk = large.vessel_mm.reshape(96, 2, 96, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(small.vessel_mm.sum(), shrunk.sum(), rtol=0.02)
    assert np.corrcoef(small.vessel_mm.ravel(), shrunk.ravel())[0, 1] > 0.99


def test_difficulty_adds_noise_and_takes_contrast():
    noise, contrast = [], []
    for difficulty in (0.0, 0.5, 1.0):
        noisy = AngiogramParams(difficulty=difficulty)
        clean = with_(noisy, quantum_noise=False)
        layers = render_layers(10, 128, noisy)
        noise.append((layers.image.astype(float) - render(10, 128, clean)[0]).std() / layers.gain)
        contrast.append(layers.mu_per_mm)
    assert noise[0] < noise[1] < noise[2]
    assert contrast[0] > contrast[1] > contrast[2]


def test_noise_has_the_variance_of_counted_quanta():
    """Variance of Poisson counts = mean, so in grey levels: gain^2 * signal / quanta per pixel."""
    params = with_(
        BARE, quantum_noise=True, photons_per_mm2=(5000, 5000), grey=(120, 120),
        field_of_view_mm=(128, 128),
    )  # fmt: skip
    layers = render_layers(1, 256, params)
    flat = layers.image[layers.vessel_mm == 0].astype(float)
    quanta = 5000 * 0.5**2
    assert flat.mean() == pytest.approx(120, abs=0.5)
    assert flat.std() == pytest.approx(np.hypot(120 / np.sqrt(quanta), np.sqrt(1 / 12)), rel=0.03)


# --- anatomy --------------------------------------------------------------------------------------


def test_trees_obey_murray_and_hang_together():
    sides = set()
    for patient in range(12):
        tree = render_layers(20, 32, BARE, patient=patient).tree
        sides.add(tree.side)
        assert tree.junctions
        for mother, first, second in tree.junctions:
            assert first**3 + second**3 == pytest.approx(mother**3)
        daughters = [second for _, _, second in tree.junctions]
        for branch in tree.branches:
            if "." in branch.name and not branch.twig:
                assert np.abs(np.subtract(daughters, branch.radius[0])).min() < 1e-9
        starts = {branch.name: branch.points[0] for branch in tree.branches}
        everything = {branch.name: branch.points for branch in tree.branches}
        for name, start in starts.items():
            if "." in name:
                parent = everything[name.rpartition(".")[0]]
                assert np.linalg.norm(parent - start, axis=1).min() < 1e-6
        mother, daughters = (
            ("LM", ("LAD", "LCx")) if tree.side == "left" else ("RCA", ("PDA", "PLV"))
        )
        for daughter in daughters:
            np.testing.assert_allclose(everything[mother][-1], starts[daughter], atol=1e-6)
        for branch in tree.branches:
            # Tapering, apart from a narrowing here and there.
            assert branch.radius[-1] <= branch.radius[0] + 1e-9
            assert (branch.radius > 0).all()
    assert sides == {"left", "right"}


def test_frames_of_a_patient_share_the_tree_and_not_the_view():
    first, second = (render_layers(30, SIZE, patient=4, frame=frame) for frame in (0, 1))
    other = render_layers(30, SIZE, patient=5, frame=0)
    assert len(first.tree.branches) == len(second.tree.branches)
    for one, two in zip(first.tree.branches, second.tree.branches, strict=True):
        np.testing.assert_array_equal(one.points, two.points)
        np.testing.assert_array_equal(one.radius, two.radius)
    assert first.meta["primary_angle_deg"] != second.meta["primary_angle_deg"]
    assert not np.array_equal(first.tree.branches[0].radius, other.tree.branches[0].radius)


@given(primary=st.floats(-90, 90), secondary=st.floats(-60, 60))
def test_view_is_a_rotation(primary, secondary):
    rotation = view_rotation(primary, secondary)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_lao_and_cranial_turn_the_detector_to_the_patients_left_and_head():
    """The patient axis that points at the detector is the third row."""
    assert view_rotation(90, 0)[2] == pytest.approx([1, 0, 0], abs=1e-12)
    assert view_rotation(0, 90)[2] == pytest.approx([0, -1, 0], abs=1e-12)


# --- parameters -----------------------------------------------------------------------------------


def test_parameters_survive_json():
    params = AngiogramParams(difficulty=0.7, mu_per_mm=(0.2, 0.1))
    assert AngiogramParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params


@pytest.mark.parametrize(
    "bad",
    [
        {"difficulty": 1.5},
        {"difficulty": float("nan")},
        {"mu_per_mm": (0.0, 0.1)},
        {"grey": (200, 100)},
        {"grey": (10, 20, 30)},
        {"scatter": (0, 1)},
        {"supersample": 0},
        {"supersample": 1.5},
        {"min_path_mm": -1},
    ],
)
def test_values_out_of_range_name_the_parameter(bad):
    with pytest.raises(ConfigError) as caught:
        AngiogramParams(**bad)
    assert next(iter(bad)) in caught.value.found and caught.value.expected and caught.value.fix


def test_unknown_parameter_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'difficulty'"):
        AngiogramParams.from_dict({"dificulty": 0.2})


@pytest.mark.parametrize("bad", [{"size": 16}, {"seed": -1}, {"patient": -1}, {"frame": 0.5}])
def test_render_refuses_bad_numbers(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        render(**{"seed": 0, "size": 64, **bad})

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.datasets.augment import (
    Augment,
    add_noise,
    build_augment,
    degrade,
    flip,
    grey_values,
    warp,
)
from projects.sa2va.errors import ConfigError

FULL = {
    "hflip": 0.5,
    "vflip": 0.5,
    "rotate": (-15, 15),
    "scale": (0.8, 1.25),
    "gamma": (0.8, 1.25),
    "contrast": (0.8, 1.2),
}


def scene(seed, height=48, width=64, count=2):
    """An image that shows its masks: the first mask is bright, on noise that is dark."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), np.uint8)
    for mask in masks:
        x, y = rng.integers(8, width - 24), rng.integers(8, height - 24)
        mask[y : y + rng.integers(6, 16), x : x + rng.integers(6, 16)] = 1
    image = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
    image[masks[0] == 1] = 220
    return image, masks


@given(seed=st.integers(0, 50), horizontal=st.booleans(), vertical=st.booleans())
def test_flips_are_involutions(seed, horizontal, vertical):
    image, masks = scene(seed)
    flags = {"horizontal": horizontal, "vertical": vertical}
    once = flip(image, masks, **flags)
    twice = flip(*once, **flags)
    assert (twice[0] == image).all() and (twice[1] == masks).all()
    assert once[1].sum() == masks.sum()
    if horizontal != vertical:
        assert (once[0] != image).any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 3))
def test_image_and_masks_stay_aligned(seed, count):
    image, masks = scene(seed, count=count)
    out, moved = Augment(**FULL)(image, masks, np.random.default_rng(seed))
    assert out.shape == image.shape and out.dtype == np.uint8
    assert moved.shape == masks.shape and moved.dtype == np.uint8 and moved.max() <= 1
    # The bright square and its mask must be at the same place but for their rim, also where
    # mirroring at the border shows them a second time.
    bright = out[..., 0] > (int(out[..., 0].max()) + 40) // 2
    rim = 4 * np.sqrt(moved[0].sum()) + 8
    assert np.logical_xor(bright, moved[0]).sum() <= rim
    assert moved[0].any()


@settings(max_examples=40, deadline=None)
@given(angle=st.floats(-180, 180), factor=st.floats(0.8, 1.25), seed=st.integers(0, 100))
def test_warp_scales_the_area_by_the_square_of_the_factor(angle, factor, seed):
    # A canvas so large that no mirrored copy of the square comes into sight.
    mask = np.zeros((1, 160, 160), np.uint8)
    x, y = np.random.default_rng(seed).integers(62, 66, 2)
    mask[0, y : y + 30, x : x + 30] = 1
    _, moved = warp(np.zeros((160, 160, 3), np.uint8), mask, angle, factor)
    # Cutting at one half moves every edge by half a pixel at most.
    assert abs(int(moved.sum()) - 900 * factor**2) <= 0.5 * 120 * factor + 2


def test_rotation_by_a_quarter_is_exact_and_counter_clockwise():
    image, masks = scene(3, 50, 50)
    out, moved = warp(image, masks, 90.0)
    assert (out == np.rot90(image)).all() and (moved == np.rot90(masks, axes=(1, 2))).all()


def test_thin_vessels_survive_a_rotation():
    mask = np.zeros((1, 128, 128), np.uint8)
    mask[0, 64, 20:108] = 1
    for angle in (7.0, 23.0, 45.0):
        _, moved = warp(np.zeros((128, 128, 3), np.uint8), mask, angle)
        assert moved.sum() > 0.6 * mask.sum()


def test_borders_are_mirrored_in_image_and_mask():
    image = np.full((40, 40, 3), 200, np.uint8)
    masks = np.ones((1, 40, 40), np.uint8)
    out, moved = warp(image, masks, 30.0, 0.8)
    assert (out == 200).all() and moved.all()


@given(gamma=st.floats(0.5, 2), contrast=st.floats(0.5, 2))
def test_grey_values_keep_the_order(gamma, contrast):
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    out = grey_values(ramp, gamma, contrast)
    assert out.dtype == np.uint8 and (np.diff(out[..., 0].ravel().astype(int)) >= 0).all()


def test_grey_values_follow_their_formula():
    image = np.array([[[0] * 3, [64] * 3, [255] * 3]], np.uint8)
    assert grey_values(image, 2.0)[0, 1, 0] == round(255 * (64 / 255) ** 2)
    mean = (0 + 64 + 255) / 3
    assert grey_values(image, 1.0, 0.5)[0, 1, 0] == round(mean + 0.5 * (64 - mean))
    assert grey_values(image) is image


def test_drawing_is_a_function_of_the_generator_alone():
    image, masks = scene(0)
    one = Augment(**FULL)(image, masks, np.random.default_rng(5))
    two = Augment(**FULL)(image, masks, np.random.default_rng(5))
    other = Augment(**FULL)(image, masks, np.random.default_rng(6))
    assert (one[0] == two[0]).all() and (one[0] != other[0]).any()


def test_switching_one_option_on_leaves_the_others():
    image, masks = scene(0)
    for seed in range(5):
        plain = Augment(rotate=(-15, 15))(image, masks, np.random.default_rng(seed))
        more = Augment(rotate=(-15, 15), gamma=(0.5, 2))(image, masks, np.random.default_rng(seed))
        assert (plain[1] == more[1]).all() and (plain[0] != more[0]).any()


def test_chances():
    image, masks = scene(0)
    never = Augment(**(FULL | {"hflip": 0, "vflip": 0, "p": 0}))
    always = Augment(hflip=1.0)
    flips = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        assert (never(image, masks, rng)[0] == image).all()
        assert (always(image, masks, rng)[0] == image[:, ::-1]).all()
        flips += (Augment(hflip=0.3)(image, masks, rng)[0] != image).any()
    assert 35 <= flips <= 90


def test_no_masks_and_a_list_of_steps():
    image, _ = scene(0)
    nothing = np.zeros((0, 48, 64), np.uint8)
    steps = build_augment([{"hflip": 1.0}, {"hflip": 1.0}, {"rotate": (10, 10)}])
    out, masks = steps(image, nothing, np.random.default_rng(0))
    assert masks.shape == (0, 48, 64) and (out == warp(image, nothing, 10.0)[0]).all()
    assert build_augment(None) is None and build_augment({}) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rotat": (1, 2)}, "unknown key 'rotat' in augment.*did you mean 'rotate'"),
        ({"hflip": 1.5}, "augment.hflip=1.5"),
        ({"p": "often"}, "augment.p='often'"),
        ({"scale": (0, 1)}, "augment.scale=.*(?s:.*)positive"),
        ({"gamma": 1.2}, "augment.gamma=1.2"),
        ({"rotate": (15, -15)}, "augment.rotate=.*(?s:.*)ascending"),
        ({"rotate": (-15, float("inf"))}, "augment.rotate=.*(?s:.*)finite"),
        ({"rotate": (float("-inf"), 15)}, "augment.rotate=.*(?s:.*)finite"),
        ({"contrast": (float("nan"), float("nan"))}, "augment.contrast=.*(?s:.*)finite"),
        ({"scale": (True, 2)}, "augment.scale=.*(?s:.*)numbers"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ConfigError, match=message):
        build_augment(config)


STRONG = [
    {
        "hflip": 0.5,
        "rotate": (-30, 30),
        "scale": (0.75, 1.35),
        "shear": (-8, 8),
        "shift": (-0.1, 0.1),
        "elastic": (1, 4),
    },
    {"gamma": (0.6, 1.6), "contrast": (0.65, 1.5), "brightness": (0.75, 1.3)},
    {"low_resolution": (0.5, 1.0), "blur": (0.3, 1.5), "noise": (1, 10)},
]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_bent_images_and_masks_stay_aligned(seed):
    image, masks = scene(seed, 96, 96)
    out, moved = build_augment(STRONG[0])(image, masks, np.random.default_rng(seed))
    assert out.shape == image.shape and moved.dtype == np.uint8 and moved.max() <= 1
    bright = out[..., 0] > (int(out[..., 0].max()) + 40) // 2
    assert np.logical_xor(bright, moved[0]).sum() <= 6 * np.sqrt(moved[0].sum()) + 16


def test_a_grey_image_is_worked_on_as_one_channel_with_the_same_result():
    image, masks = scene(1, 96, 96)
    image = np.repeat(image[..., :1], 3, axis=2)
    chain = build_augment(STRONG)
    for seed in range(5):
        out, moved = chain(image, masks, np.random.default_rng(seed))
        rng, three, expected = np.random.default_rng(seed), image, masks
        for step in chain.steps:
            three, expected = step(three, expected, rng)
        assert (moved == expected).all() and out.shape == image.shape
        assert np.abs(out.astype(int) - three).max() <= 1
        assert (out != three).mean() < 1e-3
        assert (out[..., 0] == out[..., 1]).all() and (out[..., 0] == out[..., 2]).all()


def test_a_shift_is_exact_and_so_is_a_shear_along_its_axis():
    mask = np.zeros((1, 60, 60), np.uint8)
    mask[0, 20:30, 20:30] = 1
    _, moved = warp(np.zeros((60, 60, 3), np.uint8), mask, shift=(0.1, -0.05))
    assert (moved == np.roll(mask, (-3, 6), axis=(1, 2))).all()
    _, sheared = warp(np.zeros((60, 60, 3), np.uint8), mask, shear=20.0)
    assert (sheared.sum(axis=2) == mask.sum(axis=2)).all()  # rows slide, and keep their length
    assert (sheared != mask).any()


def test_noise_has_its_deviation_and_blur_takes_it_away():
    flat = np.full((200, 200, 3), 128, np.uint8)
    noisy = add_noise(flat, 10.0, np.random.default_rng(0))
    assert 9.7 < noisy[..., 0].std() < 10.3 and (noisy[..., 0] == noisy[..., 2]).all()
    assert degrade(noisy, blur=2.0).std() < 2
    assert degrade(noisy, resolution=0.5).std() < 7
    assert degrade(flat, 0.5, 2.0).std() == 0 and add_noise(flat, 0.0, None) is flat


def test_new_options_leave_the_draws_of_the_others():
    image, masks = scene(0)
    for seed in range(5):
        plain = Augment(**FULL)(image, masks, np.random.default_rng(seed))
        more = Augment(**FULL, noise=(5, 5))(image, masks, np.random.default_rng(seed))
        assert (plain[1] == more[1]).all() and (plain[0] != more[0]).any()


@pytest.mark.parametrize(
    "wrong", [{"low_resolution": (0.5, 2)}, {"blur": (-1, 2)}, {"noise": 3}, {"brightness": (0, 1)}]
)
def test_bad_ranges_of_new_options(wrong):
    with pytest.raises(ConfigError, match=rf"augment\.{next(iter(wrong))}="):
        build_augment(wrong)

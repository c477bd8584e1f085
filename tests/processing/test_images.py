"""Tiles and SAM2 input equal those of the reference bit for bit (F2_preprocess)."""

from __future__ import annotations

import functools
import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.processing import Sa2VAProcessor, images

NAMES = ["img_a", "img_b", "img_c"]


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(params=NAMES)
def golden(request, shared_dir):
    folder = shared_dir / "reference" / "F2_preprocess"
    with Image.open(folder / f"{request.param}.png") as picture:
        image = np.array(picture.convert("RGB"))
    meta = json.loads((folder / f"{request.param}.json").read_text())
    assert sha256(image) == meta["image_rgb_sha256"]
    tiles = np.load(folder / f"{request.param}_tiles_uint8.npz")["tiles"]
    return image, meta, tiles, load_file(folder / f"{request.param}.safetensors")


def test_grid_equals_the_reference_table(shared_dir):
    table = json.loads((shared_dir / "reference/F2_preprocess/grid_table.json").read_text())
    assert len(table) == 159
    for row in table:
        limits = (row["image_size"], row["min_num"], row["max_num"])
        assert list(images.tile_grid(row["height"], row["width"], *limits)) == row["grid"], row


def test_tiles_equal_the_reference(golden):
    image, meta, expected, tensors = golden
    tiles = images.split_tiles(image, 448, 1, 12)
    assert np.array_equal(tiles.transpose(0, 2, 3, 1), expected)
    pixels = images.normalise_tiles(tiles)
    assert sha256(tiles.transpose(0, 2, 3, 1)) == meta["tiles_uint8_sha256"]
    assert len(tiles) == meta["num_tiles"]
    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    close(pixels[:, :, 100:108, 200:208], tensors["pixel_values_slice"])
    rows, columns = [0, 0, 447, 447], [0, 447, 0, 447]
    close(pixels[:, :, rows, columns], tensors["pixel_values_corners"])
    close(pixels.double().mean((2, 3)).float(), tensors["pixel_values_tile_mean"])
    close(pixels.double().std((2, 3)).float(), tensors["pixel_values_tile_std"])
    # Every value: where this alone fails, another PyTorch divides otherwise in the last bit.
    assert sha256(pixels.numpy()) == meta["pixel_values_f32_sha256"]


def test_sam2_square_equals_the_reference(golden):
    image, meta, _, tensors = golden
    square = images.grounding_square(image, 1024)
    window = torch.from_numpy(square[500:516, 300:316])
    assert torch.equal(window, tensors["g_uint8_slice"])
    blocks = square.reshape(64, 16, 64, 16, 3).astype(np.float64).mean((1, 3))
    assert np.array_equal(blocks.astype(np.float32), tensors["g_uint8_block16_mean"].numpy())
    assert sha256(square) == meta["g_uint8_sha256"]


@pytest.mark.parametrize("reference_numerics", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_sam2_input_equals_the_reference(golden, reference_numerics, training):
    """Exact mean and deviation as in the reference's training, or rounded as at its inference."""
    image, meta, _, tensors = golden
    processor = Sa2VAProcessor({"type": "byte_level"}, reference_numerics=reference_numerics)
    pixels = processor.grounding_pixels(image, training=training)
    rounded = reference_numerics and not training
    part, digest = (
        ("g_pixel_values_slice", "g_pixel_values_f32_sha256")
        if rounded
        else ("g_pixel_values_train_slice", "g_pixel_values_train_f32_sha256")
    )
    assert torch.equal(pixels[:, 500:516, 300:316], tensors[part])
    assert sha256(pixels.numpy()) == meta[digest]
    if rounded:
        double = pixels.double().flatten(1)
        assert double.mean(1).tolist() == pytest.approx(meta["g_pixel_values_channel_mean"])
        assert double.std(1).tolist() == pytest.approx(meta["g_pixel_values_channel_std"])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 14), st.integers(0, 14))
@example(1, 5000, 7, 0)
def test_grid_stays_within_any_limits(height, width, smallest, more):
    columns, rows = images.tile_grid(height, width, 448, smallest, smallest + more)
    assert smallest <= columns * rows <= smallest + more


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 6),
    st.integers(0, 6),
    st.booleans(),
)
@example(1, 1, 2, 0, True)
@example(40, 3, 1, 6, True)  # a width of 3 looks like a channel axis
@example(3, 3, 1, 6, False)
def test_tiles_put_together_are_the_resized_image(height, width, smallest, more, thumbnail):
    image = frame(height, width)
    columns, rows = images.tile_grid(height, width, 16, smallest, smallest + more)
    tiles = images.split_tiles(image, 16, smallest, smallest + more, thumbnail)
    extra = int(thumbnail and columns * rows > 1)
    assert tiles.shape == (columns * rows + extra, 3, 16, 16)
    resized = Image.fromarray(image).resize((16 * columns, 16 * rows), Image.Resampling.BICUBIC)
    grid = tiles[: columns * rows].reshape(rows, columns, 3, 16, 16).transpose(0, 3, 1, 4, 2)
    assert np.array_equal(grid.reshape(16 * rows, 16 * columns, 3), np.array(resized))
    if extra:
        whole = Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)
        assert np.array_equal(tiles[-1].transpose(1, 2, 0), np.array(whole))


@pytest.mark.parametrize("size", [32, 128, 256, 512, 1024])
def test_sam2_input_of_any_size_undoes_to_the_square(size):
    square = images.grounding_square(frame(37, 53), size)
    pixels = images.normalise_grounding(square)
    assert pixels.shape == (3, size, size) and pixels.dtype == torch.float32
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    back = ((pixels * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0)
    assert np.array_equal(back.numpy(), square)


def test_input_image_is_left_alone_and_views_are_read_right():
    image = frame(30, 40)
    kept, flipped = image.copy(), image[:, ::-1]
    assert np.array_equal(
        images.split_tiles(flipped, 16, 1, 4), images.split_tiles(flipped.copy(), 16, 1, 4)
    )
    assert np.array_equal(
        images.grounding_square(flipped, 64), images.grounding_square(flipped.copy(), 64)
    )
    assert np.array_equal(image, kept)


@pytest.mark.parametrize(
    "image",
    [
        None,
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_8_bit_rgb_image_is_refused(image):
    for call in (
        lambda: images.split_tiles(image, 16, 1, 4),
        lambda: images.grounding_square(image, 64),
    ):
        with pytest.raises(DataError, match="uint8 RGB"):
            call()


@pytest.mark.parametrize("limits", [(0, 4), (5, 4), (1, 0), (1.0, 4), (True, 4), (-1, -1)])
def test_wrong_tile_limits_are_refused(limits):
    with pytest.raises(ConfigError, match="tiles"):
        images.check_tile_limits(*limits)

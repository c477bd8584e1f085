"""Frames of every kind are read as elsewhere, and bad files are refused without their names."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from projects.sa2va.datasets.image_io import read_image
from projects.sa2va.errors import DataError
from projects.sa2va.inference.page.uploads import Limits, read_upload

from .conftest import LIMITS, frame, png

RNG = np.random.default_rng(1)
GOOD = {
    "grey.png": lambda path: Image.fromarray(frame()[..., 0]).save(path),
    "deep.png": lambda path: Image.fromarray(RNG.integers(0, 4000, (9, 7), np.uint16)).save(path),
    "float.tif": lambda path: Image.fromarray(RNG.random((9, 7), np.float32)).save(path),
    "rgba.png": lambda path: Image.fromarray(RNG.integers(0, 256, (9, 7, 4), np.uint8)).save(path),
    "photo.jpg": lambda path: Image.fromarray(frame()).save(path),
}


@pytest.mark.parametrize("name", GOOD)
def test_frames_are_read_as_in_training(name, tmp_path):
    GOOD[name](tmp_path / name)
    found = read_upload(tmp_path / name, LIMITS)
    np.testing.assert_array_equal(found, read_image(tmp_path / name))
    assert found.dtype == np.uint8 and found.shape[2] == 3


def test_intensity_is_handed_on(tmp_path):
    GOOD["deep.png"](tmp_path / "x.png")
    assert read_upload(tmp_path / "x.png", LIMITS, "own_range").max() == 255
    assert read_upload(tmp_path / "x.png", LIMITS, "full_range").max() < 20


def _stack(path):
    frames = [Image.fromarray(frame(seed=seed)) for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _bomb(path):
    """A PNG whose header says 20000 x 20000; that is all that may be read of it."""
    content = bytearray(png(frame()))
    content[16:24] = struct.pack(">2I", 20000, 20000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


BAD = {
    "truncated.png": (lambda path: path.write_bytes(png(frame())[:900]), "cannot be read"),
    "text.png": (lambda path: path.write_text("a letter"), "is not an image"),
    "empty.png": (lambda path: path.write_bytes(b""), "is not an image"),
    "stack.tif": (_stack, "holds 3 frames"),
    "wide.png": (
        lambda path: Image.new("L", (20000, 5)).save(path),
        "20000 x 5 pixels\n  expected: at most 200 pixels a side",
    ),
    "bomb.png": (_bomb, "more than 178 million pixels\n  expected: at most 200 pixels a side"),
    "heavy.png": (
        lambda path: path.write_bytes(png(frame()) + bytes(2**20)),
        "1.0 MiB\n  expected: at most 0.5 MiB\n  what to do: .*--max-mib",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_by_what_is_wrong(name, tmp_path):
    path = tmp_path / f"Smith {name}"
    write, message = BAD[name]
    write(path)
    with pytest.raises(DataError, match=f"found: the uploaded file.*{message}") as caught:
        read_upload(path, LIMITS)
    error = caught.value
    assert error.found and error.expected and error.fix
    assert "Smith" not in str(error) and str(tmp_path) not in str(error)
    # A logged traceback shows causes, whose messages hold the path.
    assert error.__cause__ is None and error.__suppress_context__


def test_limits_are_inclusive(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png(frame(200, 3)))
    assert read_upload(path, Limits(200, path.stat().st_size / 2**20)).shape == (200, 3, 3)
    with pytest.raises(DataError, match="199"):
        read_upload(path, Limits(199, 1))

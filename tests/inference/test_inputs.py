"""Images in every form become the same pixels, in order, or an error that says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from projects.sa2va.datasets.image_io import read_image, to_rgb
from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.inference.inputs import find_images, is_single, list_files

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def names(images) -> list[str]:
    return [source.name for source in find_images(images)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.png, b/c.JPG, b/d.tif, a text and a hidden image."""
    (tmp_path / "b").mkdir()
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(GREY).save(tmp_path / "b" / "c.JPG")
    Image.fromarray(GREY.astype(np.uint16) * 256).save(tmp_path / "b" / "d.tif")
    Image.fromarray(GREY).save(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folder_is_its_images_by_name_and_below(folder):
    assert names(folder) == names(str(folder)) == ["a.png", "b/c.JPG", "b/d.tif"]


def test_glob(folder):
    assert names(f"{folder}/**/*.tif") == ["b/d.tif"]
    assert names(f"{folder}/b/*") == ["c.JPG", "d.tif"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    path = tmp_path / "frame[1].png"
    Image.fromarray(GREY).save(path)
    assert names(path) == ["frame[1].png"]
    assert is_single(path)


def test_files_of_several_folders_keep_their_folders_names(folder):
    Image.fromarray(GREY).save(folder / "b" / "a.png")
    assert names([folder / "b" / "a.png", folder / "a.png"]) == ["b/a.png", "a.png"]


def test_list_of_everything(folder):
    mixed = [GREY, folder / "a.png", Image.fromarray(GREY), folder / "b"]
    found = ["image_0000", "a.png", "image_0002", "c.JPG", "d.tif"]
    assert names(mixed) == names(iter(mixed)) == found


def test_generator_is_consumed_as_needed():
    def endless():
        while True:
            yield GREY

    found = find_images(endless())
    assert [next(found).name for _ in range(3)] == ["image_0000", "image_0001", "image_0002"]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("/nowhere/x.png", "no file or folder '/nowhere/x.png'"),
        ("", "no file or folder ''"),
        (5, "a int as images"),
        (["/nowhere/x.png"], "no file or folder '/nowhere/x.png'"),
        ("/nowhere/*.png", "no image in /nowhere/*.png"),
    ],
)
def test_nothing_there(images, said):
    with pytest.raises(DataError) as error:
        list(find_images(images))
    assert error.value.found.startswith(said) and error.value.expected and error.value.fix


def test_folder_without_images_says_what_is_in_it(tmp_path):
    (tmp_path / "scan.dcm").write_bytes(b"DICM")
    with pytest.raises(DataError, match=r"no image in .* \(only \.dcm\)"):
        list(find_images(tmp_path))


def test_outputs_that_would_overwrite_each_other(folder):
    Image.fromarray(GREY).save(folder / "a.bmp")
    with pytest.raises(DataError, match=r"a.bmp and .*a.png: both would be written as a.png"):
        list_files(folder)


@pytest.mark.parametrize("names", [("a b.png", "a_b.png"), ("\u00e4.png", "\u00f6.png")])
def test_names_that_become_one_in_the_output(tmp_path, names):
    for name in names:
        Image.fromarray(GREY).save(tmp_path / name)
    with pytest.raises(DataError, match="both would be written as"):
        list_files(tmp_path)


def test_one_file_twice(folder):
    with pytest.raises(DataError, match=r"a.png and .*a.png: both would be written"):
        list_files([folder / "a.png", folder / "a.png"])


def test_linked_folders_are_read_once(tmp_path):
    real, frames = tmp_path / "real", tmp_path / "frames"
    real.mkdir()
    frames.mkdir()
    Image.fromarray(GREY).save(real / "x.png")
    for name in ("one", "two"):
        (frames / name).symlink_to(real, target_is_directory=True)
    (frames / "up").symlink_to(frames, target_is_directory=True)
    assert [source.name for source in find_images(frames)] == ["one/x.png"]


def test_unknown_intensity():
    with pytest.raises(ConfigError, match="did you mean 'own_range'"):
        list(find_images(GREY, "own-range"))


@pytest.mark.parametrize(
    ("images", "single"),
    [("x.png", True), (GREY, True), ([GREY], False), ("x*.png", False), (Path("/tmp"), False)],
)
def test_is_single(images, single):
    assert is_single(images) is single


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5))))
def test_8_bit_grey_is_not_touched(grey):
    expected = np.stack([grey] * 3, axis=-1)
    for image in (grey, grey[..., None], expected, Image.fromarray(grey)):
        np.testing.assert_array_equal(to_rgb(image, "own_range", "x"), expected)
    with_alpha = np.concatenate([expected, np.full_like(grey, 7)[..., None]], axis=-1)
    np.testing.assert_array_equal(to_rgb(with_alpha, "own_range", "x"), expected)


@given(
    arrays(np.uint16, st.tuples(st.integers(1, 5), st.integers(1, 5))),
    st.sampled_from([np.uint16, np.int32, np.float64]),
)
def test_deeper_values_fill_the_range(values, dtype):
    rgb = to_rgb(values.astype(dtype), "own_range", "x")
    spread = float(values.max()) - float(values.min())
    scale = 255 / spread if spread else 0.0
    np.testing.assert_array_equal(
        rgb[..., 1], np.rint((values.astype(float) - values.min()) * scale)
    )


def test_array_and_file_of_16_bit_are_the_same(tmp_path):
    values = (np.arange(20, dtype=np.uint16) * 3001).reshape(4, 5)
    Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(
        to_rgb(values, "own_range", "x"), read_image(tmp_path / "deep.png")
    )
    np.testing.assert_array_equal(
        to_rgb(values, "full_range", "x"), read_image(tmp_path / "deep.png", "full_range")
    )


def test_bool_array_is_black_and_white():
    assert to_rgb(np.array([[True, False]]), "own_range", "x")[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    "image",
    [np.zeros((2, 3, 4, 3)), np.zeros((3, 4, 2)), np.zeros((0, 4)), np.array([["a"]]), "text"],
    ids=["stack", "two channels", "empty", "text array", "text"],
)
def test_what_is_no_image(image):
    with pytest.raises(DataError, match="frame 3 is a"):
        to_rgb(image, "own_range", "frame 3")


def test_not_finite():
    with pytest.raises(DataError, match="frame 3 holds values that are not finite"):
        to_rgb(np.array([[0.0, np.nan]]), "own_range", "frame 3")


def test_pillow_image_of_several_frames(tmp_path):
    frame = Image.fromarray(GREY)
    frame.save(tmp_path / "stack.tif", save_all=True, append_images=[frame])
    with (
        Image.open(tmp_path / "stack.tif") as image,
        pytest.raises(DataError, match="holds 2 frames"),
    ):
        to_rgb(image, "own_range", "x")

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from projects.sa2va.datasets.image_io import (
    exif_orientation,
    read_image,
    read_mask,
    read_size,
    read_sizes,
)
from projects.sa2va.errors import ConfigError, DataError

RAMP = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)


def save(path, array, mode=None, **kwargs):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **kwargs)
    return path


def test_8_bit_grey_is_not_rescaled(tmp_path):
    image = read_image(save(tmp_path / "a.png", RAMP // 2 + 10))
    assert image.dtype == np.uint8 and image.shape == (12, 20, 3)
    assert (image == (RAMP // 2 + 10)[..., None]).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_by_own_and_by_full_range(tmp_path, suffix):
    deep = np.linspace(1000, 4095, 240).reshape(12, 20).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), deep)
    own, full = read_image(path), read_image(path, "full_range")
    assert own.min() == 0 and own.max() == 255
    assert np.abs(own[..., 0] - (deep - 1000.0) / 3095 * 255).max() <= 0.5 + 1e-9
    assert np.abs(full[..., 0] - deep / 257.0).max() <= 0.5 + 1e-9
    assert (own[..., 0] == own[..., 2]).all()


def test_32_bit_integers_and_floats(tmp_path):
    deep = np.arange(240).reshape(12, 20)
    for name, dtype in (("i.tif", np.int32), ("f.tif", np.float32)):
        Image.fromarray(deep.astype(dtype) - 100).save(tmp_path / name)
        image = read_image(tmp_path / name)
        assert np.abs(image[..., 0] - deep / 239 * 255).max() <= 0.5 + 1e-6
        with pytest.raises(DataError, match=rf"(?s){name}.*-100 to 139.*own_range"):
            read_image(tmp_path / name, "full_range")
    unit = (deep / 239).astype(np.float32)
    Image.fromarray(unit).save(tmp_path / "u.tif")
    assert np.abs(read_image(tmp_path / "u.tif", "full_range")[..., 1] - unit * 255).max() <= 0.51


def test_constant_deep_image_is_black_and_nan_is_an_error(tmp_path):
    Image.fromarray(np.full((4, 5), 7, np.uint16)).save(tmp_path / "c.png")
    assert (read_image(tmp_path / "c.png") == 0).all()
    Image.fromarray(np.full((4, 5), np.nan, np.float32)).save(tmp_path / "n.tif")
    with pytest.raises(DataError, match=r"n\.tif.*not finite"):
        read_image(tmp_path / "n.tif")


def test_16_bit_colour_keeps_its_low_bytes(tmp_path):
    # Pillow alone would cut these to the high byte, which is 0 everywhere.
    deep = np.stack([np.arange(240).reshape(12, 20)] * 3, axis=-1).astype(np.uint16)
    deep[..., 1], deep[..., 2] = 0, 239
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), deep[..., ::-1])
        image = read_image(tmp_path / name)
        assert np.abs(image - deep / 239 * 255).max() <= 0.5 + 1e-6
        assert read_mask(tmp_path / name).all()


def test_16_bit_white_is_zero_tiff_is_inverted(tmp_path):
    deep = np.arange(240, dtype=np.uint16).reshape(12, 20)
    Image.fromarray(deep).save(tmp_path / "w.tif", tiffinfo={262: 0})
    assert (read_image(tmp_path / "w.tif")[..., 0] == 255 - np.rint(deep / 239 * 255)).all()


def test_colour_alpha_palette_bits_and_cmyk(tmp_path):
    rgb = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)
    assert (read_image(save(tmp_path / "rgb.png", rgb)) == rgb).all()
    # Alpha is dropped, not composited: an all-zero alpha channel leaves the colours.
    rgba = np.concatenate([rgb, np.zeros_like(rgb[..., :1])], axis=2)
    assert (read_image(save(tmp_path / "rgba.png", rgba)) == rgb).all()
    la = np.stack([RAMP, np.zeros_like(RAMP)], axis=-1)
    assert (read_image(save(tmp_path / "la.png", la)) == RAMP[..., None]).all()

    palette = Image.fromarray((RAMP > 99).astype(np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    palette.save(tmp_path / "p.png")
    colours = np.array([[10, 20, 30], [200, 100, 50]])
    assert (read_image(tmp_path / "p.png") == colours[(RAMP > 99).astype(int)]).all()

    bits = read_image(save(tmp_path / "1.png", RAMP > 99))
    assert (bits == np.where(RAMP > 99, 255, 0)[..., None]).all()
    cmyk = read_image(save(tmp_path / "cmyk.tif", rgb, "CMYK"))
    assert np.abs(cmyk.astype(int) - rgb).max() <= 2


def test_exif_orientation_is_reported_and_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.jpg", RAMP, exif=exif)
    assert read_image(path).shape == (12, 20, 3) and read_size(path) == (20, 12)
    assert exif_orientation(path) == 6
    assert exif_orientation(save(tmp_path / "plain.png", RAMP)) == 1


def test_missing_unreadable_and_truncated_files_are_named(tmp_path, truncate):
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(DataError, match=r"text\.png is not an image that can be read \(12 bytes"):
        read_image(tmp_path / "text.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png .*\(0 bytes\)"):
        read_size(tmp_path / "empty.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    deep = noise.astype(np.uint16) * 200
    for name in ("t.png", "t.jpg", "t.tif", "t.bmp"):
        path = save(tmp_path / name, noise)
        truncate(path)
        with pytest.raises(DataError, match=rf"(?s)t\.{name[2:]}.*copy (the file|it) again"):
            read_image(path)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    truncate(tmp_path / "deep.png")
    for reader in (read_image, read_mask):
        with pytest.raises(DataError, match=r"deep\.png cannot be read"):
            reader(tmp_path / "deep.png")
    with pytest.raises(DataError, match="is not a file"):
        read_image(tmp_path)


def test_stacks_are_refused(tmp_path):
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP)]
    frames[0].save(tmp_path / "s.tif", save_all=True, append_images=frames[1:])
    for reader in (read_image, read_mask):
        with pytest.raises(DataError, match=r"s\.tif holds 2 frames"):
            reader(tmp_path / "s.tif")


def test_read_sizes_puts_errors_in_their_place(tmp_path):
    good = save(tmp_path / "a.png", RAMP)
    sizes = read_sizes([good, tmp_path / "b.png", good])
    assert sizes[0] == sizes[2] == (20, 12)
    assert isinstance(sizes[1], DataError) and "b.png" in sizes[1].found


def test_unknown_intensity_suggests(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'own_range'"):
        read_image(save(tmp_path / "a.png", RAMP), "own_rnge")


@settings(max_examples=15, deadline=None)
@given(value=st.integers(1, 255), seed=st.integers(0, 1000))
def test_any_non_zero_is_foreground_in_every_mode(tmp_path_factory, value, seed):
    folder = tmp_path_factory.mktemp("masks")
    truth = np.random.default_rng(seed).random((6, 9)) < 0.5
    grey = np.where(truth, value, 0).astype(np.uint8)
    one_channel = np.zeros((6, 9, 3), np.uint8)
    one_channel[..., seed % 3] = grey
    alpha = np.concatenate([one_channel, np.full((6, 9, 1), 255, np.uint8)], axis=2)
    save(folder / "l.png", grey)
    save(folder / "rgb.png", one_channel)
    save(folder / "rgba.png", alpha)
    save(folder / "one.png", truth)
    save(folder / "deep.png", grey.astype(np.uint16))
    save(folder / "float.tif", grey.astype(np.float32) / 1000)
    palette = Image.fromarray(grey).convert("L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    # Index 0 is white, all others black: the index decides, not the colour.
    palette.putpalette([255, 255, 255] + [0] * 765)
    palette.save(folder / "p.png")
    for path in folder.iterdir():
        mask = read_mask(path)
        assert mask.dtype == np.uint8 and (mask == truth).all(), path.name


def test_mask_transparency_cmyk_jpeg_and_nan(tmp_path):
    rgba = np.full((4, 5, 4), 255, np.uint8)
    rgba[:, :2, 3] = 0
    assert (read_mask(save(tmp_path / "a.png", rgba)) == (np.arange(5) >= 2)).all()
    black = save(tmp_path / "k.tif", np.zeros((4, 5, 3), np.uint8), "CMYK")
    assert not read_mask(black).any()
    with pytest.raises(DataError, match=r"(?s)m\.jpg is a JPEG.*save it as PNG"):
        read_mask(save(tmp_path / "m.jpg", RAMP))
    with pytest.raises(DataError, match=r"n\.tif holds values that are not finite"):
        read_mask(save(tmp_path / "n.tif", np.full((4, 5), np.inf, np.float32)))

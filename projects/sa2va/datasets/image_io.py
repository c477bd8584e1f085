"""Reading images and masks of any bit depth and mode, and saying which file cannot be read.

Decisions, each with its reason:

* **Grey values.** 8-bit images are taken as they are. Anything deeper is scaled to 8 bits, by its
  own minimum..maximum (``own_range``, the default: X-ray frames use 10 to 14 of their 16 bits and
  would be nearly black otherwise) or by the full range of the type (``full_range``: keeps frames
  of one series comparable). Full range means 0..65535 for integers and 0..1 for floats.
* **Alpha is dropped**, the stored colour is kept, as the reference does (``convert('RGB')``).
  Compositing over black would turn files with a meaningless, all-zero alpha channel black. In
  masks alpha does count: a fully transparent pixel is background.
* **EXIF orientation is not applied.** Masks and polygons refer to pixels as they are stored, which
  is also what the COCO tools and the reference read. A file that carries an orientation is
  reported by :func:`projects.sa2va.datasets.integrity.check_dataset`.
* **Several frames in one file** (TIFF stacks, GIF) are an error: taking the first one silently
  would pair a mask with the wrong moment of an angiogram.
* **JPEG masks** are an error: "any non-zero pixel is vessel" would turn compression noise into
  vessels.
"""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ConfigError, DataError, suggest

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jp2"),
    *(".pgm", ".ppm", ".pnm"),
)
INTENSITIES = ("own_range", "full_range")

# What Pillow raises for damaged files, by format; anything else is a defect of ours.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_EXIF_ORIENTATION = 0x0112
_TIFF_PHOTOMETRIC = 262


def check_intensity(intensity: str) -> str:
    """Returns ``intensity`` if it is known, else raises ConfigError."""
    if intensity not in INTENSITIES:
        raise ConfigError(
            f"intensity={intensity!r}{suggest(str(intensity), INTENSITIES)}",
            f"one of {', '.join(INTENSITIES)}",
            "set `intensity` of the data set to one of these",
        )
    return intensity


@contextmanager
def _opened(path: Path):
    """Opens ``path`` with Pillow; every way in which a file can be unreadable is a DataError."""
    if not path.is_file():
        raise DataError(
            f"{path} does not exist" if not path.exists() else f"{path} is not a file",
            "an image file that can be read",
            "copy the file there, or correct its name in the annotations or in `image_dir`",
        )
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is not an image that can be read ({path.stat().st_size} bytes)",
            "PNG, JPEG, TIFF (integer or 32-bit float), BMP or another format that Pillow reads",
            "convert the file to PNG, or copy it again if it is damaged",
        ) from error
    except _DECODE_ERRORS as error:
        raise DataError(
            f"{path} cannot be read: {error} ({path.stat().st_size} bytes)",
            "a complete image file",
            "copy the file again: it is truncated or damaged",
        ) from error


def read_size(path: str | Path) -> tuple[int, int]:
    """Returns (width, height) in pixels from the header, without decoding.

    Raises:
        DataError: the file is missing or its header cannot be read.
    """
    with _opened(Path(path)) as image:
        return image.size


def read_sizes(paths: list[Path], workers: int = 8) -> list[tuple[int, int] | DataError]:
    """Reads many headers at once (network disks answer slowly); errors take the place of sizes."""

    def read(path: Path) -> tuple[int, int] | DataError:
        try:
            return read_size(path)
        except DataError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(read, paths))


def exif_orientation(path: str | Path) -> int:
    """Returns the EXIF orientation (1 to 8; 1 where there is none), which is never applied."""
    with _opened(Path(path)) as image:
        # For a PNG without EXIF Pillow would decode the whole image to look behind it.
        if image.format == "PNG" and "exif" not in image.info:
            return 1
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))


def _one_frame(image: Image.Image, path: Path | str) -> None:
    # MPO is a JPEG with an embedded preview (fundus and phone cameras): its first frame is it.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames != 1:
        raise DataError(
            f"{path} holds {frames} frames",
            "one frame in each file",
            "write each frame that has a mask to a file of its own",
        )


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether this is 16-bit colour, which Pillow would cut to its high bytes."""
    raw_modes = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    return image.mode in ("RGB", "RGBA") and ";16" in raw_modes


def _deep_channels(path: Path) -> np.ndarray:
    """Decodes 16-bit colour (or grey with alpha) to uint16 [H, W, 3 or 4] in RGB(A) order."""
    array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.ndim != 3:
        raise DataError(
            f"{path} is a 16-bit colour image that OpenCV cannot read",
            "16-bit RGB as PNG or uncompressed TIFF",
            "convert the file to 8-bit or 16-bit PNG",
        )
    return np.concatenate([array[..., 2::-1], array[..., 3:]], axis=2)


def _to_uint8(array: np.ndarray, intensity: str, path: Path | str) -> np.ndarray:
    """Scales deep grey or colour values (one common range) to uint8 of the same shape."""
    values = array.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(
            f"{path} holds values that are not finite (NaN or infinity)",
            "finite grey values",
            "replace them before writing the file, for instance by the smallest valid value",
        )
    if intensity == "full_range":
        top = 1.0 if np.issubdtype(array.dtype, np.floating) else 65535.0
        if low < 0 or high > top:
            raise DataError(
                f"{path} holds values from {low:g} to {high:g}",
                f"values from 0 to {top:g} with intensity='full_range'",
                "set intensity='own_range', or rescale the file",
            )
        low, high = 0.0, top
    # A constant image has no range; it becomes black rather than a division by zero.
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.rint((values - low) * scale).astype(np.uint8)


def read_image(path: str | Path, intensity: str = "own_range") -> np.ndarray:
    """Reads one image of any bit depth and mode.

    Args:
        path: the file.
        intensity: how values deeper than 8 bits become 8 bits, ``own_range`` or ``full_range``
            (see the head of this module). 8-bit images are not touched.

    Returns:
        uint8 [H, W, 3], RGB, pixels as they are stored (no EXIF rotation), alpha dropped.

    Raises:
        DataError: missing, truncated or unreadable file, several frames, non-finite values, or
            values outside the full range; the message names the file.
    """
    path = Path(path)
    check_intensity(intensity)
    with _opened(path) as image:
        _one_frame(image, path)
        deep_colour = _is_deep_colour(image)
        image.load()
        if deep_colour:
            return _to_uint8(_deep_channels(path)[..., :3], intensity, path)
        return _from_pillow(image, intensity, path)


def to_rgb(image: np.ndarray | Image.Image, intensity: str, name: str) -> np.ndarray:
    """As :func:`read_image`, of an image in memory.

    Args:
        image: a Pillow image, or an array: grey [H, W] or [H, W, 1], RGB [H, W, 3] or RGBA
            [H, W, 4], of uint8 (taken as it is), bool, or deeper numbers (brought to 8 bits).
        intensity: how values deeper than 8 bits become 8 bits.
        name: for messages.

    Returns:
        uint8 [H, W, 3], RGB, alpha dropped.

    Raises:
        DataError: no image, or values that cannot be brought to 8 bits.
    """
    check_intensity(intensity)
    if isinstance(image, Image.Image):
        _one_frame(image, name)
        return _from_pillow(image, intensity, name)
    array = np.asarray(image) if isinstance(image, np.ndarray) else None
    shape = () if array is None else array.shape
    channels = shape[2] if len(shape) == 3 else 1
    if (
        array is None
        or not array.size
        or len(shape) not in (2, 3)
        or channels not in (1, 3, 4)
        or array.dtype.kind not in "buif"
    ):
        what = f"a {type(image).__name__}"
        if array is not None:
            what = f"an array of {array.dtype} {list(shape)}"
        raise DataError(
            f"{name} is {what}",
            "an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of numbers, or a Pillow image",
            "give several images as a list of arrays, channels last",
        )
    array = array.reshape(*shape[:2], channels)[..., :3]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        array = _to_uint8(array, intensity, name)
    return np.ascontiguousarray(np.broadcast_to(array, (*shape[:2], 3)))


def _from_pillow(image: Image.Image, intensity: str, path: Path | str) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a decoded image."""
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _to_uint8(np.asarray(image), intensity, path)
        # Pillow inverts 8-bit "white is zero" TIFFs by itself, 16-bit ones it does not.
        if getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0:
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def read_mask(path: str | Path) -> np.ndarray:
    """Reads one mask: any non-zero pixel is foreground.

    Palette masks count by index (index 0 is background, whatever its colour), colour masks by any
    channel, and pixels that are fully transparent are background.

    Returns:
        uint8 [H, W] of {0, 1}.

    Raises:
        DataError: missing, truncated or unreadable file, several frames, a JPEG, or values that
            are not finite; the message names the file.
    """
    path = Path(path)
    with _opened(path) as image:
        _one_frame(image, path)
        if image.format in ("JPEG", "MPO"):
            raise DataError(
                f"mask {path} is a JPEG, whose compression leaves non-zero noise in the background",
                "a lossless mask file, where every non-zero pixel is vessel",
                "threshold the mask (for instance at 128) and save it as PNG",
            )
        if _is_deep_colour(image):
            image.load()  # reports a truncated file, which OpenCV does not
            array = _deep_channels(path)  # the low bytes count too: 0x0001 is foreground
            bands = "RGBA"[: array.shape[2]]
        else:
            if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):  # black is not all zero in these
                image = image.convert("RGB")
            array = np.asarray(image)
            bands = image.getbands()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            f"mask {path} holds values that are not finite",
            "zero for background, any other number for vessel",
            "write the mask again without NaN and infinity",
        )
    if array.ndim == 2:
        return (array != 0).astype(np.uint8)
    if bands[-1] == "A":
        return (array[..., :-1].any(axis=2) & (array[..., -1] != 0)).astype(np.uint8)
    return array.any(axis=2).astype(np.uint8)

"""An image for the two encoders: tiles for InternVL, one square for SAM2.

The two are independent of each other: tile limits say nothing about SAM2's input and vice versa.
Both resize with PIL's bicubic filter on 8-bit values, as the reference does (F2_preprocess, bit
for bit); transformers' torchvision processors differ from it by up to two grey levels.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from ..errors import ConfigError, DataError


def tile_grid(
    height: int, width: int, tile_size: int, min_tiles: int, max_tiles: int
) -> tuple[int, int]:
    """Columns and rows that come nearest to the aspect ratio of the image (InternVL 1.5, 3.2).

    Of equally near grids the larger one is taken as long as its area is below twice the image's.
    ``min_tiles <= columns * rows <= max_tiles``; the thumbnail is not counted.
    """
    return get_optimal_tiled_canvas((height, width), (tile_size, tile_size), min_tiles, max_tiles)


def split_tiles(
    image: np.ndarray, tile_size: int, min_tiles: int, max_tiles: int, use_thumbnail: bool = True
) -> np.ndarray:
    """Cuts an image into InternVL's tiles.

    Args:
        image: uint8 RGB [H, W, 3].
        tile_size: side of a tile in pixels.
        min_tiles: smallest number of tiles, thumbnail not counted.
        max_tiles: largest number of tiles, thumbnail not counted.
        use_thumbnail: append the whole image as one more tile, if there is more than one.

    Returns:
        uint8 [n, 3, tile_size, tile_size]; row by row, the thumbnail last.

    Raises:
        DataError: not an RGB image of 8 bits.
    """
    _check(image)
    # Channels first always: with a width of 1 or 3 the processor could not tell which axis is which
    tiles = _tiler().crop_image_to_patches(
        np.ascontiguousarray(image.transpose(2, 0, 1)),
        min_patches=min_tiles,
        max_patches=max_tiles,
        use_thumbnail=use_thumbnail,
        patch_size=SizeDict(height=tile_size, width=tile_size),
        resample=Image.Resampling.BICUBIC,
    )
    return np.stack(tiles)


def normalise_tiles(tiles: np.ndarray) -> Tensor:
    """uint8 [n, 3, T, T] to float32 of the same shape, ImageNet mean and deviation."""
    return normalise(torch.from_numpy(tiles))


def grounding_square(image: np.ndarray, image_size: int) -> np.ndarray:
    """uint8 RGB [H, W, 3] to uint8 [image_size, image_size, 3]; the aspect ratio is not kept.

    Raises:
        DataError: not an RGB image of 8 bits.
    """
    _check(image)
    size = (image_size, image_size)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def normalise_grounding(square: np.ndarray, rounded: bool = False) -> Tensor:
    """uint8 [S, S, 3] to float32 [3, S, S], normalised for SAM2 by ImageNet's mean and deviation.

    Args:
        square: see :func:`grounding_square`.
        rounded: round mean and deviation to bfloat16 first. The reference does so at inference,
            even for float32 input (projects/sa2va/hf/models/sam2.py), but not in training.
    """
    return normalise(torch.from_numpy(square).permute(2, 0, 1), rounded)


def check_tile_limits(min_tiles: int, max_tiles: int) -> None:
    """Raises ConfigError unless ``1 <= min_tiles <= max_tiles``."""
    for name, value in (("min_tiles", min_tiles), ("max_tiles", max_tiles)):
        check_positive(name, value)
    if min_tiles > max_tiles:
        raise ConfigError(
            found=f"processor.min_tiles = {min_tiles}, processor.max_tiles = {max_tiles}",
            expected="1 <= min_tiles <= max_tiles",
            fix="lower processor.min_tiles or raise processor.max_tiles",
        )


def check_positive(name: str, value: object) -> None:
    """Raises ConfigError unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            found=f"processor.{name} = {value!r}",
            expected="a whole number of at least 1",
            fix=f"correct processor.{name}",
        )


def check_image_size(image_size: object) -> None:
    """Raises ConfigError unless ``image_size`` is a positive multiple of 32."""
    check_positive("image_size", image_size)
    if image_size % 32:
        raise ConfigError(
            found=f"processor.image_size = {image_size}",
            expected="a multiple of 32, the stride of SAM2's last stage",
            fix="set processor.image_size to 1024, 512 or another multiple of 32",
        )


@functools.cache
def _tiler() -> GotOcr2ImageProcessorPil:
    return GotOcr2ImageProcessorPil()


def normalise(pixels: Tensor, rounded: bool = False) -> Tensor:
    """uint8 [..., 3, H, W] to float32 of the same shape, ImageNet mean and deviation.

    Equal bits on every device: each step is rounded by itself.

    Args:
        pixels: on any device.
        rounded: see :func:`normalise_grounding`.
    """
    mean, std = (
        torch.tensor(values, device=pixels.device).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    if rounded:
        mean, std = mean.bfloat16().float(), std.bfloat16().float()
    # Division by 255 before the rest, in float32: the reference's order, needed for equal bits
    own = torch.empty(pixels.shape, device=pixels.device).copy_(pixels)
    return own.div_(255).sub_(mean).div_(std)


def _check(image: object) -> None:
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size
    ):
        return
    found = (
        f"{image.dtype} array of shape {image.shape}"
        if isinstance(image, np.ndarray)
        else f"a {type(image).__name__}"
    )
    raise DataError(
        found=f"{found} as an image",
        expected="a uint8 RGB array of shape (height, width, 3)",
        fix="read images with projects.sa2va.datasets.image_io, which brings every format to RGB",
    )

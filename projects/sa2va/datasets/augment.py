"""Augmentation of an image and its masks by one and the same geometric transform.

Decisions, each with its reason:

* **Border.** Rotating or shrinking uncovers corners. Image and masks are both continued by
  mirroring (``BORDER_REFLECT_101``): no black wedges that the model could learn to spot, and the
  vessels that appear in the mirrored part are labelled there too.
* **Masks** are warped bilinearly and cut at one half, the rule that matches the image's own
  interpolation. Nearest neighbour breaks vessels of one or two pixels into dashes.
* **Flips** are exact array flips (no interpolation) and come first.
* A horizontal flip swaps left and right: leave it out where phrases name a side in the picture.
* **One resampling.** Rotation, scale, shear, shift and elastic displacement make up one map, so
  that thin vessels are interpolated once.
* **Elastic displacement** (Simard et al., 2003) is drawn at the nodes of a coarse grid and
  interpolated cubically: vessels bend and never tear.
* Blur, lower resolution and noise come after the geometry, noise last: a detector's noise is not
  smoothed (the order of nnU-Net, Isensee et al., 2021).
* scale, gamma, contrast and brightness factors are drawn evenly on a logarithmic scale, so that
  halving is as likely as doubling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np

from ..errors import ConfigError, suggest

_CHANCES = ("hflip", "vflip", "p")
# Names of ranges: factors are positive, of what is 0 or more 0 changes nothing, the rest is signed.
_FACTORS = ("scale", "gamma", "contrast", "brightness", "low_resolution")
_SIZES = ("elastic", "blur", "noise")
_SIGNED = ("rotate", "shear", "shift")
KEYS = (*_CHANCES, *_FACTORS, *_SIZES, *_SIGNED)
_NODES = 6  # of the elastic grid, along each side


class Augment:
    """Random flips, geometry and grey values.

    Args:
        hflip: chance of a left-right flip.
        vflip: chance of an up-down flip.
        rotate: (lowest, highest) angle in degrees, counter-clockwise, about the centre.
        scale: (lowest, highest) factor of size, about the centre; the canvas keeps its size.
        gamma: (lowest, highest) exponent of the grey values (below 1 brightens).
        contrast: (lowest, highest) factor of the distance to the image's mean.
        shear: (lowest, highest) angle in degrees by which upright lines are tilted.
        shift: (lowest, highest) part of the image's sides, drawn for each direction.
        elastic: (lowest, highest) standard deviation of the displacement at the nodes, in px.
        brightness: (lowest, highest) factor of the grey values.
        low_resolution: (lowest, highest) factor of a size to which the image is shrunk and then
            brought back; at most 1.
        blur: (lowest, highest) standard deviation of a Gaussian, in px.
        noise: (lowest, highest) standard deviation of white noise, in grey levels; equal in all
            channels.
        p: chance with which each of the ranges is applied (flips have their own chance).

    Raises:
        ConfigError: a chance outside 0..1, or a range that is not two ascending numbers
            (finite ones, positive for factors, 0 or more for elastic, blur and noise).
    """

    def __init__(
        self,
        *,
        hflip: float = 0.0,
        vflip: float = 0.0,
        rotate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        gamma: Sequence[float] | None = None,
        contrast: Sequence[float] | None = None,
        shear: Sequence[float] | None = None,
        shift: Sequence[float] | None = None,
        elastic: Sequence[float] | None = None,
        brightness: Sequence[float] | None = None,
        low_resolution: Sequence[float] | None = None,
        blur: Sequence[float] | None = None,
        noise: Sequence[float] | None = None,
        p: float = 1.0,
    ) -> None:
        self.hflip, self.vflip, self.p = _chance("hflip", hflip), _chance("vflip", vflip), p
        _chance("p", p)
        self.rotate = _range("rotate", rotate, "signed")
        self.scale = _range("scale", scale)
        self.gamma = _range("gamma", gamma)
        self.contrast = _range("contrast", contrast)
        self.shear = _range("shear", shear, "signed")
        self.shift = _range("shift", shift, "signed")
        self.elastic = _range("elastic", elastic, "size")
        self.brightness = _range("brightness", brightness)
        self.low_resolution = _range("low_resolution", low_resolution)
        self.blur = _range("blur", blur, "size")
        self.noise = _range("noise", noise, "size")
        if self.low_resolution and self.low_resolution[1] > 1:
            raise ConfigError(
                f"augment.low_resolution={low_resolution!r}",
                "factors of at most 1: an image is shrunk",
                "set augment.low_resolution=(0.5, 1.0)",
            )

    def __call__(
        self, image: np.ndarray, masks: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws one transform and applies it.

        Args:
            image: uint8 [H, W, 3], or grey [H, W].
            masks: uint8 {0, 1} [K, H, W], K may be 0.
            rng: the only source of chance; always 10 numbers are drawn from it, and 16 and what
                elastic displacement and noise need from one that it spawns, so switching one
                option on leaves the draws of the others as they were.

        Returns:
            image and masks of the same shapes and dtypes.
        """
        u, own = rng.random(10), rng.spawn(1)[0]
        v = own.random(16)
        angle = _draw(self.rotate, u[2], u[3] < self.p, log=False, neutral=0.0)
        factor = _draw(self.scale, u[4], u[5] < self.p)
        gamma = _draw(self.gamma, u[6], u[7] < self.p)
        contrast = _draw(self.contrast, u[8], u[9] < self.p)
        even = {"log": False, "neutral": 0.0}
        shear = _draw(self.shear, v[0], v[1] < self.p, **even)
        shift = tuple(_draw(self.shift, x, v[3] < self.p, **even) for x in (v[2], v[4]))
        bend = _draw(self.elastic, v[5], v[6] < self.p, **even)
        brightness = _draw(self.brightness, v[7], v[8] < self.p)
        resolution = _draw(self.low_resolution, v[9], v[10] < self.p)
        blur = _draw(self.blur, v[11], v[12] < self.p, **even)
        noise = _draw(self.noise, v[13], v[14] < self.p, **even)
        nodes = (bend * own.standard_normal((2, _NODES, _NODES))).astype(np.float32)

        image, masks = flip(image, masks, horizontal=u[0] < self.hflip, vertical=u[1] < self.vflip)
        image, masks = warp(image, masks, angle, factor, shear, shift, nodes if bend else None)
        image = grey_values(degrade(image, resolution, blur), gamma, contrast, brightness)
        return add_noise(image, noise, own), masks


class AugmentChain:
    """Several :class:`Augment`, one after the other (``augment=[dict(...), dict(...)]``)."""

    def __init__(self, steps: Sequence[Augment]) -> None:
        self.steps = list(steps)

    def __call__(
        self, image: np.ndarray, masks: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Applies every step; shapes and dtypes as in :meth:`Augment.__call__`.

        An image whose three channels are equal is worked on as one, in a third of the time. OpenCV
        rounds one channel otherwise than three: a pixel in 100,000 differs by one grey level.
        """
        is_grey = _is_grey(image)
        image = image[..., 0] if is_grey else image
        for step in self.steps:
            image, masks = step(image, masks, rng)
        return cv2.merge([image] * 3) if is_grey else image, masks


def build_augment(
    config: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
) -> AugmentChain | None:
    """Builds the augmentation of a config; None and empty mean none.

    Raises:
        ConfigError: an unknown key (the nearest known one is suggested) or a bad value.
    """
    if not config:
        return None
    steps = [config] if isinstance(config, Mapping) else list(config)
    for step in steps:
        for key in step:
            if key not in KEYS:
                raise ConfigError(
                    f"unknown key {key!r} in augment{suggest(str(key), KEYS)}",
                    f"some of {', '.join(KEYS)}",
                    "correct or remove the key",
                )
    return AugmentChain([Augment(**step) for step in steps])


def flip(
    image: np.ndarray, masks: np.ndarray, *, horizontal: bool = False, vertical: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Flips image uint8 [H, W, 3] and masks [K, H, W] exactly; doing it twice undoes it."""
    if horizontal:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    if vertical:
        image, masks = image[::-1], masks[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(masks)


def warp(
    image: np.ndarray,
    masks: np.ndarray,
    angle: float = 0.0,
    factor: float = 1.0,
    shear: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    nodes: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rotates (degrees, counter-clockwise), scales and shears about the centre; mirrored borders.

    Args:
        image: uint8 [H, W, 3].
        masks: uint8 {0, 1} [K, H, W].
        angle: degrees.
        factor: of size.
        shear: degrees by which upright lines are tilted.
        shift: parts of width and height.
        nodes: float32 [2, n, n]: displacement (x, y) in px at the nodes of an even grid over the
            image; None for none.

    Returns:
        image uint8 [H, W, 3], masks uint8 {0, 1} [K, H, W].
    """
    if (angle, factor, shear, *shift) == (0.0, 1.0, 0.0, 0.0, 0.0) and nodes is None:
        return image, masks
    height, width = image.shape[:2]
    # Pixel centres sit at whole numbers in OpenCV, so the image's centre is at (size - 1) / 2.
    centre = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, angle, factor)
    if shear or any(shift):
        tilt = math.tan(math.radians(shear))
        before = np.array([[1.0, tilt, -tilt * centre[1]], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        matrix = matrix @ before
        matrix[:, 2] += shift[0] * width, shift[1] * height

    size, border = (width, height), cv2.BORDER_REFLECT_101
    if nodes is None:

        def moved(array: np.ndarray) -> np.ndarray:
            return cv2.warpAffine(array, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
    else:
        where = _elastic_map(matrix, nodes, size)

        def moved(array: np.ndarray) -> np.ndarray:
            return cv2.remap(array, *where, interpolation=cv2.INTER_LINEAR, borderMode=border)

    warped = [(moved(mask * np.uint8(255)) >= 128).astype(np.uint8) for mask in masks]
    return moved(image), np.stack(warped) if warped else masks


def _elastic_map(
    matrix: np.ndarray, nodes: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the result comes from, float32 [H, W] for x and y."""
    width, height = size
    back = cv2.invertAffineTransform(matrix).astype(np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    bent = [cv2.resize(axis, size, interpolation=cv2.INTER_CUBIC) for axis in nodes]
    return tuple(
        back[axis, 0] * x + back[axis, 1] * y + back[axis, 2] + bent[axis] for axis in (0, 1)
    )


def degrade(image: np.ndarray, resolution: float = 1.0, blur: float = 0.0) -> np.ndarray:
    """Shrinks by ``resolution`` and enlarges again, then blurs (px); uint8 [H, W, 3]."""
    if resolution < 1.0:
        height, width = image.shape[:2]
        small = (max(1, round(width * resolution)), max(1, round(height * resolution)))
        shrunk = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        image = cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC)
    if blur > 0.0:
        image = cv2.GaussianBlur(image, (0, 0), blur, borderType=cv2.BORDER_REFLECT_101)
    return image


def grey_values(
    image: np.ndarray, gamma: float = 1.0, contrast: float = 1.0, brightness: float = 1.0
) -> np.ndarray:
    """``255 (v / 255) ** gamma``, then ``mean + contrast (v - mean)``, then ``brightness v``.

    Returns:
        uint8 [H, W, 3].
    """
    if (gamma, contrast, brightness) == (1.0, 1.0, 1.0):
        return image
    curve = 255.0 * (np.arange(256) / 255.0) ** gamma
    # All 256 levels are counted once: as many sums as levels, and not as pixels.
    count = cv2.calcHist([image.reshape(-1, 1)], [0], None, [256], [0, 256]).ravel()
    mean = float(count @ curve / image.size)
    curve = brightness * (mean + contrast * (curve - mean))
    return cv2.LUT(image, np.clip(np.rint(curve), 0, 255).astype(np.uint8))


def add_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Adds white noise of ``deviation`` grey levels, equal in all channels; uint8 [H, W, 3]."""
    if deviation <= 0.0:
        return image
    noise = rng.standard_normal(image.shape[:2], dtype=np.float32) * np.float32(deviation)
    return cv2.add(image, noise if image.ndim == 2 else cv2.merge([noise] * 3), dtype=cv2.CV_8U)


def _is_grey(image: np.ndarray) -> bool:
    red = image[..., 0]
    return all(np.array_equal(red, image[..., channel]) for channel in (1, 2))


def _draw(
    limits: tuple[float, float] | None,
    u: float,
    applied: bool,
    *,
    log: bool = True,
    neutral: float = 1.0,
) -> float:
    if limits is None or not applied:
        return neutral
    low, high = limits
    return low * (high / low) ** u if log else low + (high - low) * u


def _chance(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(
            f"augment.{name}={value!r}", "a chance from 0 to 1", f"correct `augment.{name}`"
        )
    return float(value)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _range(
    name: str, value: Any, kind: Literal["factor", "size", "signed"] = "factor"
) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = list(value) if isinstance(value, list | tuple) else []
    numbers = len(pair) == 2 and all(_is_finite(v) for v in pair)
    words, example, good = {
        "factor": ("positive finite", "(0.8, 1.25)", lambda low: low > 0),
        "size": ("finite (0 or more)", "(0, 2)", lambda low: low >= 0),
        "signed": ("finite", "(-15, 15)", lambda low: True),
    }[kind]
    if not numbers or pair[0] > pair[1] or not good(pair[0]):
        raise ConfigError(
            f"augment.{name}={value!r}",
            f"two ascending {words} numbers (lowest, highest)",
            f"correct `augment.{name}`, for instance {name}={example}",
        )
    return float(pair[0]), float(pair[1])

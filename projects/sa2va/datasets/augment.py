"""Augmentation of an image and its masks by one and the same geometric transform.

Decisions, each with its reason:

* **Border.** Rotating or shrinking uncovers corners. Image and masks are both continued by
  mirroring (``BORDER_REFLECT_101``): no black wedges that the model could learn to spot, and the
  vessels that appear in the mirrored part are labelled there too.
* **Masks** are warped bilinearly and cut at one half, the rule that matches the image's own
  interpolation. Nearest neighbour breaks vessels of one or two pixels into dashes.
* **Flips** are exact array flips (no interpolation) and come first.
* A horizontal flip swaps left and right: leave it out where phrases name a side in the picture.
* scale, gamma and contrast factors are drawn evenly on a logarithmic scale, so that halving is as
  likely as doubling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from ..errors import ConfigError, suggest

_CHANCES = ("hflip", "vflip", "p")
_RANGES = ("rotate", "scale", "gamma", "contrast")
KEYS = (*_CHANCES, *_RANGES)


class Augment:
    """Random flips, rotation, scale, gamma and contrast.

    Args:
        hflip: chance of a left-right flip.
        vflip: chance of an up-down flip.
        rotate: (lowest, highest) angle in degrees, counter-clockwise, about the centre.
        scale: (lowest, highest) factor of size, about the centre; the canvas keeps its size.
        gamma: (lowest, highest) exponent of the grey values (below 1 brightens).
        contrast: (lowest, highest) factor of the distance to the image's mean.
        p: chance with which each of rotate, scale, gamma and contrast is applied (flips have
            their own chance).

    Raises:
        ConfigError: a chance outside 0..1, or a range that is not two ascending numbers
            (finite ones, and positive for scale, gamma and contrast).
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
        p: float = 1.0,
    ) -> None:
        self.hflip, self.vflip, self.p = _chance("hflip", hflip), _chance("vflip", vflip), p
        _chance("p", p)
        self.rotate = _range("rotate", rotate, positive=False)
        self.scale = _range("scale", scale)
        self.gamma = _range("gamma", gamma)
        self.contrast = _range("contrast", contrast)

    def __call__(
        self, image: np.ndarray, masks: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws one transform and applies it.

        Args:
            image: uint8 [H, W, 3].
            masks: uint8 {0, 1} [K, H, W], K may be 0.
            rng: the only source of chance; always 10 numbers are drawn, so switching one option
                on leaves the draws of the others as they were.

        Returns:
            image and masks of the same shapes and dtypes.
        """
        u = rng.random(10)
        angle = _draw(self.rotate, u[2], u[3] < self.p, log=False, neutral=0.0)
        factor = _draw(self.scale, u[4], u[5] < self.p)
        gamma = _draw(self.gamma, u[6], u[7] < self.p)
        contrast = _draw(self.contrast, u[8], u[9] < self.p)
        image, masks = flip(image, masks, horizontal=u[0] < self.hflip, vertical=u[1] < self.vflip)
        image, masks = warp(image, masks, angle, factor)
        return grey_values(image, gamma, contrast), masks


class AugmentChain:
    """Several :class:`Augment`, one after the other (``augment=[dict(...), dict(...)]``)."""

    def __init__(self, steps: Sequence[Augment]) -> None:
        self.steps = list(steps)

    def __call__(
        self, image: np.ndarray, masks: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Applies every step; shapes and dtypes as in :meth:`Augment.__call__`."""
        for step in self.steps:
            image, masks = step(image, masks, rng)
        return image, masks


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
    image: np.ndarray, masks: np.ndarray, angle: float = 0.0, factor: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Rotates (degrees, counter-clockwise) and scales about the centre; mirrored borders.

    Returns:
        image uint8 [H, W, 3], masks uint8 {0, 1} [K, H, W].
    """
    if angle == 0.0 and factor == 1.0:
        return image, masks
    height, width = image.shape[:2]
    # Pixel centres sit at whole numbers in OpenCV, so the image's centre is at (size - 1) / 2.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, factor)

    size, border = (width, height), cv2.BORDER_REFLECT_101

    def moved(array: np.ndarray) -> np.ndarray:
        return cv2.warpAffine(array, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)

    warped = [(moved(mask * np.uint8(255)) >= 128).astype(np.uint8) for mask in masks]
    return moved(image), np.stack(warped) if warped else masks


def grey_values(image: np.ndarray, gamma: float = 1.0, contrast: float = 1.0) -> np.ndarray:
    """Applies ``255 (v / 255) ** gamma``, then ``mean + contrast (v - mean)``; uint8 [H, W, 3]."""
    if gamma == 1.0 and contrast == 1.0:
        return image
    curve = 255.0 * (np.arange(256) / 255.0) ** gamma
    mean = float(curve[image].mean())
    curve = np.clip(np.rint(mean + contrast * (curve - mean)), 0, 255).astype(np.uint8)
    return curve[image]


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


def _range(name: str, value: Any, positive: bool = True) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = list(value) if isinstance(value, list | tuple) else []
    numbers = len(pair) == 2 and all(_is_finite(v) for v in pair)
    if not numbers or pair[0] > pair[1] or (positive and pair[0] <= 0):
        raise ConfigError(
            f"augment.{name}={value!r}",
            f"two ascending {'positive ' if positive else ''}finite numbers (lowest, highest)",
            f"correct `augment.{name}`, for instance {name}="
            + ("(0.8, 1.25)" if positive else "(-15, 15)"),
        )
    return float(pair[0]), float(pair[1])

"""From a key to an angiogram for pretraining and its mask, in some tens of milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from projects.sa2va.datasets.synthetic import background
from projects.sa2va.datasets.synthetic.pretraining_params import PretrainingParams
from projects.sa2va.datasets.synthetic.scene import FastCanvas, Scene, draw_scene
from projects.sa2va.datasets.synthetic.tubes import Lumen, Pieces, Root
from projects.sa2va.datasets.synthetic.vessels import Vessel, coronary_tree, strays, twigs

Array = NDArray[np.float32]

# Raised whenever the same key and parameters would give another picture.
PRETRAINING_VERSION = 1

_VESSELS, _SCENE, _NOISE = range(3)
_WALL_MU, _CATHETER_BORE = 0.2, 0.68
_MIN_GREY, _WHITE = 4.0, 255.0
_NORMAL_STEPS = ndtri((np.arange(256) + 0.5) / 256).astype(np.float32)
_LEAST_BLUR = 0.2  # pixels; less cannot be seen
_VEIL = 32  # pixels per side on which scatter is computed
_CLOSED_GREY = 12  # what a real picture shows behind its collimator


@dataclass
class Frame:
    """A frame and what it was made of; arrays are [size, size].

    Attributes:
        image: uint8, the picture.
        mask: uint8 {0, 1}, the labelled lumen.
        vessel: float32, exponent of all vessels and the catheter, with motion.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    vessel: Array


def render_frame(
    key: Sequence[int],
    size: int,
    params: PretrainingParams,
    ground: NDArray[np.uint8] | None = None,
) -> Frame:
    """Renders one frame.

    Args:
        key: whole numbers of 0 or more; equal keys give equal frames.
        size: pixels per side.
        params: ranges that the frame draws from.
        ground: a picture uint8 [size, size] to put the vessels on, in place of a drawn scene; it
            keeps its own noise and grey levels.
    """
    rng = np.random.default_rng([*key, _VESSELS])
    canvas = FastCanvas(size, params.draw("field_of_view_mm", rng))
    lumen, mu = _lumen(rng, canvas, params)
    blur = params.draw("blur_mm", rng) / canvas.pixel_mm
    vessel = _move(lumen.path_px * np.float32(mu * canvas.pixel_mm), rng, canvas, params)
    if ground is None:
        scene = draw_scene(np.random.default_rng([*key, _SCENE]), canvas, params)
        picture = _detect(vessel, scene, blur, np.random.default_rng([*key, _NOISE]), params)
        opened = scene.opened
    else:
        if blur > _LEAST_BLUR:
            vessel = cv2.GaussianBlur(vessel, (0, 0), blur)
        # The scattered light of the picture stays where it is: only the rest is absorbed.
        scatter = np.float32(params.draw("scatter", rng))
        picture = ground * ((1 - scatter) * cv2.exp(-vessel) + scatter)
        opened = ground > _CLOSED_GREY
    image = cv2.convertScaleAbs(np.maximum(picture, 0))
    return Frame(image, (lumen.inside & opened).astype(np.uint8), vessel)


def _lumen(
    rng: np.random.Generator, canvas: FastCanvas, params: PretrainingParams
) -> tuple[Lumen, float]:
    """Everything that holds contrast, and its attenuation in 1/mm."""
    mu = float(np.exp(rng.uniform(*np.log(params.mu_per_mm))))
    lumen = Lumen(canvas.size)
    arteries = coronary_tree(rng, params, canvas.width_mm)
    tubes = [canvas.pieces(v.points, v.radius, v.labelled) for v in arteries]
    roots = [_root(vessel, canvas) for vessel in arteries]
    fine = twigs(rng, params.draw("twigs", rng), arteries)
    others = strays(rng, params.draw("strays", rng), canvas.width_mm)
    weights = [1.0] * len(fine) + list(rng.uniform(0.2, 1.0, len(others)))
    if fine + others:
        lines = [canvas.to_pixels(vessel.points) for vessel in fine + others]
        radii = [vessel.radius / canvas.pixel_mm for vessel in fine + others]
        tubes.append(Pieces.of_fine(lines, radii, weights))
        roots.append(None)
    lumen.add(tubes, roots)
    if rng.random() < params.catheter:
        _catheter(rng, lumen, arteries[0], canvas, mu)
    return lumen, mu


def _root(vessel: Vessel, canvas: FastCanvas) -> Root | None:
    if vessel.root_radius is None:
        return None
    x, y, _ = canvas.to_pixels(vessel.points[:1])[0]
    return float(x), float(y), max(vessel.root_radius / canvas.pixel_mm, 1.0)


def _catheter(
    rng: np.random.Generator, lumen: Lumen, stem: Vessel, canvas: FastCanvas, mu: float
) -> None:
    """Adds the catheter: wall all the way, and in it contrast or blood."""
    ostium, heading = stem.points[0], stem.points[8, :2] - stem.points[0, :2]
    points, outer = background.catheter_course(rng, canvas, ostium[:2], heading, ostium[2])
    wall = rng.uniform(0.6, 1.4) * _WALL_MU / mu
    filling = rng.uniform(0.3, 1.0) if rng.random() < 0.8 else 0.0
    x, y, _ = canvas.to_pixels(stem.points[:1])[0]
    shell, bore = Lumen(canvas.size), Lumen(canvas.size)
    shell.add([canvas.pieces(points, outer)])
    bore.add([canvas.pieces(points, _CATHETER_BORE * outer)])
    path = cv2.addWeighted(shell.path_px, wall, bore.path_px, filling - wall, 0.0)
    # In the artery's mouth the two are one shadow, not the sum of both.
    root = float(x), float(y), 2 * float(stem.radius[0]) / canvas.pixel_mm
    lumen.path_px += path - lumen.near(root) * np.minimum(path, lumen.path_px)


def _move(
    vessel: Array, rng: np.random.Generator, canvas: FastCanvas, params: PretrainingParams
) -> Array:
    """Mean of the vessels' shadow over a straight move of the heart."""
    length, turn = params.draw("motion_mm", rng) / canvas.pixel_mm, rng.uniform(0, np.pi)
    kernel = background.motion_kernel(length * rng.random(), turn)
    return vessel if kernel is None else cv2.filter2D(vessel, -1, kernel.astype(np.float32))


def _detect(
    vessel: Array, scene: Scene, blur: float, rng: np.random.Generator, params: PretrainingParams
) -> Array:
    """Scatter, blur, exposure, display and noise: grey levels."""
    scatter = params.draw("scatter", rng)
    light = cv2.multiply(scene.light, cv2.exp(-(scene.shade + vessel)))
    size = len(light)
    small = cv2.resize(light, (_VEIL, _VEIL), interpolation=cv2.INTER_AREA)
    veil = cv2.resize(cv2.GaussianBlur(small, (0, 0), _VEIL / 10), (size, size))
    light = cv2.addWeighted(light, 1 - scatter, veil, scatter, 0.0)
    if blur > _LEAST_BLUR:
        light = cv2.GaussianBlur(light, (0, 0), blur)
    some = light[::4, ::4]
    middle = float(np.median(some[scene.opened[::4, ::4]]))
    bright = float(np.percentile(some, 99))
    gamma, aim = params.draw("gamma", rng), params.draw("grey", rng)
    gain = min(aim / middle**gamma, 0.97 * _WHITE / bright**gamma)
    noise = _white_noise(rng, size)
    grain = params.draw("grain_px", rng)
    if grain > _LEAST_BLUR:
        noise = cv2.GaussianBlur(noise, (0, 0), grain)
        noise /= np.float32(cv2.meanStdDev(noise)[1][0, 0])
    # The deviation of counts is their root; the display curve is nearly straight over it.
    noise *= np.float32(params.draw("noise", rng) / middle**0.5) * cv2.sqrt(light)
    picture = np.float32(gain) * cv2.pow(light, gamma)
    strength, wide = params.draw("sharpening", rng), size * rng.uniform(0.008, 0.04)
    return _sharpened(picture, np.float32(strength), wide) + noise


def _white_noise(rng: np.random.Generator, size: int) -> Array:
    """Normal noise of 256 steps, float32 [size, size]: quick, and grey levels have no more."""
    steps = np.frombuffer(rng.bytes(size * size), np.uint8).reshape(size, size)
    return cv2.LUT(steps, _NORMAL_STEPS)


def _sharpened(picture: Array, strength: np.float32, wide: float) -> Array:
    """Unsharp masking over ``wide`` pixels, as angiography displays do: bright and dark rims."""
    small = cv2.resize(picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(small, (0, 0), max(wide / 4, 0.5))
    smooth = cv2.resize(smooth, picture.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.maximum(picture + strength * (picture - smooth), np.float32(_MIN_GREY))

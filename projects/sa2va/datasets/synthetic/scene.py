"""What else is in the beam of a pretraining frame, fast: organs, clutter, devices, light.

The organs are those of :mod:`.background`, drawn on a coarse canvas (their edges are soft) with
fields made of octaves instead of a spectrum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from projects.sa2va.datasets.synthetic import background
from projects.sa2va.datasets.synthetic.pretraining_params import PretrainingParams
from projects.sa2va.datasets.synthetic.tubes import Lumen, Pieces

Array = NDArray[np.float32]

_COARSE, _FINER = 128, 160
_OCTAVES = (3, 6, 12, 24, 48, 96)


def octaves(
    rng: np.random.Generator, size: int, slope: float, cut: float = 0, finest: int = 96
) -> Array:
    """Random field float32 [size, size], zero mean, unit deviation: value noise.

    Amplitudes fall with frequency^(1 - slope), which looks like the spectral fields of
    :mod:`.background` with this slope.
    """
    out = np.zeros((size, size), np.float32)
    for cells in _OCTAVES:
        if cut < cells <= finest:
            noise = rng.standard_normal((cells, cells), dtype=np.float32)
            noise *= np.float32(cells ** (1 - slope))
            out += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    mean, deviation = cv2.meanStdDev(out)
    return (out - np.float32(mean[0, 0])) / np.float32(deviation[0, 0])


class FastCanvas(background.Canvas):
    """A canvas whose fields and tubes are quick and in float32."""

    def __init__(self, size: int, field_of_view_mm: float) -> None:
        super().__init__(size, field_of_view_mm)
        self.x, self.y = self.x.astype(np.float32), self.y.astype(np.float32)

    def to_pixels(self, points: NDArray) -> NDArray:
        """Points [N, 3] in mm, as :class:`~.tubes.Lumen` wants them."""
        points = points / self.pixel_mm
        points[:, :2] += self.size / 2 - 0.5
        return points

    def pieces(
        self, points: NDArray, radius_mm: NDArray | float, labelled: int = 0, weight: float = 1.0
    ) -> Pieces:
        """Pieces of a tube given in mm, see :meth:`.tubes.Pieces.of`."""
        radius = np.broadcast_to(np.asarray(radius_mm) / self.pixel_mm, len(points))
        return Pieces.of(self.to_pixels(points), radius, labelled, weight)

    def field(self, rng: np.random.Generator, slope: float, cut: float = 0) -> Array:
        """Random field, see :func:`octaves`."""
        return octaves(rng, self.size, slope, cut)


@dataclass
class Scene:
    """The beam without vessels; arrays are float32 [size, size].

    Attributes:
        shade: exponent of the shadows (positive = darker).
        light: relative light that reaches the patient.
        opened: bool, where the collimator is open.
    """

    shade: Array
    light: Array
    opened: NDArray[np.bool_]


def draw_scene(rng: np.random.Generator, canvas: FastCanvas, params: PretrainingParams) -> Scene:
    """Tissue, organs, clutter, devices and the collimator."""
    full = (canvas.size, canvas.size)
    organs = FastCanvas(_COARSE, canvas.width_mm)
    shade = background.tissue(rng, organs, params.draw("background", rng)).astype(np.float32)
    shade = cv2.resize(shade, (_FINER, _FINER), interpolation=cv2.INTER_CUBIC)
    finer = FastCanvas(_FINER, canvas.width_mm)
    for _ in range(rng.poisson(params.draw("clutter", rng))):
        shade += _CLUTTER[rng.integers(len(_CLUTTER))](rng, finer)
    shade = cv2.resize(shade, full, interpolation=cv2.INTER_CUBIC)
    shade += devices(rng, canvas, params.draw("distractors", rng))
    vignetting = params.draw("vignetting", rng)
    light, opened = background.light_field(rng, finer, params.collimator, vignetting)
    light, opened = (
        cv2.resize(field.astype(np.float32), full, interpolation=cv2.INTER_LINEAR)
        for field in (light, opened)
    )
    return Scene(shade, light, opened > 0.5)


def devices(rng: np.random.Generator, canvas: FastCanvas, expected: float) -> Array:
    """Exponent of leads, wires and clips, float32 [size, size]; ``expected`` of them on average."""
    half, parts = canvas.width_mm / 2, []
    for _ in range(rng.poisson(expected)):
        kind = rng.choice(["lead", "wire", "clips"], p=[0.3, 0.45, 0.25])
        if kind == "lead":  # a coil with ring electrodes towards its tip
            points = background.curve_through(background.line_across(rng, half))
            parts.append(canvas.pieces(points, rng.uniform(0.35, 0.6), weight=0.16))
            for start in range(rng.integers(0, 5)):
                at = len(points) - 1 - int(rng.integers(9, 16)) * start
                parts.append(canvas.pieces(points[at - 5 : at], 0.75, weight=0.5))
        elif kind == "wire":  # a guide wire, or a cable on the skin
            points = background.curve_through(background.line_across(rng, half))
            weight = rng.uniform(0.2, 0.5)
            parts.append(canvas.pieces(points, rng.uniform(0.15, 0.3), weight=weight))
        else:
            at, weight = rng.uniform(-0.8, 0.8, 2) * half, rng.uniform(0.3, 0.9)
            for _ in range(rng.integers(1, 5)):
                at = at + rng.normal(0, 7, 2)
                turn = rng.uniform(0, np.pi)
                reach = rng.uniform(1.5, 3) * np.array([np.cos(turn), np.sin(turn)])
                ends = np.column_stack([np.linspace(at - reach, at + reach, 6), np.zeros(6)])
                parts.append(canvas.pieces(ends, rng.uniform(0.3, 0.6), weight=weight))
    lumen = Lumen(canvas.size)
    lumen.add(parts)
    return lumen.path_px * np.float32(canvas.pixel_mm)


def _edge(rng: np.random.Generator, canvas: FastCanvas) -> Array:
    """The border of something large: heart, breast, pleura, a pad below the patient."""
    half = canvas.width_mm / 2
    turn = rng.uniform(0, 2 * np.pi)
    along = canvas.x * math.cos(turn) + canvas.y * math.sin(turn)
    across = canvas.y * math.cos(turn) - canvas.x * math.sin(turn)
    distance = across - rng.uniform(-0.9, 0.9) * half - rng.uniform(-6, 6) * (along / half) ** 2
    step = background.soft_step(distance, math.exp(rng.uniform(-0.7, 2.2)))
    return np.float32(rng.uniform(0.04, 0.25)) * step


def _fold(rng: np.random.Generator, canvas: FastCanvas) -> Array:
    """A wide dark or light band with soft or sharp rims."""
    half = canvas.width_mm / 2
    turn = rng.uniform(0, 2 * np.pi)
    along = canvas.x * math.cos(turn) + canvas.y * math.sin(turn)
    across = canvas.y * math.cos(turn) - canvas.x * math.sin(turn)
    distance = across - rng.uniform(-0.9, 0.9) * half - rng.uniform(-12, 12) * (along / half) ** 2
    band = np.exp(-((distance / math.exp(rng.uniform(-0.3, 2.3))) ** 2))
    fade = background.soft_step(along - rng.uniform(-1, 0.6) * half, rng.uniform(3, 25))
    return np.float32(rng.uniform(-0.08, 0.16)) * band * fade


def _blotches(rng: np.random.Generator, canvas: FastCanvas) -> Array:
    """Lung markings, bowel, calcium: mottling in a part of the picture."""
    field = octaves(rng, canvas.size, rng.uniform(0.9, 1.6), cut=6)
    where = background.soft_step(octaves(rng, canvas.size, 2.2, finest=12) - 0.4, 0.4)
    return np.float32(rng.uniform(0.03, 0.12)) * field * where


def _wisps(rng: np.random.Generator, canvas: FastCanvas) -> Array:
    """Thin winding dark lines where a smooth field crosses zero: lung vessels, trabeculae."""
    field = octaves(rng, canvas.size, rng.uniform(1.4, 2.0), cut=3, finest=48)
    width = rng.uniform(0.05, 0.25)
    where = background.soft_step(octaves(rng, canvas.size, 2.2, finest=12) - 0.2, 0.4)
    return np.float32(rng.uniform(0.03, 0.14)) * np.exp(-((field / np.float32(width)) ** 2)) * where


def _ring(rng: np.random.Generator, canvas: FastCanvas) -> Array:
    """A round or oval thing with a rim: bowel gas, electrode, valve."""
    half = canvas.width_mm / 2
    at, radius = rng.uniform(-1, 1, 2) * half, math.exp(rng.uniform(0.5, 3.0))
    oval = rng.uniform(0.5, 1.0)
    distance = np.hypot(canvas.x - float(at[0]), (canvas.y - float(at[1])) / oval) - radius
    body = background.soft_step(-distance, rng.uniform(0.5, 4))
    rim = np.exp(-((distance / rng.uniform(0.5, 1.5)) ** 2))
    return np.float32(rng.uniform(-0.2, 0.2)) * body + np.float32(rng.uniform(0, 0.12)) * rim


_CLUTTER = (_edge, _edge, _fold, _blotches, _wisps, _ring)

"""What else is in the beam: tissue, lung, diaphragm, spine, ribs, catheter, wires, collimator.

Everything is defined in mm around the picture's centre, so that a seed gives the same scene at
every picture size. Shadows are exponents of the Beer-Lambert law (positive = darker).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from projects.sa2va.datasets.synthetic.projection import path_length, tube_balls

Array = NDArray[np.float64]

_FIELD_GRID = 192


class Canvas:
    """Pixel centres of a square picture in mm, (0, 0) in the middle.

    Attributes:
        x, y: [1, size] and [size, 1] in mm.
    """

    def __init__(self, size: int, field_of_view_mm: float) -> None:
        self.size, self.width_mm = size, field_of_view_mm
        self.pixel_mm = field_of_view_mm / size
        axis = (np.arange(size) + 0.5) * self.pixel_mm - field_of_view_mm / 2
        self.x, self.y = axis[None, :], axis[:, None]

    def tube(self, points: Array, radius_mm: float, rays: int = 2) -> Array:
        """Path length [size, size] in mm through a tube of constant radius."""
        centres, radii = tube_balls(points, np.full(len(points), radius_mm), self.pixel_mm / 4)
        return path_length(centres, radii, self.size, self.pixel_mm, rays)

    def field(self, rng: np.random.Generator, slope: float, cut: float = 0) -> Array:
        """Random field, see :func:`smooth_field`."""
        return smooth_field(rng, self, slope, cut)


def smooth_field(rng: np.random.Generator, canvas: Canvas, slope: float, cut: float = 0) -> Array:
    """Random field [size, size] of zero mean and unit deviation, amplitude ~ 1 / frequency^slope.

    Args:
        rng: source of randomness; the number of draws does not depend on the picture's size.
        canvas: the picture.
        slope: larger is smoother; 2 looks like tissue.
        cut: frequencies (cycles per picture) below this are left out.
    """
    noise = rng.standard_normal((_FIELD_GRID, _FIELD_GRID))
    frequency = np.hypot(
        np.fft.fftfreq(_FIELD_GRID)[:, None], np.fft.rfftfreq(_FIELD_GRID)[None, :]
    )
    frequency *= _FIELD_GRID
    gain = np.where(frequency > cut, np.maximum(frequency, 1.0) ** -slope, 0.0)
    gain[0, 0] = 0.0
    # The field is periodic; a part of it hides that the left border fits to the right one.
    field = np.fft.irfft2(np.fft.rfft2(noise) * gain, s=noise.shape)[:144, :144]
    field = (field - field.mean()) / field.std()
    at = (np.arange(canvas.size) + 0.5) * 144 / canvas.size - 0.5
    return ndimage.map_coordinates(
        field, np.meshgrid(at, at, indexing="ij"), order=3, mode="nearest"
    )


def soft_step(distance_mm: Array, width_mm: float) -> Array:
    """0 far below zero, 1 far above, over about ``2 * width_mm``."""
    return 0.5 * (1 + np.tanh(distance_mm / width_mm))


def tissue(rng: np.random.Generator, canvas: Canvas, amount: float) -> Array:
    """Exponent of everything that is not contrast: smooth tissue, lung, diaphragm, spine, ribs.

    Each organ is there or not by chance; ``amount`` scales all of them (0 gives a flat field).
    """
    half = canvas.width_mm / 2
    shade = rng.uniform(0.08, 0.2) * canvas.field(rng, 2.2)
    shade += rng.uniform(0.02, 0.045) * canvas.field(rng, 1.15, cut=5)
    shade += rng.uniform(-0.2, 0.2) * canvas.x / half + rng.uniform(-0.2, 0.2) * canvas.y / half
    present = rng.random(4) < (0.75, 0.65, 0.5, 0.6)
    for there, organ in zip(present, (_lung, _diaphragm, _spine, _ribs), strict=True):
        # Each organ has its own stream: leaving one out must not change the others.
        stream = np.random.default_rng(rng.integers(2**63))
        if there:
            shade += organ(stream, canvas)
    return amount * shade


def _lung(rng: np.random.Generator, canvas: Canvas) -> Array:
    """Air outside the heart's silhouette is lighter, with fine markings."""
    half = canvas.width_mm / 2
    angle = (
        rng.uniform(-0.5 * np.pi, 0.15 * np.pi) if rng.random() < 0.75 else rng.uniform(2.6, 3.8)
    )
    radius = rng.uniform(60, 120)
    # The border of the silhouette crosses the picture at this distance from its centre.
    border = rng.uniform(0.35, 0.95) * half
    centre = (border - radius) * np.cos(angle), (border - radius) * np.sin(angle)
    outside = np.hypot(canvas.x - centre[0], canvas.y - centre[1]) - radius
    outside = outside + 3 * canvas.field(rng, 2.0)
    air = soft_step(outside, rng.uniform(1.5, 7))
    markings = np.abs(canvas.field(rng, 1.3, cut=3)) - 0.8
    return air * (-rng.uniform(0.2, 0.5) - 0.07 * markings - 0.002 * np.maximum(outside, 0))


def _diaphragm(rng: np.random.Generator, canvas: Canvas) -> Array:
    """A dome of liver below the heart, with a sharp upper edge."""
    half = canvas.width_mm / 2
    radius = rng.uniform(45, 130)
    top = rng.uniform(-0.1, 0.75) * half
    dome = radius - np.hypot(canvas.x - rng.uniform(-0.7, 0.7) * half, canvas.y - top - radius)
    inside = soft_step(dome, rng.uniform(0.5, 2.0))
    return inside * (rng.uniform(0.1, 0.28) + 0.0025 * np.clip(dome, 0, 60))


def _spine(rng: np.random.Generator, canvas: Canvas) -> Array:
    """A column of vertebrae: darker, with lighter discs and darker pedicles."""
    half = canvas.width_mm / 2
    width = rng.uniform(15, 21)
    middle = (
        rng.choice([-1, 1]) * rng.uniform(0.25, 0.95) * half + rng.uniform(-0.1, 0.1) * canvas.y
    )
    across = canvas.x - middle
    height = rng.uniform(22, 28)
    level = np.mod(canvas.y + 0.06 * across + rng.uniform(0, height), height) / height
    disc = np.exp(-(((level - 0.5) * height / 2.2) ** 2))
    plate = np.exp(-(((np.abs(level - 0.5) * height - 3.6) / 0.9) ** 2))
    pedicle = np.exp(
        -((np.abs(across) - 0.55 * width) ** 2 / 7 + ((level - 0.1) * height) ** 2 / 18)
    )
    spinous = np.exp(-(across**2 / 6 + ((level - 0.25) * height) ** 2 / 50))
    waist = width + 1.4 * np.cos(2 * np.pi * (level - 0.5))
    column = soft_step(waist - np.abs(across), rng.uniform(0.8, 2.5))
    detail = rng.uniform(0.3, 1.0)
    bone = 0.05 * plate - 0.07 * disc + 0.06 * pedicle + 0.05 * spinous
    return column * (rng.uniform(0.2, 0.42) + detail * bone)


def _ribs(rng: np.random.Generator, canvas: Canvas) -> Array:
    """Parallel curved bands, darker at their rims, as a hollow bone is."""
    slope, curve = rng.uniform(-0.6, 0.6), rng.uniform(-1, 1) * 0.004
    gap, width = rng.uniform(24, 34), rng.uniform(4.0, 6.0)
    along = canvas.x - rng.uniform(-30, 30)
    level = canvas.y - slope * along - curve * along**2 + rng.uniform(0, gap)
    level = level + 1.5 * canvas.field(rng, 2.2)
    distance = np.abs(np.mod(level, gap) - gap / 2)
    band = soft_step(width - distance, 0.9)
    rim = np.exp(-(((distance - width + 0.8) / 0.8) ** 2))
    return rng.uniform(0.025, 0.07) * band + rng.uniform(0.015, 0.05) * rim


def curve_through(knots: Array, count: int = 240) -> Array:
    """Cubic Bezier curve [count, 3] from four control points [4, 3] in mm."""
    t = np.linspace(0, 1, count)[:, None]
    a, b, c, d = knots
    return (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d


def catheter_course(
    rng: np.random.Generator, canvas: Canvas, ostium: Array, heading: Array, depth: float
) -> tuple[Array, float]:
    """Axis [N, 3] of a catheter from the border to the ostium, and its outer radius; both in mm.

    Args:
        rng: source of randomness.
        canvas: the picture.
        ostium: [2], where the artery begins, in mm.
        heading: [2], direction in which the artery leaves, as seen in the picture.
        depth: z of the ostium in mm.
    """
    half = canvas.width_mm / 2
    heading = heading / max(float(np.hypot(*heading)), 1e-6)
    reach = rng.uniform(14, 26)
    if rng.random() < 0.8:
        entry = np.array([np.clip(ostium[0] + rng.uniform(-35, 35), -half, half), -half - 4])
        lead = entry + np.array([rng.uniform(-10, 10), 0.5 * (ostium[1] - entry[1])])
    else:
        side = -1.0 if ostium[0] < 0 else 1.0
        entry = np.array(
            [side * (half + 4), np.clip(ostium[1] + rng.uniform(-25, 15), -half, half)]
        )
        lead = entry + np.array([0.5 * (ostium[0] - entry[0]), rng.uniform(0, 25)])
    knots = np.stack([entry, lead, ostium - reach * heading, ostium + 0.6 * heading])
    points = curve_through(np.column_stack([knots, np.full(4, depth)]))
    return points, rng.uniform(0.95, 1.25)


def catheter(
    rng: np.random.Generator, canvas: Canvas, ostium: Array, heading: Array, depth: float
) -> tuple[Array, Array]:
    """A catheter from the border to the ostium, see :func:`catheter_course`.

    Returns:
        Path lengths [size, size] in mm through the outer tube (1.9 to 2.5 mm wide, 6 to 8 French)
        and through its lumen. Their difference is the wall, longest at the rims: hence the dark
        edges.
    """
    points, outer = catheter_course(rng, canvas, ostium, heading, depth)
    return canvas.tube(points, outer), canvas.tube(points, 0.68 * outer)


def distractors(rng: np.random.Generator, canvas: Canvas, expected: float) -> Array:
    """Exponent of things that are thin, dark and no vessels; ``expected`` of them on average."""
    half = canvas.width_mm / 2
    shade = np.zeros((canvas.size, canvas.size))
    for _ in range(rng.poisson(expected)):
        kind = rng.choice(["lead", "wire", "clips", "electrode"], p=[0.3, 0.35, 0.2, 0.15])
        if kind == "lead":  # pacing lead: coil with two or three ring electrodes at its tip
            knots = line_across(rng, half)
            points = curve_through(knots)
            shade += 0.16 * canvas.tube(points, 0.55)
            for start in range(0, 3):
                ring = points[-1 - 12 * start - 5 : len(points) - 12 * start]
                shade += 0.5 * canvas.tube(ring, 0.75)
        elif kind == "wire":  # guide wire, or a cable on the skin
            shade += rng.uniform(0.25, 0.5) * canvas.tube(
                curve_through(line_across(rng, half)), rng.uniform(0.16, 0.28)
            )
        elif kind == "clips":
            at = rng.uniform(-0.8, 0.8, 2) * half
            for _ in range(rng.integers(1, 5)):
                at = at + rng.normal(0, 7, 2)
                turn = rng.uniform(0, np.pi)
                reach = rng.uniform(1.5, 3) * np.array([np.cos(turn), np.sin(turn)])
                ends = np.column_stack([np.stack([at - reach, at + reach]), [0.0, 0.0]])
                shade += 0.9 * canvas.tube(ends, 0.4)
        else:  # ECG electrode: a ring with a snap in the middle, usually near the border
            at = rng.uniform(0.65, 1.0) * half * rng.choice([-1, 1], 2)
            distance = np.hypot(canvas.x - at[0], canvas.y - at[1])
            radius = rng.uniform(4, 8)
            shade += 0.25 * np.exp(-(((distance - radius) / 0.5) ** 2))
            shade += 0.35 * soft_step(2.0 - distance, 0.3)
    return shade


def line_across(rng: np.random.Generator, half: float) -> Array:
    """Bezier knots [4, 3] of a line that comes in over a border and ends inside."""
    turn = rng.uniform(0, 2 * np.pi)
    start = 1.5 * half * np.array([np.cos(turn), np.sin(turn)])
    stop = rng.uniform(-0.7, 0.7, 2) * half
    between = start + (stop - start) * np.array([[0.35], [0.7]]) + rng.normal(0, 14, (2, 2))
    return np.column_stack([np.vstack([start, between, stop]), np.zeros(4)])


def light_field(
    rng: np.random.Generator, canvas: Canvas, collimated: float, vignetting: float
) -> tuple[Array, Array]:
    """Relative light [size, size] in (0, 1] and the part of the picture that the blades leave open.

    Args:
        rng: source of randomness.
        canvas: the picture.
        collimated: probability that blades are in view.
        vignetting: light lost in the far corners.

    Returns:
        Relative light, and bool [size, size], True where more than half of it passes the blades.
    """
    half = canvas.width_mm / 2
    off = rng.uniform(-0.2, 0.2, 2) * half
    distance = np.hypot(canvas.x - off[0], canvas.y - off[1]) / (half * np.sqrt(2))
    light = 1 - vignetting * np.minimum(distance, 1.2) ** 2.5 / 1.2**2.5
    there = rng.random() < collimated
    # Left, right, top, bottom; mostly thin margins, now and then a blade far inside.
    margin = rng.uniform(0.0, 0.07, 4) * canvas.width_mm
    margin[rng.integers(4)] *= 2.0
    corner, soft = rng.uniform(1, 6), rng.uniform(0.3, 1.0)
    leak = rng.uniform(0.03, 0.15)
    if not there:
        return light, np.ones((canvas.size, canvas.size), bool)
    left, right, top, bottom = margin
    # Signed distance to a rectangle with rounded corners.
    dx = np.abs(canvas.x - (left - right) / 2) - (half - (left + right) / 2 - corner)
    dy = np.abs(canvas.y - (top - bottom) / 2) - (half - (top + bottom) / 2 - corner)
    gone = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
    opened = soft_step(corner - gone, soft)
    return light * (leak + (1 - leak) * opened), opened > 0.5


def motion_kernel(length_px: float, turn: float) -> Array | None:
    """Kernel of the mean over a straight move of ``length_px`` pixels in direction ``turn``.

    Returns:
        Square array of odd size that sums to 1; None where the move is too short to be seen.
    """
    if length_px < 0.05:
        return None
    reach = int(np.ceil(length_px / 2)) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for step in np.linspace(-0.5, 0.5, 4 * reach + 1) * length_px:
        x, y = reach + step * np.cos(turn), reach + step * np.sin(turn)
        column, row = int(np.floor(x)), int(np.floor(y))
        dx, dy = x - column, y - row
        for r, c, weight in (
            (row, column, (1 - dy) * (1 - dx)),
            (row, column + 1, (1 - dy) * dx),
            (row + 1, column, dy * (1 - dx)),
            (row + 1, column + 1, dy * dx),
        ):
            if weight > 0:
                kernel[r, c] += weight
    return kernel / kernel.sum()

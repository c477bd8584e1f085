"""Vessels of a pretraining frame: a coronary tree that winds and narrows, twigs, stray vessels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from projects.sa2va.datasets.synthetic.anatomy import STEP_MM, Tree, grow_tree, view_rotation
from projects.sa2va.datasets.synthetic.pretraining_params import PretrainingParams

Array = NDArray[np.float64]

_WAVES = 10
_MOTHERS = {"LAD": "LM", "LCx": "LM", "PDA": "RCA", "PLV": "RCA"}
_TWIG_STEP_MM = 0.8
_STRAIGHT = (0.05, 0.3)  # how much the ends of arteries wander, see `walks`
# Near the ostium an artery is tied to the aorta; it winds where the heart's surface moves most.
_TIED_MM = 30.0


@dataclass
class Vessel:
    """A piece of vessel in the picture.

    Attributes:
        points: [N, 3] in mm: x to the right, y down, the picture's centre at (0, 0); z to the
            detector.
        radius: [N] in mm.
        labelled: so many of the first points are labelled.
        root_radius: radius of the vessel that it branches off, None where it begins by itself.
    """

    points: Array
    radius: Array
    labelled: int = 0
    root_radius: float | None = None


def coronary_tree(
    rng: np.random.Generator, params: PretrainingParams, width_mm: float
) -> list[Vessel]:
    """Arteries of a tree in a working view, mothers before daughters; the first has the ostium.

    Labels are what ARCADE's annotators draw: each artery from its origin to where it becomes
    thinner than the frame's threshold for good, narrow places before that included; a branch that
    begins thinner is left out with all that leaves it.
    """
    tree = grow_tree(
        rng,
        vessel_scale=params.draw("vessel_scale", rng),
        tortuosity=params.draw("tortuosity", rng),
        twigs=0.0,
    )
    placed = _in_view(rng, tree, params.draw("winding_mm", rng), width_mm)
    threshold = params.draw("min_label_mm", rng)
    rough = params.draw("irregularity", rng)
    changes = params.draw("narrowings", rng)
    vessels: dict[str, Vessel] = {}
    for branch, points in zip(tree.branches, placed, strict=True):
        mother = vessels.get(_MOTHERS.get(branch.name) or branch.name.rpartition(".")[0])
        thick = np.flatnonzero(2 * branch.radius >= threshold)
        labelled = int(thick[-1]) + 1 if len(thick) else 0
        root_radius = None
        if mother is not None:
            at = int(np.argmin(((mother.points - points[0]) ** 2).sum(axis=1)))
            root_radius = float(mother.radius[at])
            if at >= mother.labelled:
                labelled = 0
        radius = _altered(rng, branch.radius, rough, changes / len(tree.branches))
        vessels[branch.name] = Vessel(points, radius, labelled, root_radius)
    # Grown arteries stop at a calibre; real ones run out of sight.
    ends = [vessel for name, vessel in vessels.items() if name not in _MOTHERS.values()]
    _run_out(rng, ends, threshold)
    return list(vessels.values())


def _run_out(rng: np.random.Generator, arteries: list[Vessel], threshold: float) -> None:
    """Lengthens arteries until they are hairs."""
    last = np.stack([vessel.points[-1] for vessel in arteries])
    ahead = last - np.stack([vessel.points[-6] for vessel in arteries])
    heading = np.arctan2(ahead[:, 1], ahead[:, 0])
    count = len(arteries)
    tails = walks(rng, last, heading, np.ones(count), rng.uniform(8, 40, count), _STRAIGHT)
    for vessel, tail in zip(arteries, tails, strict=True):
        radius = vessel.radius[-1] * np.linspace(1, rng.uniform(0.1, 0.5), len(tail.points))[1:]
        if vessel.labelled == len(vessel.points):
            vessel.labelled += int((2 * radius >= threshold).sum())
        vessel.points = np.concatenate([vessel.points, tail.points[1:]])
        vessel.radius = np.concatenate([vessel.radius, radius])


def _in_view(
    rng: np.random.Generator, tree: Tree, winding_mm: float, width_mm: float
) -> list[Array]:
    """Points [N, 3] in mm of each branch, as the picture shows them."""
    low, high = ((-40, 60), (-40, 65))[tree.side == "right"]
    rotation = view_rotation(rng.uniform(low, high), rng.uniform(-35, 40))
    roll = rng.normal(0, 0.15)
    cos, sin = np.cos(roll), np.sin(roll)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ rotation
    placed = tree.place(float(rng.random()))
    points = np.concatenate(placed)
    # One field moves all of space, so that branches stay where they leave their mothers.
    waves = rng.uniform(9, 38, _WAVES)
    directions = rng.standard_normal((2, _WAVES, 3))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    phase = points @ (2 * np.pi * directions[0] / waves[:, None]).T + rng.uniform(0, 7, _WAVES)
    heights = winding_mm * (waves / 20) * rng.uniform(0.3, 1, _WAVES) / np.sqrt(_WAVES / 2)
    free = 1 - np.exp(-((np.linalg.norm(points - points[0], axis=1) / _TIED_MM) ** 2))
    points = points + free[:, None] * (np.sin(phase) * heights) @ directions[1]
    points = points @ rotation.T
    flat = points[:, :2]
    middle = (flat.min(axis=0) + flat.max(axis=0)) / 2 + rng.normal(0, 9, 2)
    # Most frames show the ostium.
    half = 0.92 * width_mm / 2
    if rng.random() < 0.85:
        middle = np.clip(middle, flat[0] - half, flat[0] + half)
    points[:, :2] -= middle
    return np.split(points, np.cumsum([len(part) for part in placed])[:-1])


def _altered(rng: np.random.Generator, radius: Array, rough: float, expected: float) -> Array:
    """A calibre with irregular walls, stenoses and dilatations."""
    count = len(radius)
    grain = ndimage.gaussian_filter1d(rng.standard_normal(count), 2.0 / STEP_MM, mode="nearest")
    factor = np.exp(rough * grain / max(float(grain.std()), 1e-6))
    for _ in range(rng.poisson(expected)):
        at, width = rng.uniform(0.05, 0.8) * count, rng.uniform(0.8, 5) / STEP_MM
        depth = rng.uniform(0.25, 0.85) if rng.random() < 0.75 else -rng.uniform(0.15, 0.45)
        factor *= 1 - depth * np.exp(-(((np.arange(count) - at) / width) ** 2))
    return radius * factor


def twigs(rng: np.random.Generator, expected: float, arteries: list[Vessel]) -> list[Vessel]:
    """Fine unlabelled side branches, and finer ones off these."""
    first = _twigs_off(rng, rng.poisson(0.7 * expected), arteries)
    return first + (_twigs_off(rng, rng.poisson(0.3 * expected), first) if first else [])


def _twigs_off(rng: np.random.Generator, count: int, mothers: list[Vessel]) -> list[Vessel]:
    """Twigs that leave their mothers at an acute angle."""
    if not count:
        return []
    lengths = np.array([len(mother.points) for mother in mothers])
    which = rng.choice(len(mothers), count, p=lengths / lengths.sum())
    spot = (rng.uniform(0.08, 0.95, count) * (lengths[which] - 3)).astype(int) + 1
    start = np.stack([mothers[m].points[s] for m, s in zip(which, spot, strict=True)])
    ahead = np.stack([mothers[m].points[s + 1] for m, s in zip(which, spot, strict=True)]) - start
    thickest = np.array([mothers[m].radius[s] for m, s in zip(which, spot, strict=True)])
    # Perforators leave a stretch of artery to one side, at similar angles.
    side = np.where(rng.random(count) < 0.8, np.sign(rng.normal(size=len(mothers)))[which], 1)
    heading = np.arctan2(ahead[:, 1], ahead[:, 0]) + side * rng.uniform(0.5, 1.5, count)
    radius = np.minimum(rng.uniform(0.12, 0.42, count), 0.7 * thickest)
    return walks(rng, start, heading, radius, rng.gamma(3.0, 6.0, count) + 3)


def strays(rng: np.random.Generator, expected: float, width_mm: float) -> list[Vessel]:
    """Unlabelled vessels that begin anywhere: lung vessels, veins, collaterals, other arteries."""
    count = rng.poisson(expected)
    if not count:
        return []
    start = np.column_stack([rng.uniform(-0.5, 0.5, (count, 2)) * width_mm, np.zeros(count)])
    radius = 0.15 * np.exp(rng.uniform(0, 1.6, count))
    heading, length = rng.uniform(-np.pi, np.pi, count), rng.gamma(3.0, 10.0, count) + 5
    main = walks(rng, start, heading, radius, length)
    return main + _twigs_off(rng, rng.poisson(expected), main)


def walks(
    rng: np.random.Generator,
    start: Array,
    heading: Array,
    radius: Array,
    length: Array,
    wander: tuple[float, float] = (0.1, 0.7),
) -> list[Vessel]:
    """Tapering vessels that wander in the picture's plane.

    Args:
        rng: source of randomness.
        start: [K, 3] in mm.
        heading: [K], the first direction in the picture, in radians.
        radius: [K], the first radius in mm.
        length: [K] in mm.
        wander: range of the deviation of their curvature, in 1 / 0.8 mm before smoothing.
    """
    steps = max(6, int(length.max() / _TWIG_STEP_MM))
    turns = rng.standard_normal((len(start), steps))
    # Curvature is a smooth random function of the way, of a size that differs by vessel.
    turns = ndimage.gaussian_filter1d(turns, 2.5, axis=1, mode="nearest")
    turns *= rng.uniform(*wander, (len(start), 1))
    angle = heading[:, None] + np.cumsum(turns, axis=1)
    moves = _TWIG_STEP_MM * np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=2)
    points = np.concatenate([start[:, None], start[:, None] + np.cumsum(moves, axis=1)], axis=1)
    out = []
    for line, size, extent in zip(points, radius, length, strict=True):
        count = max(5, int(extent / _TWIG_STEP_MM))
        out.append(Vessel(line[:count], size * np.linspace(1, 0.45, count)))
    return out

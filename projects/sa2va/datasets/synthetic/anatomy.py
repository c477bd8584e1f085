"""Random coronary trees on the surface of a beating ellipsoid.

Left trees follow the main stem, the anterior interventricular groove (LAD) and the left
atrioventricular groove (LCx); right trees the right atrioventricular groove (RCA) and the crux
(PDA, PLV). Where lumen divides, radii obey Murray's law, r0^3 = r1^3 + r2^3 (C. D. Murray, PNAS 12,
1926, p. 207); between divisions they taper gently.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Array = NDArray[np.float64]

STEP_MM = 0.5
_MEAN_RADIUS_MM = 45.0  # turns angles on the unit sphere into lengths while a tree is grown
_MIN_RADIUS_MM = 0.28

# Patient axes: x to the patient's left, y down, z to the front. The heart's apex points to the
# left, down and forward; _ANTERIOR is the side on which the LAD runs.
_APEX = np.array([0.62, 0.55, 0.55])
_ANTERIOR = np.array([0.2, -0.3, 0.9])

# (angle from the base, longitude) in degrees; longitude 0 is the anterior groove, 90 the left side.
_COURSES = {
    "LM": [(34, -26), (42, -16), (51, -6)],
    "LAD": [(51, -6), (70, 0), (95, 5), (125, 4), (152, 0), (170, -12)],
    "LCx": [(51, -6), (64, 18), (75, 48), (82, 80), (92, 112)],
    "RCA": [(33, -52), (50, -76), (70, -104), (80, -135), (83, -162), (84, -184)],
    "PDA": [(84, -184), (102, -183), (128, -180), (152, -178)],
    "PLV": [(84, -184), (86, -204), (98, -222), (120, -230)],
}


_MAIN = ("LAD", "LCx", "RCA", "PDA", "PLV")


@dataclass
class Branch:
    """A piece of artery: ``points`` [N, 3] on the unit sphere, lumen ``radius`` [N] in mm."""

    name: str
    points: Array
    radius: Array
    twig: bool = False


@dataclass
class Tree:
    """A coronary tree in the heart's own frame; ``branches[0]`` starts at the ostium.

    ``junctions`` lists (r0, r1, r2) in mm at every division, for checks of Murray's law.
    """

    side: str
    semi_axes_mm: Array
    axes: Array
    branches: list[Branch] = field(default_factory=list)
    junctions: list[tuple[float, float, float]] = field(default_factory=list)

    def place(self, phase: float) -> list[Array]:
        """Points of every branch [N, 3] in mm, patient axes; ``phase`` 0 relaxed, 1 contracted."""
        # End systole: about 15 % shorter short axes, 10 % shorter long axis, some torsion.
        shape = self.semi_axes_mm * (1 - phase * np.array([0.15, 0.15, 0.10]))
        placed = []
        for branch in self.branches:
            twist = 0.18 * phase * branch.points[:, 2]
            cos, sin = np.cos(twist), np.sin(twist)
            x, y, z = branch.points.T
            turned = np.stack([x * cos - y * sin, x * sin + y * cos, z], axis=1)
            placed.append((turned * shape) @ self.axes)
        return placed


def view_rotation(primary_deg: float, secondary_deg: float) -> Array:
    """Rotation [3, 3] from patient axes to picture axes (x right, y down, z to the detector).

    Args:
        primary_deg: positive is LAO (detector to the patient's left), negative RAO.
        secondary_deg: positive is cranial, negative caudal.
    """
    a, b = np.deg2rad([primary_deg, secondary_deg])
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    return tilt @ turn


def grow_tree(
    rng: np.random.Generator, *, vessel_scale: float, tortuosity: float, twigs: float
) -> Tree:
    """Grows one patient's tree.

    Args:
        rng: source of all randomness.
        vessel_scale: factor on the radii.
        tortuosity: factor on the waviness.
        twigs: expected number of thin unlabelled twigs per main artery.
    """
    apex = _unit(_APEX + rng.normal(0, 0.1, 3))
    front = _unit(_ANTERIOR - (_ANTERIOR @ apex) * apex)
    side = "left" if rng.random() < 0.6 else "right"
    tree = Tree(
        side=side,
        semi_axes_mm=np.array([41.0, 41.0, 54.0]) * rng.uniform(0.92, 1.1, 3),
        axes=np.stack([front, np.cross(apex, front), apex]),
    )
    grower = _Grower(tree, rng, tortuosity)
    # Twigs have a stream of their own: more or fewer of them must leave the labelled tree as it is.
    twig_grower = _Grower(tree, np.random.default_rng(rng.integers(2**63)), tortuosity)
    if side == "left":
        radius = rng.uniform(2.2, 2.7) * vessel_scale
        end = grower.artery("LM", radius, children=0, taper=0.03)
        share = rng.uniform(0.35, 0.55)
        first, second = grower.divide(end, share)
        grower.artery("LAD", first, children=int(rng.integers(2, 5)), taper=0.35)
        short = rng.uniform(0.65, 1.0)
        grower.artery("LCx", second, children=int(rng.integers(1, 4)), taper=0.3, keep=short)
    else:
        radius = rng.uniform(1.8, 2.4) * vessel_scale
        end = grower.artery("RCA", radius, children=int(rng.integers(1, 4)), taper=0.12)
        first, second = grower.divide(end, rng.uniform(0.35, 0.6))
        grower.artery("PDA", first, children=int(rng.integers(0, 3)), taper=0.35)
        grower.artery("PLV", second, children=int(rng.integers(1, 3)), taper=0.35)
    for artery in [branch for branch in tree.branches if branch.name in _MAIN]:
        twig_grower.twigs(artery, twigs)
    return tree


class _Grower:
    """Adds arteries and their side branches to a tree."""

    def __init__(self, tree: Tree, rng: np.random.Generator, tortuosity: float) -> None:
        self.tree, self.rng, self.tortuosity = tree, rng, tortuosity
        self.joints: dict[tuple[int, int], tuple[float, float]] = {}

    def divide(self, radius: float, share: float) -> tuple[float, float]:
        """Radii of the two daughters, ``share`` of the cubed radius going to the second."""
        daughters = radius * (1 - share) ** (1 / 3), radius * share ** (1 / 3)
        self.tree.junctions.append((radius, *daughters))
        return daughters

    def artery(
        self, name: str, radius: float, *, children: int, taper: float, keep: float = 1.0
    ) -> float:
        """Adds a named artery with its side branches; returns the radius at its end."""
        course = self._course(name, keep)
        points = _wave(course, self._wiggle(course, self.tortuosity))
        count = len(points)
        spots = np.linspace(0.15, 0.8, children + 1)[:-1] + self.rng.uniform(0, 0.12, children)
        return self._add(name, points, radius, taper, (spots * count).astype(int), level=0)

    def twigs(self, artery: Branch, expected: float) -> None:
        """Adds thin unlabelled branches, a Poisson distributed number of them."""
        count = len(artery.points)
        for number in range(self.rng.poisson(expected)):
            spot = int(self.rng.integers(count // 8, count - 3))
            radius = self.rng.uniform(0.15, 0.3)
            self._side_branch(f"{artery.name}.t{number + 1}", artery.points, spot, radius, 1, True)

    def _course(self, name: str, keep: float) -> Array:
        """Smooth path on the unit sphere through the artery's landmarks, points about 0.5 mm apart.

        A landmark shared by two courses gets the same jitter in both, so that daughters begin
        where their mother ends.
        """
        angles = []
        for landmark in _COURSES[name]:
            if landmark not in self.joints:
                # The main stem's landmarks are close together; more jitter would fold it.
                jitter = 2.5 if name == "LM" else 6.0
                self.joints[landmark] = tuple(self.rng.normal(0, jitter, 2))
            angles.append(np.add(landmark, self.joints[landmark]))
        lat, lon = np.deg2rad(np.array(angles)).T
        knots = np.stack([np.sin(lat) * np.cos(lon), np.sin(lat) * np.sin(lon), -np.cos(lat)], 1)
        gaps = np.linalg.norm(np.diff(knots, axis=0), axis=1)
        at = np.concatenate([[0.0], np.cumsum(gaps)])
        count = max(8, int(keep * at[-1] * _MEAN_RADIUS_MM / STEP_MM))
        points = CubicSpline(at, knots)(np.linspace(0, keep * at[-1], count))
        return points / np.linalg.norm(points, axis=1, keepdims=True)

    def _wiggle(self, points: Array, amount: float) -> Array:
        """Lateral displacement [N] in mm: sinusoids of 7 to 32 mm, growing away from the origin."""
        along = np.arange(len(points)) * STEP_MM
        waves = self.rng.uniform(7, 32, 4)
        phases = self.rng.uniform(0, 2 * np.pi, 4)
        heights = amount * 0.045 * waves * self.rng.uniform(0.3, 1, 4)
        shift = (
            heights[:, None] * np.sin(2 * np.pi * along / waves[:, None] + phases[:, None])
        ).sum(0)
        # Both ends of the course must stay where other arteries meet them.
        ends = np.minimum(along, along[::-1])
        return shift * (1 - np.exp(-ends / 8.0)) * (0.5 + along / max(along[-1], 1.0))

    def _add(
        self, name: str, points: Array, radius: float, taper: float, spots: NDArray, level: int
    ) -> float:
        """Appends a branch, and side branches at the indices ``spots``; returns the end radius."""
        count = len(points)
        profile = radius * (1 - taper * np.linspace(0, 1, count))
        daughters = []
        for spot in spots:
            spot = int(min(spot, count - 3))
            share = self.rng.uniform(0.14, 0.38)
            trunk, daughter = self.divide(float(profile[spot]), share)
            daughters.append((spot, daughter))
            # The trunk narrows over one of its diameters, not in a step.
            ramp = np.clip((np.arange(count) - spot) * STEP_MM / max(2 * radius, STEP_MM), 0, 1)
            profile = profile * (1 - (1 - trunk / profile[spot]) * ramp)
        end = float(profile[-1])
        if level == 0 and name != "LM" and self.rng.random() < 0.3:
            at, width = self.rng.uniform(0.15, 0.7) * count, self.rng.uniform(2, 5) / STEP_MM
            depth = self.rng.uniform(0.2, 0.5)
            profile = profile * (1 - depth * np.exp(-(((np.arange(count) - at) / width) ** 2)))
        self.tree.branches.append(Branch(name, points, profile))
        for number, (spot, daughter) in enumerate(daughters):
            self._side_branch(f"{name}.{number + 1}", points, spot, daughter, level + 1)
        return end

    def _side_branch(
        self, name: str, trunk: Array, spot: int, radius: float, level: int, twig: bool = False
    ) -> None:
        """Grows a branch off ``trunk[spot]`` along a bent and waved great circle."""
        if radius < _MIN_RADIUS_MM and not twig:
            return
        start = trunk[spot]
        ahead = _unit(trunk[min(spot + 3, len(trunk) - 1)] - trunk[max(spot - 3, 0)])
        aside = np.cross(start, ahead)
        angle = np.deg2rad(self.rng.uniform(32, 72))
        # Side branches supply the ventricle below their groove, that is, they run to the apex.
        to_apex = aside[2] if abs(aside[2]) > 0.4 else -aside[0] + aside[1]
        sign = 1.0 if to_apex > 0 else -1.0
        if self.rng.random() < 0.2:
            sign = -sign
        heading = _unit(np.cos(angle) * ahead + sign * np.sin(angle) * aside)
        length = (20 if twig else 38) * self.rng.uniform(0.7, 1.4) * (1 if twig else radius**0.7)
        count = max(6, int(length / STEP_MM))
        turn = np.arange(count) * STEP_MM / _MEAN_RADIUS_MM
        normal = np.cross(start, heading)
        bend = -sign * self.rng.uniform(-0.1, 0.5) * turn**2
        circle = np.cos(turn)[:, None] * start + np.sin(turn)[:, None] * heading
        points = _wave(circle, bend * _MEAN_RADIUS_MM, normal)
        points = _wave(points, self._wiggle(points, self.tortuosity), normal)
        children = int(self.rng.integers(0, 3)) if radius > 0.75 and level < 3 else 0
        if twig:
            self.tree.branches.append(Branch(name, points, np.full(count, radius), twig=True))
            return
        spots = (self.rng.uniform(0.25, 0.75, children) * count).astype(int)
        self._add(name, points, radius, 0.4, np.sort(spots), level)


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def _wave(points: Array, shift_mm: Array, normal: Array | None = None) -> Array:
    """Moves points [N, 3] of the unit sphere sideways by ``shift_mm`` [N] (mm on the heart)."""
    if normal is None:
        normal = np.cross(points, np.gradient(points, axis=0))
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    moved = points + (shift_mm / _MEAN_RADIUS_MM)[:, None] * normal
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)

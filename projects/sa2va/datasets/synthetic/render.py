"""From a seed to a picture and its mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from projects.sa2va.datasets.synthetic import background
from projects.sa2va.datasets.synthetic.anatomy import Tree, grow_tree, view_rotation
from projects.sa2va.datasets.synthetic.parameters import AngiogramParams
from projects.sa2va.datasets.synthetic.projection import path_length, tube_balls
from projects.sa2va.errors import ConfigError

Array = NDArray[np.float64]

# Raised whenever the same seed and parameters would give another picture.
GENERATOR_VERSION = 1

_TREE, _VIEW, _SCENE, _NOISE = range(4)
_MIN_SIZE = 32
_WALL_MU, _CATHETER_FILL = 0.2, 0.85
_WHITE = 255.0


@dataclass
class Layers:
    """A rendered frame and everything that it was made of; arrays are [size, size].

    Attributes:
        image: uint8, the picture.
        mask: uint8 {0, 1}, the labelled vessels.
        labelled_mm: mean path length through labelled lumen, mm.
        vessel_mm: the same through all lumen, twigs and thin ends included.
        mu_per_mm: attenuation of the lumen.
        shade: exponent of everything else: the ideal transmission is
            ``exp(-mu_per_mm * vessel_mm - shade) * light``.
        light: relative light that reaches the patient.
        catheter_mm: path length through the catheter, 0 outside it.
        gain: grey level of a transmission of 1.
        tree: the anatomy.
        meta: plain values, as returned by :func:`render`.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    labelled_mm: Array
    vessel_mm: Array
    mu_per_mm: float
    shade: Array
    light: Array
    catheter_mm: Array
    gain: float
    tree: Tree
    meta: dict[str, Any]


def render(
    seed: int,
    size: int = 256,
    params: AngiogramParams | None = None,
    *,
    patient: int = 0,
    frame: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, Any]]:
    """Renders one synthetic coronary angiogram.

    The same arguments give the same bytes: all randomness comes from numpy's PCG64 streams keyed
    by (seed, patient, frame), and quantum noise is scaled from draws that do not depend on the
    picture (between machines, a last digit of exp or sin could still tip a rounding).
    ``patient`` decides the anatomy, ``frame`` the view, cardiac phase, background and noise.

    Args:
        seed: 0 or more.
        size: pixels per side, at least 32.
        params: see :class:`AngiogramParams`.
        patient: 0 or more.
        frame: 0 or more.

    Returns:
        ``image`` uint8 [size, size], dark vessels on a lighter ground; ``mask`` uint8 {0, 1}
        [size, size], 1 where the mean path length through labelled lumen exceeds
        ``params.min_path_mm`` and the collimator is open; ``meta`` plain values (view angles,
        phase, millimetres per pixel, side, vessel fraction ...).

    Raises:
        ConfigError: a size below 32, or a negative seed, patient or frame.
    """
    layers = render_layers(seed, size, params, patient=patient, frame=frame)
    return layers.image, layers.mask, layers.meta


def render_layers(
    seed: int,
    size: int = 256,
    params: AngiogramParams | None = None,
    *,
    patient: int = 0,
    frame: int = 0,
) -> Layers:
    """As :func:`render`, with the layers that the picture was composed of."""
    params = params or AngiogramParams()
    for name, value, least in (
        ("size", size, _MIN_SIZE),
        ("seed", seed, 0),
        ("patient", patient, 0),
        ("frame", frame, 0),
    ):
        if value != int(value) or value < least:
            raise ConfigError(
                found=f"{name}={value} for a synthetic angiogram",
                expected=f"a whole number, at least {least}",
                fix=f"set {name} to {least} or more",
            )
    anatomy = np.random.default_rng([seed, patient, _TREE])
    tree = grow_tree(
        anatomy,
        vessel_scale=params.vessel_scale,
        tortuosity=anatomy.uniform(*params.tortuosity),
        twigs=params.at("twigs"),
    )
    view = np.random.default_rng([seed, patient, _VIEW, frame])
    scene = np.random.default_rng([seed, patient, _SCENE, frame])
    noise = np.random.default_rng([seed, patient, _NOISE, frame])

    canvas = background.Canvas(size, view.uniform(*params.field_of_view_mm))
    arteries, angles, phase = _project(view, tree, canvas)
    labelled_mm, vessel_mm = _lumen(tree, arteries, canvas, params)
    mu = params.at("mu_per_mm") * view.uniform(0.85, 1.15)

    shade = background.tissue(scene, canvas, params.at("background"))
    catheter_mm = np.zeros((size, size))
    streams = scene.integers(2**63, size=3)
    if params.catheter:
        ostium, next_point = arteries[0][0], arteries[0][8]
        outer, lumen = background.catheter(
            np.random.default_rng(streams[0]),
            canvas,
            ostium[:2],
            next_point[:2] - ostium[:2],
            ostium[2],
        )
        catheter_mm = outer
        shade = shade + _WALL_MU * (outer - lumen) + _CATHETER_FILL * mu * lumen
    shade = shade + background.distractors(
        np.random.default_rng(streams[1]), canvas, params.at("distractors")
    )
    light, opened = background.light_field(
        np.random.default_rng(streams[2]),
        canvas,
        params.at("collimator"),
        params.at("vignetting"),
    )
    mask = ((labelled_mm > params.min_path_mm) & opened).astype(np.uint8)
    transmission = np.exp(-mu * vessel_mm - shade) * light
    image, gain = _detect(transmission, opened, canvas, params, view, noise)
    meta = {
        "seed": int(seed),
        "patient": int(patient),
        "frame": int(frame),
        "size": int(size),
        "side": tree.side,
        "primary_angle_deg": round(angles[0], 3),
        "secondary_angle_deg": round(angles[1], 3),
        "phase": round(phase, 4),
        "pixel_mm": round(canvas.pixel_mm, 6),
        "mu_per_mm": round(mu, 6),
        "vessel_fraction": round(float(mask.mean()), 6),
        "generator_version": GENERATOR_VERSION,
    }
    return Layers(
        image, mask, labelled_mm, vessel_mm, mu, shade, light, catheter_mm, gain, tree, meta
    )


def _project(
    view: np.random.Generator, tree: Tree, canvas: background.Canvas
) -> tuple[list[Array], tuple[float, float], float]:
    """Turns the tree to a working view and puts it into the picture: points [N, 3] in mm."""
    low, high = ((-35, 45), (-10, 50))[tree.side == "right"]
    angles = float(view.uniform(low, high)), float(view.uniform(-28, 32))
    phase = float(view.random())
    turned = [points @ view_rotation(*angles).T for points in tree.place(phase)]
    drawn = [p for p, branch in zip(turned, tree.branches, strict=True) if not branch.twig]
    spread = np.concatenate(drawn)[:, :2]
    middle = (spread.min(axis=0) + spread.max(axis=0)) / 2 + view.normal(0, 4, 2)
    # The catheter has to reach the ostium, and the eye to find it.
    half = 0.88 * canvas.width_mm / 2
    ostium = turned[0][0, :2]
    middle = np.clip(middle, ostium - half, ostium + half)
    return [points - np.append(middle, 0.0) for points in turned], angles, phase


def _lumen(
    tree: Tree, arteries: list[Array], canvas: background.Canvas, params: AngiogramParams
) -> tuple[Array, Array]:
    """Path lengths [size, size] in mm through labelled lumen and through all lumen."""
    rays = int(params.supersample)
    finest = 0.5 * canvas.pixel_mm / rays
    centres, radii, labels = [], [], []
    thinnest = max(params.min_label_mm, params.min_label_px * canvas.pixel_mm) / 2
    for points, branch in zip(arteries, tree.branches, strict=True):
        at, radius = tube_balls(points, branch.radius, finest)
        centres.append(at)
        radii.append(radius)
        labels.append((radius >= thinnest) & (not branch.twig))
    at, radius, label = np.concatenate(centres), np.concatenate(radii), np.concatenate(labels)
    everything = path_length(at, radius, canvas.size, canvas.pixel_mm, rays)
    if label.all():
        return everything, everything
    return path_length(at[label], radius[label], canvas.size, canvas.pixel_mm, rays), everything


def _detect(
    transmission: Array,
    opened: NDArray[np.bool_],
    canvas: background.Canvas,
    params: AngiogramParams,
    view: np.random.Generator,
    noise: np.random.Generator,
) -> tuple[NDArray[np.uint8], float]:
    """Motion, scatter, exposure, quantum noise, detector blur: uint8 picture and its gain."""
    aim, travel, turn = view.uniform(*params.grey), view.random(), view.uniform(0, np.pi)
    signal = transmission
    kernel = background.motion_kernel(travel * params.at("motion_blur_mm") / canvas.pixel_mm, turn)
    if kernel is not None:
        signal = ndimage.convolve(signal, kernel, mode="nearest")
    scatter = params.at("scatter")
    if scatter > 0:
        # Scatter is a wide veil: it follows the large shadows and ignores the vessels.
        small = signal[:: max(1, canvas.size // 64), :: max(1, canvas.size // 64)]
        veil = ndimage.gaussian_filter(small, 15.0 / (canvas.width_mm / len(small)), mode="nearest")
        at = (np.arange(canvas.size) + 0.5) * len(small) / canvas.size - 0.5
        veil = ndimage.map_coordinates(
            veil, np.meshgrid(at, at, indexing="ij"), order=1, mode="nearest"
        )
        signal = (1 - scatter) * signal + scatter * veil
    middle, bright = np.percentile(signal[opened], [50, 99])
    gain = float(min(aim / middle, 0.96 * _WHITE / bright))
    if params.quantum_noise:
        # Counts of hundreds per pixel are normal to within 1 %; a Poisson sampler would draw a
        # different number of random bits wherever two machines differ in the last digit.
        quanta = params.at("photons_per_mm2") * canvas.pixel_mm**2 / middle
        signal = signal + np.sqrt(signal / quanta) * noise.standard_normal(signal.shape)
    blur = params.detector_blur_mm / canvas.pixel_mm
    if blur > 0:
        signal = ndimage.gaussian_filter(signal, blur, mode="nearest", truncate=3.0)
    return np.clip(np.rint(gain * signal), 0, 255).astype(np.uint8), gain

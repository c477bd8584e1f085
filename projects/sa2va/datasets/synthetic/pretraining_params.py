"""What the angiograms are made of that a model is pretrained on, in physical units."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from projects.sa2va.datasets.synthetic.parameters import FIELD_RULE, Pair, Parameters, Rule


@dataclasses.dataclass(frozen=True)
class PretrainingParams(Parameters):
    """Ranges that every frame draws from, uniformly and anew: variety before beauty.

    The defaults give frames of 512 pixels the calibres, contrasts and grey levels of the ARCADE
    training frames (docs/data_formats.md has both). Lengths are in mm in the plane through the
    heart, so the same anatomy appears at every image size.

    Args:
        field_of_view_mm: width (= height) of the square picture, >= 20.
        vessel_scale: factor on all calibres, > 0.
        tortuosity: factor on the lateral waviness of arteries, >= 0.
        winding_mm: how far the distal arteries wind in space, >= 0.
        irregularity: relative roughness of the calibre, in [0, 0.5).
        narrowings: expected number of stenoses and dilatations of a frame, >= 0.
        mu_per_mm: attenuation of the contrast-filled lumen, 1/mm, > 0.
        min_label_mm: calibre (diameter) from which arteries are labelled, >= 0.
        twigs: expected number of fine unlabelled side branches of a frame, >= 0.
        strays: expected number of unlabelled vessels that do not belong to the tree, >= 0.
        background: factor on tissue, lung, diaphragm, spine and rib shadows, >= 0.
        clutter: expected number of edges, folds, blotches and rings in the background, >= 0.
        distractors: expected number of guide wires, leads, electrodes and clips, >= 0.
        catheter: probability that the catheter is in view, in [0, 1].
        collimator: probability that collimator blades are in view, in [0, 1].
        vignetting: part of the light lost in the far corners, in [0, 1).
        scatter: scattered share of the detected light, in [0, 1).
        motion_mm: path of the heart during the exposure, >= 0.
        blur_mm: standard deviation of the detector's point spread, >= 0.
        grey: median grey level, in (0, 255).
        gamma: exponent of the display curve, > 0.
        sharpening: strength of the display's edge enhancement, >= 0.
        noise: standard deviation of the noise at the median grey level, in grey levels, >= 0.
        grain_px: standard deviation of the noise's own blur, in pixels, >= 0.

    Raises:
        ConfigError: a value outside its stated range.
    """

    field_of_view_mm: Pair = (85.0, 140.0)
    vessel_scale: Pair = (0.7, 1.15)
    tortuosity: Pair = (0.4, 1.8)
    winding_mm: Pair = (0.0, 3.0)
    irregularity: Pair = (0.0, 0.12)
    narrowings: Pair = (0.0, 3.0)
    mu_per_mm: Pair = (0.06, 0.18)
    min_label_mm: Pair = (0.8, 1.5)
    twigs: Pair = (10.0, 80.0)
    strays: Pair = (0.0, 8.0)
    background: Pair = (0.5, 1.5)
    clutter: Pair = (0.0, 8.0)
    distractors: Pair = (0.0, 2.5)
    catheter: float = 0.9
    collimator: float = 0.4
    vignetting: Pair = (0.0, 0.35)
    scatter: Pair = (0.05, 0.4)
    motion_mm: Pair = (0.0, 1.6)
    blur_mm: Pair = (0.1, 0.28)
    grey: Pair = (80.0, 150.0)
    gamma: Pair = (0.6, 1.2)
    sharpening: Pair = (0.0, 1.0)
    noise: Pair = (1.5, 6.0)
    grain_px: Pair = (0.0, 0.6)

    RULES: ClassVar[tuple[Rule, ...]] = (
        ("catheter collimator", lambda x: 0 <= x <= 1, "a number in [0, 1]"),
        ("vignetting scatter", lambda x: 0 <= x < 1, "numbers in [0, 1)"),
        ("irregularity", lambda x: 0 <= x < 0.5, "numbers in [0, 0.5)"),
        FIELD_RULE,
        ("vessel_scale mu_per_mm gamma", lambda x: x > 0, "more than 0"),
        (
            "tortuosity winding_mm narrowings min_label_mm twigs strays background clutter "
            "distractors motion_mm blur_mm sharpening noise grain_px",
            lambda x: x >= 0,
            "0 or more",
        ),
        ("grey", lambda x: 0 < x < 255, "numbers in (0, 255)"),
    )
    RANGES: ClassVar[tuple[str, ...]] = (
        *("field_of_view_mm", "vessel_scale", "tortuosity", "winding_mm", "irregularity"),
        *("narrowings", "mu_per_mm", "min_label_mm", "twigs", "strays", "background", "clutter"),
        *("distractors", "vignetting", "scatter", "motion_mm", "blur_mm", "grey", "gamma"),
        *("sharpening", "noise", "grain_px"),
    )

    def draw(self, name: str, rng: np.random.Generator) -> float:
        """A value of a range, uniformly."""
        return float(rng.uniform(*getattr(self, name)))

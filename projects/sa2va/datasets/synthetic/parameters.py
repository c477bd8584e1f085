"""What a synthetic angiogram is made of, in physical units."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

from projects.sa2va.errors import ConfigError, suggest

Pair = tuple[float, float]

# Names of fields, what their numbers must fulfil, and that in words.
Rule = tuple[str, Callable[[float], bool], str]

# So wide that the rounded corners of the blades (``background.light_field``, up to 6 mm) leave a
# part open: without one there is no grey level to expose to.
LEAST_FIELD_MM = 20.0
FIELD_RULE: Rule = (
    "field_of_view_mm",
    lambda x: x >= LEAST_FIELD_MM,
    f"{LEAST_FIELD_MM:g} mm or more: the collimator's blades close a smaller picture",
)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Numbers, switches and pairs of numbers, checked against the rules of the class.

    Attributes:
        RULES: of the fields' numbers.
        RANGES: fields whose pair is (low, high).

    Raises:
        ConfigError: a value outside its stated range.
    """

    RULES: ClassVar[tuple[Rule, ...]] = ()
    RANGES: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_pair = isinstance(field.default, tuple)
            numbers = value if isinstance(value, (list, tuple)) else (value,)
            if isinstance(value, (list, tuple)) != is_pair or (is_pair and len(value) != 2):
                raise self._out_of_range(
                    field.name, value, "two numbers" if is_pair else "one number, and no list"
                )
            if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
                raise self._out_of_range(field.name, value, "finite numbers")
            if is_pair:
                # JSON and configs give lists; equality and hashing want tuples.
                object.__setattr__(self, field.name, (float(value[0]), float(value[1])))
        for names, good, words in self.RULES:
            for name in names.split():
                value = getattr(self, name)
                if not all(
                    good(number) for number in (value if isinstance(value, tuple) else [value])
                ):
                    raise self._out_of_range(name, value, words)
        for name in self.RANGES:
            low, high = getattr(self, name)
            if low > high:
                raise self._out_of_range(name, (low, high), "a range (low, high) with low <= high")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the same parameters give the same dict, and back by ``from_dict``."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Builds the parameters from a dict (a config, a JSON file).

        Raises:
            ConfigError: an unknown key, or a value outside its range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    found=f"unknown synthetic angiogram parameter '{key}'{suggest(key, known)}",
                    expected=f"one of {', '.join(known)}",
                    fix=f"correct or remove '{key}'",
                )
        return cls(**values)

    def _out_of_range(self, name: str, value: object, words: str) -> ConfigError:
        return ConfigError(
            found=f"synthetic angiogram parameter {name}={value}",
            expected=f"{name}: {words}",
            fix=f"set {name} as the docstring of {type(self).__name__} says",
        )


@dataclasses.dataclass(frozen=True)
class AngiogramParams(Parameters):
    """Geometry, physics and distractors of a rendered frame.

    Fields marked *easy, hard* are pairs (value at difficulty 0, value at difficulty 1) with linear
    interpolation between; fields marked *range* are drawn uniformly. Lengths are in mm in the
    plane through the heart, so the same anatomy appears at every image size.

    Args:
        difficulty: in [0, 1]; scales noise, contrast, background and the number of distractors.
        field_of_view_mm: range of the width (= height) of the square picture, >= 20.
        vessel_scale: factor on all vessel radii, > 0. 1 gives a left main stem of 4.4 to 5.4 mm.
        mu_per_mm: easy, hard; attenuation of the contrast-filled lumen, 1/mm. Undiluted contrast
            (370 mg iodine per ml) would have about 0.28 at 60 keV; blood dilutes it.
        min_path_mm: a pixel is vessel where the mean path length of its rays through labelled
            lumen is greater than this.
        min_label_mm: lumen thinner than this (diameter) is drawn and not labelled.
        min_label_px: the same in pixels of the rendered picture; the larger of the two counts.
        twigs: easy, hard; expected number of unlabelled twigs (0.3 to 0.6 mm) per main artery.
        tortuosity: range of a factor on the lateral waviness of arteries, 0 = smooth, >= 0.
        background: easy, hard; factor on tissue, lung, diaphragm, spine and rib shadows, >= 0.
        collimator: easy, hard; probability that collimator blades are in view, in [0, 1].
        vignetting: easy, hard; part of the light lost in the far corners, in [0, 1).
        catheter: whether the catheter that injects the contrast is drawn (never labelled).
        distractors: easy, hard; expected number of guide wires, leads, electrodes and clips.
        photons_per_mm2: easy, hard; detected quanta per mm2 at mid-grey, > 0.
        quantum_noise: False leaves the quantum noise out (for checks of the physics).
        scatter: easy, hard; scattered share of the detected light, in [0, 1).
        detector_blur_mm: standard deviation of the detector's point spread, >= 0.
        motion_blur_mm: easy, hard; longest path of the heart during the exposure, >= 0.
        grey: range of the median grey level that the exposure control aims at, in (0, 255).
        supersample: rays per pixel side, >= 1.

    Raises:
        ConfigError: a value outside its stated range.
    """

    difficulty: float = 0.3
    field_of_view_mm: Pair = (112.0, 130.0)
    vessel_scale: float = 1.0
    mu_per_mm: Pair = (0.16, 0.09)
    min_path_mm: float = 0.3
    min_label_mm: float = 0.7
    min_label_px: float = 1.5
    twigs: Pair = (0.0, 5.0)
    tortuosity: Pair = (0.5, 1.6)
    background: Pair = (0.6, 1.4)
    collimator: Pair = (0.15, 0.6)
    vignetting: Pair = (0.05, 0.3)
    catheter: bool = True
    distractors: Pair = (0.0, 2.5)
    photons_per_mm2: Pair = (30000.0, 5000.0)
    quantum_noise: bool = True
    scatter: Pair = (0.05, 0.3)
    detector_blur_mm: float = 0.16
    motion_blur_mm: Pair = (0.3, 1.6)
    grey: Pair = (85.0, 145.0)
    supersample: int = 2

    RULES: ClassVar[tuple[Rule, ...]] = (
        ("difficulty collimator", lambda x: 0 <= x <= 1, "numbers in [0, 1]"),
        ("vignetting scatter", lambda x: 0 <= x < 1, "numbers in [0, 1)"),
        FIELD_RULE,
        ("vessel_scale mu_per_mm photons_per_mm2", lambda x: x > 0, "more than 0"),
        (
            "min_path_mm min_label_mm min_label_px twigs tortuosity background distractors "
            "detector_blur_mm motion_blur_mm",
            lambda x: x >= 0,
            "0 or more",
        ),
        ("grey", lambda x: 0 < x < 255, "numbers in (0, 255)"),
        ("supersample", lambda x: x >= 1 and x == int(x), "a whole number >= 1"),
    )
    RANGES: ClassVar[tuple[str, ...]] = ("field_of_view_mm", "tortuosity", "grey")

    def at(self, name: str) -> float:
        """Value of an *easy, hard* pair at this difficulty."""
        easy, hard = getattr(self, name)
        return easy + self.difficulty * (hard - easy)

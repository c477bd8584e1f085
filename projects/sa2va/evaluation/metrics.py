"""Which metrics there are, how a list of them is chosen, and all of them for one pair of masks.

**The rule for undefined values.** A ratio 0/0, and a distance to an empty outline, is undefined: it
is ``nan`` here and ``null`` in JSON, it is left out of every mean, and how many were left out is
reported beside the mean (``undefined``). No value is put in its place, neither 0 nor 1. Each family
has its own table of what an empty truth or prediction gives: :mod:`.overlap`, :mod:`.ranking`,
:mod:`.centreline`, :mod:`.surface`, :mod:`.topology`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import ConfigError, suggest
from .calibration import calibration_parts
from .centreline import CENTRELINE_NAMES, centreline_parts, pooled_centreline
from .geometry import MaskGeometry
from .overlap import OVERLAP_NAMES, Counts, pooled_overlap
from .postprocess import PostProcess
from .ranking import RANKING_NAMES, average_precision, level_counts, pooled_ranking, split
from .surface import SURFACE_MM_NAMES, SURFACE_NAMES, SurfaceDistances, pooled_assd
from .topology import TOPOLOGY_NAMES, pooled_topology, topology_parts

METRIC_NAMES = (
    *OVERLAP_NAMES,
    *RANKING_NAMES,
    *CENTRELINE_NAMES,
    *SURFACE_NAMES,
    *SURFACE_MM_NAMES,
    *TOPOLOGY_NAMES,
)
"""Names and order of the metrics, everywhere."""
METRIC_SETS: dict[str, tuple[str, ...]] = {"fast": OVERLAP_NAMES, "all": METRIC_NAMES}
LOWER_IS_BETTER = frozenset((*SURFACE_NAMES, *SURFACE_MM_NAMES, *TOPOLOGY_NAMES))
DEFAULT_TOLERANCE = 2.0
_PIXELS = np.ones(2)

POOLED: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
    "overlap": pooled_overlap,
    "ranking": pooled_ranking,
    "centreline": pooled_centreline,
    "surface_px": lambda sums: {"assd": pooled_assd(sums)},
    "surface_mm": lambda sums: {"assd_mm": pooled_assd(sums)},
    "topology": pooled_topology,
}
"""Pooled metrics of a family from its summed parts [..., n]; hd95 needs all distances instead."""


def choose_metrics(metric_set: Any) -> tuple[str, ...]:
    """The names that ``metric_set`` of the evaluator stands for, in the order of the table.

    Args:
        metric_set: 'all', 'fast' or a list of names; the overlap metrics are always among them.

    Raises:
        ConfigError: it is none of these.
    """
    wanted: Sequence[str] | None = None
    if isinstance(metric_set, str):
        wanted = METRIC_SETS.get(metric_set)
    elif isinstance(metric_set, (list, tuple)) and all(isinstance(n, str) for n in metric_set):
        wanted = metric_set
    unknown = [name for name in wanted or () if name not in METRIC_NAMES]
    if wanted is None or unknown:
        wrong = unknown[0] if unknown else metric_set
        raise ConfigError(
            found=f"metric_set={metric_set!r} in VesselMetric"
            + suggest(str(wrong), (*METRIC_SETS, *METRIC_NAMES)),
            expected=f"'all', 'fast' or a list of names out of {', '.join(METRIC_NAMES)}",
            fix="correct metric_set in the evaluator, or --metrics",
        )
    return tuple(name for name in METRIC_NAMES if name in wanted or name in OVERLAP_NAMES)


@dataclass(frozen=True)
class Scores:
    """All that is kept of one prediction against its truth.

    Attributes:
        counts: of pixels.
        extra: further metrics by name; ``nan`` where undefined.
        parts: what the pooled metrics of a family are computed from, by family; arrays that are
            summed over rows.
        distances: of the outlines, in 'px' and in 'mm' where the spacing is known.
    """

    counts: Counts
    extra: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    distances: Mapping[str, SurfaceDistances] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """All metrics by name; ``nan`` where undefined."""
        return self._values

    @cached_property
    def _values(self) -> dict[str, float]:
        return {**self.counts.metrics(), **self.extra}


@dataclass(frozen=True)
class Scorer:
    """Scores maps against masks.

    Args:
        threshold: a pixel is vessel where probability >= threshold, in float32.
        names: from :func:`choose_metrics`.
        tolerance: of centreline precision and recall, in px.
        postprocess: what is done to the mask after the cut.
        calibration: whether ``parts`` hold what :mod:`.calibration` needs.
    """

    threshold: float
    names: tuple[str, ...] = METRIC_NAMES
    tolerance: float = DEFAULT_TOLERANCE
    postprocess: PostProcess = field(default_factory=PostProcess)
    calibration: bool = False

    def cut(self, probability: np.ndarray) -> np.ndarray:
        """The mask of a float32 map."""
        return self.postprocess.cut(probability, self.threshold)

    def score(
        self,
        probability: np.ndarray,
        truth: MaskGeometry,
        spacing: Sequence[float] | None = None,
        *,
        mask: np.ndarray | None = None,
    ) -> Scores:
        """Scores one map.

        Args:
            probability: float32 [H, W] in [0, 1].
            truth: of bool [H, W]; hand in the same object again to score another map.
            spacing: mm from one row, and one column, to the next, or None where unknown.
            mask: what :meth:`cut` made of ``probability``, where it is at hand.

        Returns:
            The overlap metrics and those of ``names``.

        Raises:
            ValueError: the shapes differ.
        """
        mask = self.cut(probability) if mask is None else mask
        counts = Counts.of_masks(mask, truth.mask)
        values: dict[str, Any] = {}
        parts: dict[str, np.ndarray] = {}
        distances: dict[str, SurfaceDistances] = {}
        if self.calibration or self._wants(RANKING_NAMES):
            ranked = split(probability, truth.mask)
            if self.calibration:
                parts["calibration"] = calibration_parts(*ranked)
            if self._wants(RANKING_NAMES):
                values["average_precision"] = average_precision(*ranked)
                parts["ranking"] = level_counts(*ranked)
        shape = MaskGeometry(mask)
        if self._wants(CENTRELINE_NAMES):
            parts["centreline"] = centreline_parts(shape, truth, self.tolerance)
            values |= pooled_centreline(parts["centreline"])
        if self._wants((*SURFACE_NAMES, *SURFACE_MM_NAMES)):
            values |= dict.fromkeys((*SURFACE_NAMES, *SURFACE_MM_NAMES), math.nan)
            distances = _distances(shape, truth, spacing)
            for unit, found in distances.items():
                parts[f"surface_{unit}"] = found.sums()
                names = SURFACE_MM_NAMES if unit == "mm" else SURFACE_NAMES
                values |= zip(names, (found.hd95(), pooled_assd(found.sums())), strict=True)
        if self._wants(TOPOLOGY_NAMES):
            parts["topology"] = topology_parts(shape, truth)
            values |= pooled_topology(parts["topology"])
        extra = {name: float(values[name]) for name in self.names if name in values}
        return Scores(counts, extra, parts, distances)

    def _wants(self, names: Sequence[str]) -> bool:
        return not set(names).isdisjoint(self.names)


def _distances(
    shape: MaskGeometry, truth: MaskGeometry, spacing: Sequence[float] | None
) -> dict[str, SurfaceDistances]:
    """In px, and in mm where the spacing is known."""
    found = {"px": SurfaceDistances.between(shape, truth, _PIXELS)}
    if spacing is None:
        return found
    if spacing[0] == spacing[1]:
        return {**found, "mm": found["px"].scaled(spacing[0])}
    return {**found, "mm": SurfaceDistances.between(shape, truth, np.asarray(spacing, float))}

"""The means of all metrics: over rows, for each patient, over patients, and pooled.

The unit is a row: one phrase of one frame.

* ``mean``: the mean over rows ("over frames" when every frame has one phrase).
* ``per_patient``: the mean over the patient's rows.
* ``patient_mean``: the mean over patients of ``per_patient``, so that a patient with many frames
  weighs no more than one with few. Rows without a patient id take no part in it.
* ``pooled``: the metric of all rows as if they were one image: ratios of summed counts, lengths
  and distances, percentile of all distances, average precision over all pixels (in 256 bins);
  large vessels weigh more.

Undefined values are left out and counted (:mod:`.metrics`). Sums are correctly rounded
(``math.fsum``), so no result depends on the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .metrics import POOLED, Scores
from .overlap import OVERLAP_NAMES
from .rows import FrameResult, Row
from .surface import pooled_hd95


@dataclass(frozen=True)
class Summary:
    """Means over many rows; the module's docstring defines each.

    Attributes:
        mean, patient_mean, pooled: metric by name, ``nan`` where nothing defined was averaged.
        per_patient: metrics by pseudonym, in sorted order.
        undefined: for ``mean`` the number of rows, for ``patient_mean`` the number of patients and
            for ``pooled`` 0 or 1, by metric, that had no defined value and were left out.
    """

    mean: dict[str, float]
    patient_mean: dict[str, float]
    pooled: dict[str, float]
    per_patient: dict[str, dict[str, float]] = field(default_factory=dict)
    undefined: dict[str, dict[str, int]] = field(default_factory=dict)


def mean_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not ``nan``; ``nan`` if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def summarise(
    frames: Iterable[FrameResult],
    names: Sequence[str] = OVERLAP_NAMES,
    of: Callable[[Row], Scores] = lambda row: row.scores,
) -> Summary:
    """Averages the rows of ``frames`` in the four ways of the module's docstring.

    Args:
        frames: the frames.
        names: metrics that every row has.
        of: which scores of a row.
    """
    rows: list[Scores] = []
    by_patient: dict[str, list[dict[str, float]]] = {}
    for frame in frames:
        for row in frame.rows:
            rows.append(of(row))
            if frame.patient is not None:
                by_patient.setdefault(frame.patient, []).append(rows[-1].values())
    per_patient = {patient: _means(by_patient[patient], names) for patient in sorted(by_patient)}
    values, patients = [row.values() for row in rows], list(per_patient.values())
    pooled = pool(rows, names)
    return Summary(
        mean=_means(values, names),
        patient_mean=_means(patients, names),
        pooled=pooled,
        per_patient=per_patient,
        undefined={
            "mean": _undefined(values, names),
            "patient_mean": _undefined(patients, names),
            "pooled": _undefined([pooled], names),
        },
    )


def pool(rows: Sequence[Scores], names: Sequence[str]) -> dict[str, float]:
    """The pooled metrics of ``rows``; ``nan`` where undefined."""
    found: dict[str, float] = dict.fromkeys(names, math.nan)
    for family, pooled in POOLED.items():
        parts = [part for row in rows if (part := parts_of(row, family)) is not None]
        if parts:
            found |= {name: float(value) for name, value in pooled(_total(parts)).items()}
    for unit, name in (("px", "hd95"), ("mm", "hd95_mm")):
        if name in names:
            found[name] = pooled_hd95(row.distances[unit] for row in rows if unit in row.distances)
    return {name: found[name] for name in names}


def parts_of(row: Scores, family: str) -> np.ndarray | None:
    """The additive parts of one row; None where the row has none of that family."""
    return row.counts.array() if family == "overlap" else row.parts.get(family)


def _total(parts: list[np.ndarray]) -> np.ndarray:
    if parts[0].dtype.kind == "i":
        return np.sum(parts, axis=0)
    return np.array([math.fsum(column) for column in zip(*parts, strict=True)])


def _means(items: list[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    return {name: mean_defined(item[name] for item in items) for name in names}


def _undefined(items: list[Mapping[str, float]], names: Sequence[str]) -> dict[str, int]:
    return {name: sum(math.isnan(item[name]) for item in items) for name in names}

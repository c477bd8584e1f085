"""The calibration of a whole run, with its interval: what metrics.json and the diagram show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .bootstrap import draw_weights, percentile_interval
from .calibration import EDGES, WIDE, errors, mass_bins, wide_bins
from .overlap import ratio
from .rows import FrameResult


def reliability_of(frames: Sequence[FrameResult], resamples: int) -> dict[str, Any] | None:
    """:func:`reliability` of all rows, whose scores hold the parts of calibration."""
    rows = [(frame, row) for frame in frames for row in frame.rows]
    clusters = [
        ("frame", frame.index) if frame.patient is None else ("patient", frame.patient)
        for frame, _ in rows
    ]
    parts = [row.scores.parts["calibration"] for _, row in rows]
    return reliability(parts, clusters, resamples=resamples)


def reliability(
    parts: Sequence[np.ndarray],
    clusters: Sequence[Any],
    *,
    resamples: int = 0,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any] | None:
    """The ``calibration`` of metrics.json; None without a row.

    Args:
        parts: of each row, from :func:`.calibration.calibration_parts`.
        clusters: what each row is drawn together with in the bootstrap: its patient, or itself.
        resamples, seed, level: of the interval of the ECE; 0 resamples for none.
    """
    if not len(parts):
        return None
    names = sorted(set(clusters), key=repr)
    place = {name: index for index, name in enumerate(names)}
    sums = np.zeros((len(names), *parts[0].shape))
    for cluster, part in zip(clusters, parts, strict=True):
        sums[place[cluster]] += part
    total = sums.sum(0)
    wide, (mass, starts) = wide_bins(total), mass_bins(total)
    interval = None
    if resamples and len(names) > 1:
        weights = draw_weights(len(names), resamples, seed)
        drawn = np.einsum("bc,cnk->bnk", weights, wide_bins(sums))
        interval = percentile_interval(errors(drawn)[0], level)
    (ece, mce), (mass_ece, mass_mce) = errors(wide), errors(mass)
    return {
        "pixels": int(total[:, 0].sum()),
        "ece": float(ece),
        "ece_interval": interval,
        "mce": float(mce),
        "brier": float(ratio(total[:, 3].sum(), total[:, 0].sum())),
        "equal_mass_ece": float(mass_ece),
        "equal_mass_mce": float(mass_mce),
        "equal_width": _rows(wide, np.concatenate([[0], WIDE, [1]])),
        "equal_mass": _rows(mass, np.concatenate([np.concatenate([[0], EDGES])[starts], [1]])),
    }


def _rows(bins: np.ndarray, edges: np.ndarray) -> list[dict[str, Any]]:
    means, shares = ratio(bins[:, 2], bins[:, 0]), ratio(bins[:, 1], bins[:, 0])
    return [
        {
            "low": float(edges[k]),
            "high": float(edges[k + 1]),
            "pixels": int(bins[k, 0]),
            "mean_probability": float(means[k]),
            "observed_frequency": float(shares[k]),
        }
        for k in range(len(bins))
    ]


def describe(found: Mapping[str, Any]) -> str:
    """One line for the log."""
    bounds = found["ece_interval"]
    around = "" if bounds is None else f" [{bounds[0]:.4f}, {bounds[1]:.4f}]"
    return f"calibration error (ECE) {found['ece']:.4f}{around}, Brier score {found['brier']:.4f}"

"""Diagrams of a run: the curve over thresholds with its band, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..files import write_atomic
from .threshold_choice import Curve, Target

_LINE, _SECOND, _GREY = "#1f77b4", "#e07b00", "#888888"


def draw_curve(found: Curve, target: Target, path: Path) -> None:
    """Draws the target over the thresholds, the choice and the plateau.

    Shown are the candidates with the chosen post-processing, and those with none where they differ.
    """
    choice = found.choice
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    chosen = [
        k
        for k, c in enumerate(found.candidates)
        if (c.min_area == choice.min_area and c.low == choice.low)
    ]
    plain = [k for k, c in enumerate(found.candidates) if not c.postprocess.changes]
    lines = [(chosen, _LINE, choice.postprocess.describe() or "threshold alone")]
    if choice.postprocess.changes and plain:
        lines.append((plain, _SECOND, "threshold alone"))
    for members, colour, label in lines:
        members.sort(key=lambda k: found.candidates[k].threshold)
        cuts = [found.candidates[k].threshold for k in members]
        axes.plot(cuts, found.values[members], color=colour, label=label, marker=".", markersize=3)
        axes.fill_between(
            cuts, found.low[members], found.high[members], color=colour, alpha=0.2, linewidth=0
        )
    if found.plateau is not None and found.plateau[0] < found.plateau[1]:
        axes.axvspan(*found.plateau, color=_GREY, alpha=0.15, label="not told apart (plateau)")
    value = found.values[found.best]
    axes.plot(
        [choice.threshold], [value], "o", color="black", label=f"chosen: {choice.threshold:g}"
    )
    axes.set(xlabel="threshold", ylabel=target.describe(), xlim=(0, 1))
    about = found.bootstrap
    axes.set_title(
        f"{target.describe()} {value:.4f} at {choice.threshold:g} "
        f"(band: {about['level']:.0%}, {about['clusters']} {about['unit']}s)",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def draw_reliability(found: Mapping[str, Any], path: Path) -> None:
    """Draws observed frequency over mean probability, and how many pixels each bin holds.

    Args:
        found: of :func:`.reliability.reliability`.
        path: the PNG.
    """
    figure = Figure(figsize=(6, 6.5), dpi=120, layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    top.plot([0, 1], [0, 1], "--", color=_GREY, label="calibrated")
    kinds = (
        ("equal_width", _LINE, "o", "bins of one width"),
        ("equal_mass", _SECOND, "x", "bins of one mass"),
    )
    for key, colour, marker, label in kinds:
        bins = [row for row in found[key] if row["pixels"]]
        across = [row["mean_probability"] for row in bins]
        top.plot(
            across,
            [row["observed_frequency"] for row in bins],
            marker=marker,
            color=colour,
            linewidth=1,
            label=label,
        )
    wide = found["equal_width"]
    edges = np.array([row["low"] for row in wide])
    widths = [row["high"] - row["low"] for row in wide]
    bottom.bar(edges, [row["pixels"] for row in wide], widths, align="edge", color=_LINE, alpha=0.7)
    bottom.set(yscale="log", xlabel="probability", ylabel="pixels", xlim=(0, 1))
    top.set(ylabel="share that is vessel", ylim=(0, 1))
    bounds = found["ece_interval"]
    around = "" if bounds is None else f" [{bounds[0]:.4f}, {bounds[1]:.4f}]"
    top.set_title(
        f"ECE {found['ece']:.4f}{around}, MCE {found['mce']:.3f}, Brier {found['brier']:.4f}",
        fontsize=10,
    )
    top.grid(alpha=0.3)
    top.legend(fontsize=8)
    write_atomic(path, lambda file: figure.savefig(file, format="png"))

"""Diagrams of a run: the curve over thresholds with its band, and the reliability diagram.

Each is drawn once: :func:`~projects.sa2va.figures.png_figure` makes the file that lies in the
run's folder of it, :func:`~projects.sa2va.figures.svg_figure` the one inside the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ..figures import COLOURS
from .threshold_choice import Target
from .threshold_sweep import Candidate

_GREY = COLOURS[5]
_BINS = (
    ("equal_width", "o", "bins of equal width"),
    ("equal_mass", "x", "bins of equal mass"),
)

Diagram = tuple[Callable[[Figure], None], tuple[float, float]]
"""What draws into an empty figure, and the figure's width and height in inches."""


def curve_diagram(content: Mapping[str, Any]) -> Diagram:
    """The target over the thresholds, the choice and the plateau.

    Shown are the candidates with the chosen post-processing, and those with none where they differ.

    Args:
        content: of threshold_curve.json.

    Raises:
        KeyError, TypeError, ValueError, ConfigError: it is not such a content.
    """
    target, choice = Target(**content["target"]).describe(), Candidate(**content["choice"])
    value, plateau = float(content["value"]), content["plateau"]
    about = content["bootstrap"]
    band = f"band: {about['level']:.0%}, {about['clusters']} {about['unit']}s"
    title = f"{target} {value:.4f} at {choice.threshold:g} ({band})"
    settings = [(line["low"], line["min_area"]) for line in content["curve"]]
    numbers = np.array(
        [
            [line[key] for key in ("threshold", "value", "band_low", "band_high")]
            for line in content["curve"]
        ],
        dtype=float,  # null, where a value or the band is undefined, is nan
    )
    chosen = choice.postprocess
    groups = [((choice.low, choice.min_area), chosen.describe() or "threshold alone")]
    if chosen.changes and (None, 0) in settings:
        groups.append(((None, 0), "threshold alone"))
    lines = [(numbers[[s == own for s in settings]], label) for own, label in groups]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (members, label), colour in zip(lines, COLOURS, strict=False):
            cuts, values, low, high = members[np.argsort(members[:, 0])].T
            axes.plot(cuts, values, color=colour, label=label, marker=".", markersize=3)
            axes.fill_between(cuts, low, high, color=colour, alpha=0.2, linewidth=0)
        if plateau is not None and plateau[0] < plateau[1]:
            label = "not told apart (plateau)"
            axes.axvspan(*plateau, color=_GREY, alpha=0.15, linewidth=0, label=label)
        # The colour of text is dark on white, and the reader's own inside a page.
        ink, label = mpl.rcParams["text.color"], f"chosen: {choice.threshold:g}"
        axes.plot([choice.threshold], [value], "o", color=ink, label=label)
        axes.set(xlabel="threshold", ylabel=target, xlim=(0, 1))
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)

    return draw, (7.0, 3.8)


def reliability_diagram(found: Mapping[str, Any]) -> Diagram:
    """Observed frequency over mean probability, and how many pixels each bin holds.

    Args:
        found: of :func:`.reliability.reliability`, or ``calibration`` of metrics.json.
    """
    bounds = found["ece_interval"]
    around = "" if bounds is None else f" [{bounds[0]:.4f}, {bounds[1]:.4f}]"
    errors = f"ECE {found['ece']:.4f}{around}, MCE {found['mce']:.3f}, Brier {found['brier']:.4f}"
    wide = found["equal_width"]

    def draw(figure: Figure) -> None:
        diagram, counts = figure.subplots(1, 2)
        diagram.plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1, label="calibrated")
        for (key, marker, label), colour in zip(_BINS, COLOURS, strict=False):
            bins = [item for item in found[key] if item["pixels"]]
            points = [(item["mean_probability"], item["observed_frequency"]) for item in bins]
            style = {"marker": marker, "markersize": 4, "linewidth": 1}
            diagram.plot(*zip(*points, strict=True), color=colour, label=label, **style)
        diagram.set(xlabel="mean probability", ylabel="share that is vessel")
        diagram.set(xlim=(0, 1), ylim=(0, 1))
        diagram.grid(alpha=0.3)
        diagram.legend(loc="upper left", fontsize=8)
        low, width = [b["low"] for b in wide], [b["high"] - b["low"] for b in wide]
        counts.bar(low, [b["pixels"] for b in wide], width, align="edge", color=COLOURS[0])
        counts.set(xlabel="probability", ylabel="pixels", xlim=(0, 1), yscale="log")
        counts.set_ylim(bottom=0.5)  # a bar of one pixel is to be seen
        figure.suptitle(errors, fontsize=9)

    return draw, (8.0, 3.6)

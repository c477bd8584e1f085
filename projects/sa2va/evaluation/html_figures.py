"""Diagrams of the page about a test run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from ..figures import svg_figure
from ..html import Html, bars, figure
from .html_files import RunRow
from .metrics import LOWER_IS_BETTER

_BINS = 20


def distributions(rows: Sequence[RunRow], names: Sequence[str]) -> list[Html]:
    """A histogram of each metric over the rows, with range, quartiles and median above it."""
    figures = []
    for name in names:
        numbers = np.array([row.values[name] for row in rows])
        numbers = numbers[~np.isnan(numbers)]
        if not len(numbers):
            continue
        # Shares have one scale, so that they can be compared; distances and counts have their own.
        top = (float(numbers.max()) or 1.0) if name in LOWER_IS_BETTER else 1.0
        counts = np.histogram(numbers, _BINS, (0.0, top))[0].tolist()
        box = np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]) / top
        caption = f"{name}: 0 to {top:.3g}, {len(numbers)} rows, median {box[2] * top:.3g}"
        figures.append(figure(bars(counts, box.tolist()), caption))
    return figures


def dice_against_vessels(rows: Sequence[RunRow]) -> tuple[Html | None, str]:
    """Dice of each row against its vessel fraction, and Spearman's rank correlation in words."""
    points = [(100 * row.vessel_fraction, row.values["dice"]) for row in rows]
    points = [point for point in points if not any(map(math.isnan, point))]
    if not points:
        return None, ""
    share, dice = map(np.array, zip(*points, strict=True))

    def draw(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.scatter(share, dice, s=14, alpha=0.7, linewidths=0)
        axes.set(xlabel="vessel fraction of the truth, %", ylabel="Dice", ylim=(-0.02, 1.02))
        axes.set_xlim(left=0)

    words = f"{len(points)} rows"
    if len(points) > 2 and np.ptp(share) and np.ptp(dice):
        words += f"; Spearman's rank correlation {spearmanr(share, dice).statistic:.2f}"
    return svg_figure(draw, (6.0, 3.2), "Dice against vessel fraction"), words

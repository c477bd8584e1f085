"""The page's sections on the threshold and on what the probabilities mean."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..errors import DataError
from ..figures import COLOURS, svg_figure
from ..html import Html, figure, table, tag
from .html_files import RunFiles, number

_COLUMNS = ("threshold", "low", "min_area", "value", "band_low", "band_high", "chosen")
_MOST_LINES = 3
_BINS = (("equal_width", "bins of equal width"), ("equal_mass", "bins of equal mass"))


def threshold_section(run: RunFiles) -> list[Html]:
    """Section: the threshold, where it comes from, and the curve over all of them."""
    report = run.report
    rows = [("threshold", f"{report['threshold']:g}"), ("rule", report["threshold_rule"])]
    rows += [(f"post-processing: {k}", v) for k, v in (report.get("postprocess") or {}).items()]
    source = report.get("threshold_source")
    if isinstance(source, Mapping):
        rows += [(f"source: {k}", Path(str(v)).name) for k, v in source.items() if v is not None]
    else:
        rows.append(("source", source or "not recorded"))
    parts = [tag("h2", "Threshold"), table(("what", "value"), rows, "text")]
    if not run.curve.is_file():
        said = (
            "No curve over thresholds lies in this folder: not measured here. Run "
            "tools/tune_threshold.py on a run over validation frames."
        )
        return [*parts, tag("p", said)]
    lines = _read_curve(run.curve)
    shown = svg_figure(lambda canvas: _curve(canvas, lines), (6.0, 3.2), "score by threshold")
    said = "The score by threshold with its pointwise bootstrap band; the point is the choice."
    return [*parts, figure(shown, said)]


def _read_curve(path: Path) -> list[dict[str, float]]:
    """The lines of threshold_curve.csv; what is empty there is ``nan``.

    Raises:
        DataError: it is not such a file.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = [{key: _cell(line[key]) for key in _COLUMNS} for line in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            found=f"{path} cannot be read: {type(error).__name__}: {error}",
            expected=f"a table with the columns {', '.join(_COLUMNS)}",
            fix="make it again with tools/tune_threshold.py, or remove it",
        ) from error
    return lines


def _cell(text: str) -> float:
    words = {"": math.nan, "True": 1.0, "False": 0.0}
    return words[text] if text in words else float(text)


def _curve(canvas: Figure, lines: list[dict[str, float]]) -> None:
    axes = canvas.subplots()
    groups: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    for line in lines:
        groups[str(line["low"]), line["min_area"]].append(line)
    # The chosen post-processing first, then none at all; of many others only the first ones.
    order = sorted(
        groups, key=lambda key: (-max(line["chosen"] for line in groups[key]), key[0] != "nan", key)
    )
    for key, colour in zip(order[:_MOST_LINES], COLOURS, strict=False):
        members = sorted(groups[key], key=lambda line: line["threshold"])
        cuts = [line["threshold"] for line in members]
        label = (
            "threshold alone"
            if key[0] == "nan" and key[1] <= 1
            else (f"min_area {key[1]:g}" + ("" if key[0] == "nan" else f", low {key[0]}"))
        )
        axes.plot(cuts, [line["value"] for line in members], color=colour, label=label)
        bounds = ([line[name] for line in members] for name in ("band_low", "band_high"))
        axes.fill_between(cuts, *bounds, color=colour, alpha=0.2, linewidth=0)
        for line in members:
            if line["chosen"]:
                axes.plot(line["threshold"], line["value"], "o", color=colour)
    axes.set(xlabel="threshold", ylabel="score", xlim=(0, 1))
    axes.legend(fontsize=7)


def reliability_section(run: RunFiles) -> list[Html]:
    """Section: the reliability diagram and its errors (:mod:`.calibration`)."""
    found: Mapping[str, Any] | None = run.report.get("calibration")
    parts = [tag("h2", "Reliability of the probabilities")]
    if not found:
        said = "Not measured: test again, or run tools/score.py RUN --out FOLDER."
        return [*parts, tag("p", said)]
    bounds = found.get("ece_interval")
    rows = [
        ("ECE, equal width", f"{number(found['ece']):.4f}" + (_bounds(bounds) if bounds else "")),
        ("largest error of a bin (MCE), equal width", f"{number(found['mce']):.4f}"),
        ("ECE, equal mass", f"{number(found['equal_mass_ece']):.4f}"),
        ("largest error of a bin (MCE), equal mass", f"{number(found['equal_mass_mce']):.4f}"),
        ("Brier score", f"{number(found['brier']):.4f}"),
        ("pixels", f"{found['pixels']}"),
    ]
    said = (
        "Of the pixels called 0.7, are 70 % vessel? All pixels of all rows count. Vessels fill a "
        "few percent of a frame, so the bin near 0 holds most pixels and rules the ECE."
    )
    diagram = svg_figure(
        lambda canvas: _reliability(canvas, found), (8.0, 3.4), "reliability diagram"
    )
    shown = figure(diagram, "On the dashed line probabilities are what they say.")
    return [*parts, tag("p", said), shown, table(("what", "value"), rows, "text")]


def _reliability(canvas: Figure, found: Mapping[str, Any]) -> None:
    diagram, counts = canvas.subplots(1, 2)
    diagram.plot([0, 1], [0, 1], "--", color=COLOURS[5], linewidth=1)
    for (key, label), colour in zip(_BINS, COLOURS, strict=False):
        bins = [item for item in found[key] if item["pixels"]]
        points = [(item["mean_probability"], item["observed_frequency"]) for item in bins]
        diagram.plot(*zip(*points, strict=True), "o-", ms=4, color=colour, label=label)
    diagram.set(xlabel="mean probability", ylabel="share that is vessel", xlim=(0, 1), ylim=(0, 1))
    diagram.legend(loc="upper left")
    wide = found["equal_width"]
    low, width = [b["low"] for b in wide], [b["high"] - b["low"] for b in wide]
    counts.bar(low, [b["pixels"] for b in wide], width, align="edge", color=COLOURS[0])
    counts.set(xlabel="probability", ylabel="pixels", xlim=(0, 1), yscale="symlog")


def _bounds(bounds: list[float]) -> str:
    return f" [{bounds[0]:.4f}, {bounds[1]:.4f}]"

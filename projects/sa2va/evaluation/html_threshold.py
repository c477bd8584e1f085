"""The page's sections on the threshold and on what the probabilities mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..figures import svg_figure
from ..html import Html, figure, table, tag
from .diagrams import Diagram, curve_diagram, reliability_diagram
from .html_files import RunFiles, number


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
    shown = svg_figure(*_read_curve(run.curve), "score by threshold")
    said = "The score by threshold with its pointwise bootstrap band; the point is the choice."
    return [*parts, figure(shown, said)]


def _read_curve(path: Path) -> Diagram:
    """The diagram of threshold_curve.json.

    Raises:
        DataError: it is not such a file.
    """
    try:
        return curve_diagram(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(
            found=f"{path} cannot be read: {type(error).__name__}: {error}",
            expected="threshold_curve.json as tools/tune_threshold.py writes it",
            fix="make it again with tools/tune_threshold.py, or remove it",
        ) from error


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
    diagram = svg_figure(*reliability_diagram(found), "reliability diagram")
    shown = figure(diagram, "On the dashed line probabilities are what they say.")
    return [*parts, tag("p", said), shown, table(("what", "value"), rows, "text")]


def _bounds(bounds: list[float]) -> str:
    return f" [{bounds[0]:.4f}, {bounds[1]:.4f}]"

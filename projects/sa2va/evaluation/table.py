"""The table of a test run for the log."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from .bootstrap import Interval, Intervals
from .metrics import LOWER_IS_BETTER
from .summary import Summary


def metrics_table(
    summary: Summary,
    *,
    frames: int,
    rows: int,
    threshold: float,
    footer: str = "",
    intervals: Intervals | None = None,
    oracle: Summary | None = None,
) -> str:
    """The means as plain text: one line per metric, one column per kind of mean.

    Behind the means stand their intervals, then for how many rows the metric is undefined and
    hence not in the mean, and the ceiling of the decoder's grid (mean over rows).

    Args:
        summary: from :func:`.summary.summarise`.
        frames: number of frames.
        rows: number of (frame, phrase) rows.
        threshold: where the probabilities were cut.
        footer: a last line, such as how many answers held [SEG].
        intervals: of ``summary``.
        oracle: means of the truth pushed through the decoder's grid.
    """
    unit = "frames" if rows == frames else "rows"
    table = Table(box=box.ASCII2, show_edge=True, pad_edge=True)
    table.add_column("metric")
    for heading in (
        f"mean over {unit} ({rows})",
        f"mean over patients ({len(summary.per_patient)})",
        "pooled",
        "undefined",
        *(["oracle"] if oracle is not None else []),
    ):
        table.add_column(heading, justify="right")
    for name in summary.mean:
        undefined = summary.undefined["mean"][name]
        if undefined == rows and name.endswith("_mm"):
            continue  # no frame has a pixel spacing
        cells = [
            _cell(name, values[name], (bounds or {}).get(name), intervals is not None)
            for values, bounds in zip(
                (summary.mean, summary.patient_mean, summary.pooled),
                _bounds(intervals),
                strict=True,
            )
        ]
        ceiling = [] if oracle is None else [_number(name, oracle.mean[name], 3)]
        table.add_row(name, *cells, str(undefined), *ceiling)
    text = io.StringIO()
    # A fixed width, so that a log file does not depend on the terminal it was written from.
    Console(file=text, width=140, color_system=None, force_terminal=False).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    lines.append(f"{frames} frames, positive where probability >= {threshold:g}")
    if intervals is not None:
        about = (
            f"{intervals.resamples} bootstrap resamples of {intervals.clusters} {intervals.unit}s"
        )
        lines.append("; ".join(filter(None, [f"[{intervals.level:.0%}]: {about}", intervals.note])))
    return "\n".join([*lines, footer] if footer else lines)


def _bounds(intervals: Intervals | None) -> tuple[Mapping[str, Interval | None] | None, ...]:
    if intervals is None:
        return (None, None, None)
    return intervals.mean, intervals.patient_mean, intervals.pooled


def _cell(name: str, value: float, bounds: Interval | None, short: bool) -> str:
    text = _number(name, value, 3 if short else 4)
    if bounds is None:
        return text
    return f"{text} [{', '.join(_number(name, bound, 3) for bound in bounds)}]"


def _number(name: str, value: float, digits: int) -> str:
    # Distances and counts are not shares: two digits behind the point are enough.
    return "-" if math.isnan(value) else f"{value:.{2 if name in LOWER_IS_BETTER else digits}f}"

"""The table of a test run for the log."""

from __future__ import annotations

import io
import math

from rich import box
from rich.console import Console
from rich.table import Table

from .metrics import METRIC_NAMES, Summary


def metrics_table(
    summary: Summary, *, frames: int, rows: int, threshold: float, footer: str = ""
) -> str:
    """The means as plain text: one line per metric, one column per kind of mean.

    The last column says for how many rows the metric is undefined and hence not in the mean.

    Args:
        summary: from :func:`.metrics.summarise`.
        frames: number of frames.
        rows: number of (frame, phrase) rows.
        threshold: where the probabilities were cut.
        footer: a last line, such as how many answers held [SEG].
    """
    unit = "frames" if rows == frames else "rows"
    table = Table(box=box.ASCII2, show_edge=True, pad_edge=True)
    table.add_column("metric")
    for heading in (
        f"mean over {unit} ({rows})",
        f"mean over patients ({len(summary.per_patient)})",
        "pooled",
        f"{unit} undefined",
    ):
        table.add_column(heading, justify="right")
    for name in METRIC_NAMES:
        values = (summary.mean[name], summary.patient_mean[name], summary.pooled[name])
        undefined = summary.undefined["mean"][name]
        table.add_row(name, *map(_number, values), str(undefined))
    text = io.StringIO()
    # A fixed width, so that a log file does not depend on the terminal it was written from.
    Console(file=text, width=120, color_system=None, force_terminal=False).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    lines.append(f"{frames} frames, positive where probability >= {threshold:g}")
    return "\n".join([*lines, footer] if footer else lines)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"

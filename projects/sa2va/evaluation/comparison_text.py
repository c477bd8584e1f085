"""A comparison as a table for people, and as CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, fields
from pathlib import Path

from ..columns import columns
from ..errors import ConfigError
from ..files import write_atomic
from .compare import Comparison, Difference
from .writer import strict

FORMATS = (".md", ".csv", ".json")
_HEAD = (
    *("metric", "A", "B", "B - A", "95 %", "p", "p (Holm)", "d_z", "better", "worse", "n"),
    "left out",
)


def as_text(comparison: Comparison, markdown: bool = False) -> str:
    """One block a pair of runs, one line a metric, notes below."""
    lines: list[str] = []
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for item in comparison.differences:
        pairs.setdefault((item.a, item.b), []).append(item)
    for (a, b), items in pairs.items():
        lines += [f"A = {a}, B = {b}", ""]
        table = [_HEAD, *map(_cells, items)]
        if markdown:
            rows = ["| " + " | ".join(row) + " |" for row in table]
            lines += [rows[0], "|" + "---|" * len(_HEAD), *rows[1:]]
        else:
            lines += columns(table, right=range(1, len(_HEAD)))
        lines.append("")
    tests = sum(not math.isnan(item.p) for item in comparison.differences)
    lines.append(
        f"{comparison.units} {comparison.unit}s; {comparison.resamples} resamples, seed "
        f"{comparison.seed}; means over {comparison.unit}s; p from flipping the signs of "
        f"{comparison.unit}s, Holm over {tests} tests"
    )
    lines += (f"note: {note}" for note in comparison.notes)
    return "\n".join(lines) + "\n"


def write_comparison(comparison: Comparison, path: str | Path) -> None:
    """Writes ``.md``, ``.csv`` or ``.json``, by the suffix of ``path``.

    Raises:
        ConfigError: another suffix.
    """
    path = Path(path)
    check_format(path)
    if path.suffix == ".json":
        text = json.dumps(strict(asdict(comparison)), indent=1, allow_nan=False) + "\n"
    elif path.suffix == ".csv":
        text = _csv(comparison)
    else:
        text = as_text(comparison, markdown=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: file.write(text.encode()))


def check_format(path: str | Path) -> None:
    """Raises ConfigError unless ``path`` ends in a format that can be written."""
    if Path(path).suffix not in FORMATS:
        raise ConfigError(
            found=f"--out {path}",
            expected=f"a file ending in {', '.join(FORMATS)}",
            fix="rename it",
        )


def _csv(comparison: Comparison) -> str:
    text = io.StringIO(newline="")
    names = [field.name for field in fields(Difference) if field.name != "interval"]
    table = csv.DictWriter(text, [*names, "low", "high"])
    table.writeheader()
    for item in comparison.differences:
        low, high = item.interval or (math.nan, math.nan)
        row = {**vars(item), "low": low, "high": high}
        row.pop("interval")
        table.writerow(strict(row))
    return text.getvalue()


def _cells(item: Difference) -> tuple[str, ...]:
    interval = "-" if item.interval is None else "{:+.4f} to {:+.4f}".format(*item.interval)
    return (
        item.metric,
        *(_number(value, ".4f") for value in (item.mean_a, item.mean_b)),
        _number(item.difference, "+.4f"),
        interval,
        *(_number(value, ".4f") for value in (item.p, item.p_holm)),
        _number(item.effect_size, "+.2f"),
        *(_number(value, ".0%") for value in (item.improved, item.worsened)),
        str(item.units),
        str(item.left_out),
    )


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)

"""The table of a sweep, ``table.md`` and ``table.csv``: what the finished runs say.

The numbers are defined in :mod:`.statistics`. Runs whose results cannot be compared with the others
are left out and named.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, listing
from ..evaluation.bootstrap import Interval
from ..evaluation.compare import Run, check_comparable, patient_groups
from ..evaluation.compare_phrases import (
    OVER_PHRASES,
    PHRASE_MEANS,
    lower_is_better,
    pair_values,
    phrase_metrics,
)
from ..evaluation.run_means import run_means
from ..evaluation.writer import strict
from ..files import make_writable, write_atomic
from .spec import Spec
from .statistics import MIN_SEEDS, Estimate, difference, estimate
from .steps import Job

MARKDOWN, CSV = "table.md", "table.csv"
_HEAD = (
    *("row", "seeds", "mean", "sd over seeds", "min to max over seeds", "95 %"),
    *("difference", "95 % of the difference", "frames left out"),
)
_COSTS = ("row", "training, s", "peak, GiB", "trained parameters", "thresholds")


@dataclass(frozen=True)
class Finished:
    """A finished run: its results, and what its training took."""

    job: Job
    run: Run
    cost: Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A row of the table for one metric; ``gap`` is the difference to the baseline, or None."""

    row: str
    metric: str
    seeds: int
    mean: Estimate
    gap: Estimate | None


def write_tables(spec: Spec, jobs: Sequence[Job], work_dir: Path) -> list[tuple[Job, str]]:
    """Writes both tables of what is finished.

    Returns:
        The runs that are left out, and why.

    Raises:
        SetupError: the folder cannot be written to.
    """
    finished, strangers = collect(spec, jobs)
    lines, unit = compute(spec, finished)
    make_writable(work_dir, "--work-dir")
    markdown = as_markdown(spec, finished, lines, unit, strangers)
    for name, text in ((MARKDOWN, markdown), (CSV, as_csv(spec, finished, lines, unit))):
        write_atomic(work_dir / name, lambda file, text=text: file.write(text.encode()))
    return strangers


def collect(
    spec: Spec, jobs: Sequence[Job]
) -> tuple[dict[str, list[Finished]], list[tuple[Job, str]]]:
    """The finished runs by row, and those that cannot be compared with them, with the reason."""
    found: dict[str, list[Finished]] = {row.name: [] for row in spec.rows}
    strangers: list[tuple[Job, str]] = []
    first: Run | None = None
    # The baseline's first: what is not comparable with it is what is left out.
    for job in sorted(jobs, key=lambda job: job.row != spec.baseline):
        record = job.ended()
        if record is None:
            continue
        try:
            run = Run.read(job.folder / "test", job.name)
            check_comparable(first or run, run)
        except DataError as error:
            strangers.append((job, f"left out of the table: {error.found}"))
            continue
        first = first or run
        found[job.row].append(Finished(job, run, record["train"]))
    return found, strangers


def compute(spec: Spec, finished: Mapping[str, Sequence[Finished]]) -> tuple[list[Line], str]:
    """All numbers of the table, metric by metric, and the unit: 'patient' or 'frame'."""
    runs = [item.run for items in finished.values() for item in items]
    if not runs:
        return [], "frame"
    keys = sorted(runs[0].rows)
    groups, unit = patient_groups(runs[0], keys)
    lines = []
    for metric in spec.metrics:
        values = {
            row: np.array([_values(metric, item.run, keys) for item in items])
            for row, items in finished.items()
            if items
        }
        over = partial(run_means, metric, groups=groups, keys=keys)
        base = values.get(spec.baseline or "")
        for row, own in values.items():
            gap = None
            if base is not None and row != spec.baseline:
                gap = difference(own, base, over, spec.bootstrap)
            mean = estimate(own, over, spec.bootstrap)
            lines.append(Line(row, metric, len(own), mean, gap))
    return lines, unit


def _values(metric: str, run: Run, keys: Sequence[tuple[str, str]]) -> list[float] | np.ndarray:
    """A metric of each row of a run, ``nan`` where it is undefined.

    Raises:
        ConfigError: a mean over phrases of a kind that the run was not asked for.
    """
    if not metric.endswith(PHRASE_MEANS):
        return [_value(run.rows[key][metric]) for key in keys]
    known = phrase_metrics(run.report)
    if metric not in known:
        raise ConfigError(
            found=f"the metric {metric!r} of {run.name}, which has "
            + (listing(known) if known else "a single phrase"),
            expected="means over phrases of a kind that the test asks for",
            fix="correct metrics in the sweep's file",
        )
    return pair_values(metric, run.report, run.rows, keys)


def as_markdown(
    spec: Spec,
    finished: Mapping[str, Sequence[Finished]],
    lines: Sequence[Line],
    unit: str,
    strangers: Sequence[tuple[Job, str]],
) -> str:
    """The tables, one a metric and one of the cost, with notes on how to read them."""
    total = len(spec.rows) * len(spec.seeds)
    count = sum(map(len, finished.values()))
    text = [f"# Sweep {spec.name}", "", f"{count} of {total} runs.", ""]
    for metric in spec.metrics:
        better = "lower" if lower_is_better(metric) else "higher"
        rows = [_cells(spec, line) for line in lines if line.metric == metric]
        text += [f"## {metric} ({better} is better)", "", *_table(_HEAD, rows), ""]
    costs = [_costs(row, items) for row, items in finished.items() if items]
    text += ["## Cost", "", *_table(_COSTS, costs), "", "## How to read it", ""]
    text += [f"* {note}" for note in _notes(spec, lines, unit)]
    text += [f"* {job.name} is {reason}" for job, reason in strangers]
    return "\n".join(text) + "\n"


def as_csv(
    spec: Spec, finished: Mapping[str, Sequence[Finished]], lines: Sequence[Line], unit: str
) -> str:
    """A line a metric and row; what is undefined or not known is empty."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, _COLUMNS)
    table.writeheader()
    for line in lines:
        costs = [item.cost for item in finished[line.row]]
        mean, gap = line.mean, line.gap
        low, high = mean.interval or (None, None)
        gap_low, gap_high = (gap and gap.interval) or (None, None)
        table.writerow(
            strict(
                {
                    "metric": line.metric,
                    "row": line.row,
                    "seeds": line.seeds,
                    "mean": mean.value,
                    "seed_sd": mean.seed_sd,
                    "seed_min": min(mean.seed_values, default=None),
                    "seed_max": max(mean.seed_values, default=None),
                    "low": low,
                    "high": high,
                    "unit": unit,
                    "units": mean.units,
                    "seeds_drawn": mean.seeds_drawn,
                    "left_out": mean.left_out,
                    "baseline": gap and spec.baseline,
                    "difference": gap and gap.value,
                    "difference_low": gap_low,
                    "difference_high": gap_high,
                    "difference_seeds_drawn": gap and gap.seeds_drawn,
                    "difference_left_out": gap and gap.left_out,
                    "training_seconds": _mean(_known(costs, "training_seconds")),
                    "peak_gib": max(_known(costs, "peak_gib"), default=None),
                    "trained_parameters": max(_known(costs, "trained_parameters"), default=None),
                }
            )
        )
    return text.getvalue()


_COLUMNS = (
    *("metric", "row", "seeds", "mean", "seed_sd", "seed_min", "seed_max", "low", "high"),
    *("unit", "units", "seeds_drawn", "left_out", "baseline", "difference", "difference_low"),
    *("difference_high", "difference_seeds_drawn", "difference_left_out", "training_seconds"),
    *("peak_gib", "trained_parameters"),
)


def _cells(spec: Spec, line: Line) -> tuple[str, ...]:
    mean, gap, own = line.mean, line.gap, line.mean.seed_values
    return (
        line.row + (" (baseline)" if line.row == spec.baseline else ""),
        f"{line.seeds} of {len(spec.seeds)}",
        _number(mean.value, ".4f"),
        _number(mean.seed_sd, ".4f"),
        f"{min(own):.4f} to {max(own):.4f}" if len(own) > 1 else "-",
        _interval(mean.interval, ".4f"),
        "-" if gap is None else _number(gap.value, "+.4f"),
        "-" if gap is None else _interval(gap.interval, "+.4f"),
        str(mean.left_out) + (f" ({gap.left_out} of the difference)" if gap else ""),
    )


def _costs(row: str, items: Sequence[Finished]) -> tuple[str, ...]:
    costs = [item.cost for item in items]
    seconds, peaks = _known(costs, "training_seconds"), _known(costs, "peak_gib")
    counts = sorted(set(_known(costs, "trained_parameters")))
    return (
        row,
        f"{_mean(seconds):.1f}" if seconds else "-",
        f"{max(peaks):.2f}" if peaks else "-",
        ", ".join(f"{count:,}" for count in counts) or "-",
        ", ".join(f"{item.run.report['threshold']:g}" for item in items),
    )


def _notes(spec: Spec, lines: Sequence[Line], unit: str) -> list[str]:
    units = max((line.mean.units for line in lines), default=0)
    drawn = any(line.mean.seeds_drawn for line in lines)
    notes = [
        f"Means are over {units} {unit}s of the split {spec.test_split!r}, each the mean over its "
        "frames and over seeds. A frame that is undefined for one seed is left out for all seeds "
        "of the row, and counted.",
        f"95 %: percentile bootstrap over {unit}s, {spec.bootstrap} resamples, seed 0. It speaks "
        f"of other {unit}s of this kind, not of other hospitals.",
        f"Seeds are drawn again, too, for rows with {MIN_SEEDS} or more: their intervals cover "
        "another training; those of a difference only where both rows have as many."
        if drawn
        else f"Seeds are not drawn again, for there are fewer than {MIN_SEEDS}: the intervals know "
        "nothing of another training. Look at the spread over seeds beside them.",
    ]
    if any(metric.endswith(OVER_PHRASES) for metric in spec.metrics):
        notes.append(
            f"A mean over phrases is that of each phrase's mean over frames; resamples of {unit}s "
            "take it anew, without phrases that were not drawn. Left out are pairs of a frame and "
            "a phrase that is absent there or of another kind."
        )
    if spec.baseline is not None:
        notes.append(
            f"Differences are row minus {spec.baseline}, paired on the same frames. They are not "
            "corrected for the number of rows and metrics."
        )
    if unit == "frame":
        notes.append(
            "No patient ids: frames count as independent; if patients have several, intervals are "
            "too narrow."
        )
    if spec.tune is not None:
        notes.append(
            f"Thresholds were chosen for {spec.tune.metric} on the split {spec.tune.split!r}, for "
            "each run by itself."
        )
    if spec.test_split == "val" and spec.checkpoint == "best":
        notes.append("The split 'val' also chose the checkpoints: too good for other frames.")
    notes.append(
        "Training seconds are those of the iterations, without start and validation, a mean over "
        "seeds; the peak is what torch held of a card, the highest of all seeds. - was not logged."
    )
    return notes


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _known(costs: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    return [cost[key] for cost in costs if cost[key] is not None]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _value(stored: float | None) -> float:
    return math.nan if stored is None else stored


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _interval(interval: Interval | None, form: str) -> str:
    return "-" if interval is None else " to ".join(format(value, form) for value in interval)

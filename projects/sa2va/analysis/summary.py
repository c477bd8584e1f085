"""The numbers of a training log, as plain values and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..columns import columns
from .logs import TrainingLog
from .verdict import Verdict, smooth

SEG_RATE = "seg_emission_rate"
_MOST_VALIDATIONS = 12


def summarise_log(log: TrainingLog, verdict: Verdict) -> dict[str, Any]:
    """Losses, validations, learning rate, speed and memory, with the verdict.

    Returns:
        Plain values; ``nan`` where something was not logged or not defined.
    """
    return {
        "run": log.name,
        "starts": [vars(start) for start in log.starts],
        "iterations": int(log.train[-1]["step"]),
        "verdict": verdict.word,
        "reasons": verdict.reasons,
        "advice": verdict.advice,
        "spikes": verdict.spikes,
        "losses": {name: _loss(*log.curve(name)) for name in log.losses},
        "validations": log.val,
        "learning_rate": _rates(log),
        "seconds": _speed(log),
        "memory": _memory(log),
    }


def _loss(steps: np.ndarray, values: np.ndarray) -> dict[str, float]:
    line = smooth(values)
    if np.isnan(line).all():
        return dict.fromkeys(("first", "best", "best_step", "last"), math.nan)
    at = int(np.nanargmin(line))
    known = line[~np.isnan(line)]
    return {
        "first": float(known[0]),
        "best": float(line[at]),
        "best_step": float(steps[at]),
        "last": float(known[-1]),
    }


def _rates(log: TrainingLog) -> dict[str, float]:
    _, rates = log.curve("lr")
    if not len(rates):
        return {}
    return {"first": float(rates[0]), "highest": float(rates.max()), "last": float(rates[-1])}


def _speed(log: TrainingLog) -> dict[str, float]:
    """Seconds an iteration, and how far off an estimate of the time left would have been.

    ``eta_error_25`` (``_50``): at a quarter (half) of the iterations, the mean time so far is taken
    for those to come, as mmengine's ``eta`` does; the error is relative to the time that they took.
    Validation is in neither.
    """
    steps, times = log.curve("time")
    if not len(times):
        return {}
    done = np.diff(steps, prepend=0.0)
    spent = done * times
    found = {
        "median": float(np.median(times)),
        "slowest": float(times.max()),
        "data_share": _data_share(log),
        "trained_hours": float(spent.sum() / 3600),
    }
    for share in (25, 50):
        first = steps <= steps[-1] * share / 100
        if first.any() and not first.all():
            estimate = spent[first].sum() / done[first].sum() * done[~first].sum()
            found[f"eta_error_{share}"] = float(estimate / spent[~first].sum() - 1)
    return found


def _data_share(log: TrainingLog) -> float:
    _, waits = log.curve("data_time")
    _, times = log.curve("time")
    return float(waits.sum() / times.sum()) if len(waits) == len(times) else math.nan


def _memory(log: TrainingLog) -> dict[str, float]:
    """Highest of each part in GiB; ``allocated`` is mmengine's ``memory``, logged in MiB."""
    names = [name for name in log.names() if name.startswith("memory/")]
    found = {name.removeprefix("memory/"): float(np.nanmax(log.curve(name)[1])) for name in names}
    _, allocated = log.curve("memory")
    return {"allocated": float(allocated.max() / 1024), **found} if len(allocated) else found


# ----------------------------------------------------------------------------------------- text


def as_text(found: Mapping[str, Any], metric: str) -> str:
    """A page for the terminal."""
    lines = [f"{found['run']}: {found['verdict'].upper()}"]
    lines += [f"  {reason}" for reason in found["reasons"]]
    lines += [f"  what to do: {found['advice']}"] if found["advice"] else []
    lines.append("")
    for start in found["starts"]:
        notes = [f"replaces {start['replaced']} earlier lines"] if start["replaced"] else []
        notes += ["its last line is cut off"] if start["cut"] else []
        about = f" ({'; '.join(notes)})" if notes else ""
        lines.append(
            f"start {start['name']}: iterations {start['first']} to {start['last']}{about}"
        )
    lines.append("")
    lines += columns(loss_table(found), right=range(1, 5))
    lines.append("")
    if found["validations"]:
        table = validation_table(found, metric)
        lines += [*columns(table, right=range(len(table[0]))), ""]
    lines += [f"{name}: {value}" for name, value in fact_table(found)]
    return "\n".join(lines) + "\n"


def loss_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows: each loss, smoothed, at its start, best and end."""
    rows = [["loss (smoothed)", "first", "best", "at", "last"]]
    for name, item in found["losses"].items():
        cells = (f"{item[key]:.4g}" for key in ("first", "best"))
        rows.append([name, *cells, f"{item['best_step']:.0f}", f"{item['last']:.4g}"])
    return rows


def validation_table(found: Mapping[str, Any], metric: str) -> list[list[str]]:
    """Head and rows: ``metric`` and the rate of [SEG] by iteration; of many, evenly chosen ones."""
    lines: Sequence[Mapping[str, Any]] = found["validations"]
    prefix = metric.rsplit("/", 1)[0] + "/" if "/" in metric else ""
    wanted = [metric, *(prefix + name for name in ("precision", "recall", SEG_RATE))]
    names = [name for name in dict.fromkeys(wanted) if any(name in line for line in lines)]
    chosen = np.unique(np.linspace(0, len(lines) - 1, _MOST_VALIDATIONS).round().astype(int))
    rows = [["iteration", *names]]
    for line in (lines[k] for k in chosen):
        rows.append([str(line["step"]), *(_value(line.get(name)) for name in names)])
    return rows


def fact_table(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is left: learning rate, speed, memory."""
    rate, seconds, memory = found["learning_rate"], found["seconds"], found["memory"]
    rows = []
    if rate:
        text = f"{rate['first']:.3g}, highest {rate['highest']:.3g}, last {rate['last']:.3g}"
        rows.append(("learning rate", f"first {text}"))
    if seconds:
        rows.append(
            (
                "seconds an iteration",
                f"median {seconds['median']:.3f}, slowest {seconds['slowest']:.3f}, "
                f"{seconds['data_share']:.0%} of it waiting for data; "
                f"{seconds['trained_hours']:.2f} h of training in all",
            )
        )
    errors = [
        f"{seconds[f'eta_error_{share}']:+.0%} at {share} % of the iterations"
        for share in (25, 50)
        if f"eta_error_{share}" in seconds
    ]
    if errors:
        rows.append(("error of the time that was estimated to be left", ", ".join(errors)))
    if memory:
        text = ", ".join(f"{name} {gib:.2f}" for name, gib in memory.items())
        rows.append(("highest memory, GiB", text))
    return rows


def _value(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"

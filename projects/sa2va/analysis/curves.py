"""Training curves of one or several runs, as a picture and as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures import COLOURS, png_figure, svg_figure
from ..html import Html, bullets, figure, page, table, tag
from .logs import TrainingLog
from .summary import SEG_RATE, fact_table, loss_table, validation_table
from .verdict import smooth

_COLUMNS = 2
_RESERVED = "memory/reserved"


def _panels(
    logs: Sequence[TrainingLog], metric: str
) -> list[tuple[str, Callable[[Axes, TrainingLog, str], None]]]:
    """Titles and what draws one run into a panel; only what some run has logged."""
    losses = dict.fromkeys(name for log in logs for name in log.losses)
    parts = [name for name in losses if name != "loss"]
    rate = metric.rsplit("/", 1)[0] + "/" + SEG_RATE if "/" in metric else SEG_RATE
    found = [(name, _train(name, smoothed=True)) for name in ["loss", *parts]]
    if any(metric in log.names(validation=True) for log in logs):
        found.append((f"validation: {metric}", _val(metric)))
    if any(rate in log.names(validation=True) for log in logs):
        found.append(("validation: [SEG] emission rate", _val(rate, (-0.05, 1.05))))
    logged = {name for log in logs for name in log.names()}
    for key, title in (
        ("lr", "learning rate"),
        ("grad_norm", "norm of the gradient"),
        ("time", "seconds an iteration"),
    ):
        if key in logged:
            found.append((title, _train(key)))
    if len(logs) > 1 and _RESERVED in logged:
        found.append(("memory held by torch, GiB", _train(_RESERVED)))  # parts of all: a thicket
    elif any(name.startswith("memory/") for name in logged):
        found.append(("memory by part of a step, GiB", _memory))
    return found


def _train(key: str, smoothed: bool = False) -> Callable[[Axes, TrainingLog, str], None]:
    def draw(axes: Axes, log: TrainingLog, colour: str) -> None:
        steps, values = log.curve(key)
        if smoothed and len(values):
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
            axes.plot(steps, smooth(values), color=colour, label=log.name)
        else:
            axes.plot(steps, values, color=colour, label=log.name)

    return draw


def _val(
    key: str, limits: tuple[float, float] | None = None
) -> Callable[[Axes, TrainingLog, str], None]:
    def draw(axes: Axes, log: TrainingLog, colour: str) -> None:
        if limits is not None:
            axes.set_ylim(*limits)
        axes.plot(*log.curve(key, validation=True), "o-", ms=3, color=colour, label=log.name)

    return draw


def _memory(axes: Axes, log: TrainingLog, colour: str) -> None:
    names = [name for name in log.names() if name.startswith("memory/")]
    dashes = ["-", "--", "-.", ":"]
    for number, name in enumerate(names):
        part = name.removeprefix("memory/")
        style = dashes[number % len(dashes)]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(*log.curve(name), style, color=colour, linewidth=1, label=f"{log.name}: {part}")


def _draw(logs: Sequence[TrainingLog], metric: str) -> tuple[Callable[[Figure], None], int]:
    panels = _panels(logs, metric)
    lines = -(-len(panels) // _COLUMNS)

    def draw(canvas: Figure) -> None:
        for place, (title, panel) in enumerate(panels, 1):
            axes = canvas.add_subplot(lines, _COLUMNS, place)
            for number, log in enumerate(logs):
                panel(axes, log, COLOURS[number % len(COLOURS)])
            axes.set(title=title, xlabel="iteration")
            if _spans_decades(axes) and title.startswith("loss"):
                axes.set_yscale("log")
            if panel is _memory or (place == 1 and len(logs) > 1):
                axes.legend(fontsize=7)

    return draw, lines


def _spans_decades(axes: Axes) -> bool:
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() > 20 * values.min())


def curves_png(logs: Sequence[TrainingLog], metric: str) -> bytes:
    """All curves as one PNG."""
    draw, lines = _draw(logs, metric)
    return png_figure(draw, (10.0, 2.4 * lines))


def training_page(
    logs: Sequence[TrainingLog], summaries: Sequence[Mapping[str, Any]], metric: str
) -> str:
    """A page that stands alone: verdicts, tables and curves."""
    draw, lines = _draw(logs, metric)
    body: list[Html] = [
        tag("h1", "Training"),
        figure(svg_figure(draw, (10.0, 2.4 * lines), "curves")),
    ]
    for found in summaries:
        body.append(tag("h2", f"{found['run']}: {found['verdict']}"))
        body.append(bullets(found["reasons"]))
        if found["advice"]:
            body.append(tag("p", tag("b", "What to do: "), found["advice"]))
        (head, *rows) = loss_table(found)
        body.append(table(head, rows))
        if found["validations"]:
            head, *rows = validation_table(found, metric)
            body.append(table(head, rows, "sortable"))
        body.append(table(("what", "value"), fact_table(found), "text"))
    return page("Training", body)

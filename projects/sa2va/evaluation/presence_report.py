"""The operating curve as tables for people, as CSV and as picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..columns import columns
from ..errors import listing
from ..figures import COLOURS
from ..models.outputs import DEFAULT_PRESENCE_THRESHOLD
from .diagrams import Diagram
from .phrases import MEAN_NAMES, Score, score_text
from .presence import SHOWN, Beside, Pairs, Point
from .presence_auc import PresenceAUC
from .writer import strict

FEW_FRAMES = 5
"""A phrase that is labelled in fewer has a Dice that says little."""
FAR_BELOW = 0.05
"""A false-positive rate that is lower by more than this is not the same."""
_OVER_PHRASES, _OVER_PAIRS, _FALSE_POSITIVES, _MISSES = MEAN_NAMES
_AXES = (_FALSE_POSITIVES, _OVER_PHRASES)
_MEANS = ("Dice, phrases", "Dice, pairs", "false positives", "missed")


def curve_table(curve: Sequence[Point]) -> str:
    """A line for each of the thresholds :data:`.presence.SHOWN`."""
    shown = [point for point in curve if point.threshold in SHOWN]
    rows = [("presence >=", *_MEANS)]
    for point in shown:
        mark = " (default)" if point.threshold == DEFAULT_PRESENCE_THRESHOLD else ""
        cells = (score_text(point.scores[name]) for name in MEAN_NAMES)
        rows.append((f"{point.threshold:.2f}{mark}", *cells))
    return "\n".join(columns(rows, right=range(1, len(rows[0]))))


def auc_table(found: PresenceAUC) -> str:
    """The three AUC, a line each."""
    rows = [
        ("AUC over pairs, presence", score_text(found.presence)),
        ("AUC over pairs, how often a phrase is labelled", score_text(found.frequency)),
        (
            f"AUC within a phrase, presence (mean of {found.both} of {found.phrases})",
            score_text(found.within_phrase),
        ),
    ]
    return "\n".join(columns(rows))


def beside_table(name: str, found: Sequence[Beside]) -> str:
    """A line for each run beside the run ``name``, at its false-positive rate."""
    head = ("at the false-positive rate of", "its false positives", "its Dice, phrases")
    own = ("presence >=", "false positives", "Dice, phrases", "difference")
    rows = [(*head, *own)]
    for one in found:
        theirs = (score_text(one.point[key]) for key in (_FALSE_POSITIVES, _OVER_PHRASES))
        if one.same_rate is None or one.difference is None:
            rows.append((_label(one), *theirs, "none", "-", "-", "-"))
            continue
        scores = one.same_rate.scores
        gap, bounds = f"{one.difference.difference:+.3f}", one.difference.interval
        gap += "" if bounds is None else " [{:+.3f}, {:+.3f}]".format(*bounds)
        ours = (score_text(scores[key]) for key in (_FALSE_POSITIVES, _OVER_PHRASES))
        rows.append((_label(one), *theirs, f"{one.same_rate.threshold:.4g}", *ours, gap))
    text = "\n".join(columns(rows, right=range(1, len(rows[0]))))
    return (
        f"{text}\ndifference: mean Dice over phrases, {name} minus the other, paired\n"
        "the threshold is found on these very frames and held fixed in the bootstrap:\n"
        "false-positive rates agree on the whole sample, not in every resample"
    )


def beside_notes(name: str, found: Sequence[Beside]) -> list[str]:
    """Where the run ``name`` stays far below the false-positive rate of another, and why."""
    notes = []
    for one in found:
        if one.same_rate is None:
            continue
        theirs, own = (
            scores[_FALSE_POSITIVES].value for scores in (one.point, one.same_rate.scores)
        )
        if round(theirs - own, 9) <= FAR_BELOW:
            continue
        reason = (
            "it marks less even when everything is drawn"
            if one.same_rate.threshold == 0
            else "the next lower threshold is above it at once (many pairs share a presence, or "
            "few are absent)"
        )
        notes.append(
            f"{name} has a false-positive rate of {own:.3f} where {_label(one)} has {theirs:.3f}: "
            f"{reason}; the difference is not one at the same rate"
        )
    return notes


def few_frames_notes(pairs: Pairs, intervals: bool) -> list[str]:
    """Whether the mean over phrases rests on phrases that are hardly ever labelled.

    Args:
        pairs: of the curve's run.
        intervals: the scores have intervals.
    """
    few = [phrase for phrase, frames in pairs.labelled.items() if 0 < frames < FEW_FRAMES]
    if not few:
        return []
    note = (
        f"{len(few)} of {len(pairs.phrases)} phrases of the kind {pairs.kind!r} are labelled in "
        f"fewer than {FEW_FRAMES} frames ({listing(few, 5)}): the mean over phrases rests on them "
        "as on all others"
    )
    if intervals:
        note += (
            ", and its interval is unreliable and need not lie around it, because a resample "
            "leaves out a phrase that was not drawn"
        )
    return [note]


def few_absent_notes(pairs: Pairs) -> list[str]:
    """Whether a false-positive rate is over a part of the absent pairs alone."""
    if not pairs.partly_asked:
        return []
    return [
        f"{pairs.partly_asked} of {len(pairs.frames)} frames were asked about fewer than all "
        f"{len(pairs.phrases)} phrases of the kind {pairs.kind!r}: the false-positive rate is over "
        f"{pairs.absent} absent pairs alone; val_dataloader.dataset.absent=all in tools/test.py "
        "asks about all"
    ]


def curve_csv(kind: str, curve: Sequence[Point]) -> bytes:
    """A line a threshold, with the kind of the phrases.

    Each mean has its interval in ``_low`` and ``_high``; what is undefined is empty.
    """
    text = io.StringIO(newline="")
    names = [f"{name}{end}" for name in MEAN_NAMES for end in ("", "_low", "_high")]
    table = csv.DictWriter(text, ["kind", "threshold", *names, "default"])
    table.writeheader()
    for point in curve:
        row: dict[str, object] = {"kind": kind, "threshold": point.threshold}
        for name, score in point.scores.items():
            low, high = score.interval or (None, None)
            row |= {name: score.value, f"{name}_low": low, f"{name}_high": high}
        is_default = point.threshold == DEFAULT_PRESENCE_THRESHOLD
        table.writerow(strict({**row, "default": is_default}))
    return text.getvalue().encode()


def operating_diagram(
    name: str, kind: str, curve: Sequence[Point], beside: Sequence[Beside] = ()
) -> Diagram:
    """Mean Dice over phrases against the false-positive rate.

    Args:
        name: of the run.
        kind: of the phrases.
        curve: from :func:`.presence.operating_curve`.
        beside: other runs.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _line(axes, curve, color=COLOURS[0], label=name, marker=".", markersize=3)
        default = next(p for p in curve if p.threshold == DEFAULT_PRESENCE_THRESHOLD)
        label = f"{name}, presence >= {default.threshold:g} (default)"
        _point(
            axes,
            default.scores,
            color=mpl.rcParams["text.color"],
            label=label,
            marker="o",
            zorder=4,
        )
        for one, colour in zip(beside, _colours(len(beside)), strict=True):
            _line(axes, one.curve, color=colour, linewidth=1)
            _point(axes, one.point, color=colour, label=_label(one), marker="s")
        axes.set(xlabel="false-positive rate", ylabel=f"mean Dice over phrases ({kind})")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)

    return draw, (7.0, 4.2)


def _label(one: Beside) -> str:
    return one.name + ("" if one.threshold is None else f", presence >= {one.threshold:g}")


def _colours(number: int) -> list[str]:
    own = COLOURS[1:]
    return [own[k % len(own)] for k in range(number)]


def _line(axes: Axes, curve: Sequence[Point], **style: object) -> None:
    found = [[point.scores[key].value for point in curve] for key in _AXES]
    axes.plot(*found, **style)


def _point(axes: Axes, scores: Mapping[str, Score], **style: object) -> None:
    """A point with its intervals, where it has them."""
    at, lengths = [scores[key].value for key in _AXES], []
    for value, key in zip(at, _AXES, strict=True):
        low, high = scores[key].interval or (value, value)
        # A percentile interval need not hold the value.
        lengths.append([[max(0.0, value - low)], [max(0.0, high - value)]])
    axes.errorbar(
        *at, xerr=lengths[0], yerr=lengths[1], linestyle="", capsize=2, markersize=5, **style
    )

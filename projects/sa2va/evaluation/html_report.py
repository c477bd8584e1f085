"""One HTML page about a test run, made from the files of its folder only.

The page stands alone: style, diagrams and pictures are inside. It names files without their
folders, and frames and patients as the results do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import write_atomic
from ..html import Html, bullets, figure, folded, image, join, page, table, tag
from .html_figures import dice_against_vessels, distributions
from .html_files import RunFiles, RunRow, number, read_picture
from .html_provenance import definitions, provenance
from .html_threshold import reliability_section, threshold_section
from .metrics import LOWER_IS_BETTER
from .phrases import MEAN_NAMES, PHRASE_NAMES, Score, score_text

PAGE = "report.html"
_HEADLINE = ("dice", "cldice", "hd95")
_MOST_ROWS = 1000
_EXTREMES = 10
_PANEL_WIDTH, _PANEL_QUALITY = 1200, 72
_KINDS = (("worst", "Worst frames"), ("best", "Best frames"), ("random", "Random frames"))


def write_html_report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    pictures: str | Path | None = None,
    curve: str | Path | None = None,
) -> Path:
    """Writes the page about a results folder.

    Args:
        folder: of tools/test.py or tools/score.py.
        out: the file; ``report.html`` in the folder by default.
        pictures: folder of the six-panel pictures; ``pictures`` in ``folder`` by default.
        curve: threshold_curve.json; the one in ``folder`` by default.

    Returns:
        Where it was written.

    Raises:
        DataError: a file of the folder is missing or damaged.
    """
    path = Path(out) if out is not None else Path(folder) / PAGE
    text = html_report(RunFiles(folder, pictures, curve)).encode()
    write_atomic(path, lambda file: file.write(text))
    return path


def html_report(run: RunFiles) -> str:
    """The page.

    Raises:
        DataError: a picture, the threshold curve or the calibration cannot be read.
    """
    title = f"Test run {run.folder.resolve().name}"
    return page(
        title,
        [
            tag("h1", title),
            _banner(run),
            *_summary(run),
            *_phrases(run),
            *_distributions(run),
            *_patients(run),
            *_frames(run),
            *_failures(run),
            *threshold_section(run),
            *reliability_section(run),
            *_all_rows(run),
            *definitions(run),
            *provenance(run),
        ],
    )


# -------------------------------------------------------------------------------------- summary


def _banner(run: RunFiles) -> Html:
    report = run.report
    reasons, warnings = report["invalid_because"], list(report["warnings"])
    if not run.has_patients:
        warnings.append(
            "No patient ids are configured: frames go by the names of their image files. See that "
            "these name no patient before the page is passed on."
        )
    parts = []
    if not report["valid"]:
        parts.append(
            tag("div", tag("b", "These are no results."), bullets(reasons), class_="banner error")
        )
    if warnings:
        parts.append(tag("div", tag("b", "Warnings"), bullets(warnings), class_="banner warning"))
    if not parts:
        parts.append(tag("div", "Valid; no warnings.", class_="banner good"))
    return join(parts)


def _summary(run: RunFiles) -> list[Html]:
    report, counts = run.report, run.report["counts"]
    unit = "frames" if counts["rows"] == counts["frames"] else "rows"
    kinds = {
        "mean": f"mean over {unit} ({counts['rows']})",
        "patient_mean": f"mean over patients ({counts['patients']})",
        "pooled": "pooled",
    }
    oracle = report.get("oracle")
    heads = ["metric", *kinds.values(), "undefined rows"]
    heads += ["oracle (mean over rows)"] if oracle else []
    rows = [
        [
            name,
            *(with_interval(run, kind, name) for kind in kinds),
            report["undefined"]["mean"][name],
            *([_number(name, oracle["mean"].get(name))] if oracle else []),
        ]
        for name in run.names
        if not (name.endswith("_mm") and report["undefined"]["mean"][name] == counts["rows"])
    ]
    facts = (
        f"{counts['frames']} frames, {counts['rows']} rows (a row is one phrase of one frame), "
        f"{counts['patients']} patients. [SEG] in {counts['with_seg']} of {counts['rows']} answers "
        f"({report['seg_emission_rate']:.1%}). Vessel where probability >= "
        f"{report['threshold']:g}. Empty truth: {counts['empty_truth']}; empty prediction: "
        f"{counts['empty_prediction']}."
    )
    return [
        tag("h2", "Summary"),
        _cards(run, "patient_mean" if run.has_patients else "mean", unit),
        table(heads, rows),
        tag("p", facts),
        tag("p", _about_intervals(report.get("intervals"))),
        *([tag("p", _about_oracle(oracle))] if oracle else []),
    ]


def _phrases(run: RunFiles) -> list[Html]:
    """Scores by phrase, of a run with several."""
    content = run.report.get("phrases")
    if not content:
        return []
    heads = {
        "dice": "Dice where present",
        "dice_over_phrases": "Dice, mean over phrases",
        "dice_over_pairs": "Dice, mean over present pairs",
        "false_positive_rate": "false-positive rate where absent",
        "miss_rate": "miss rate where present",
    }
    means = [
        [kind, *(_score(scores[name]) for name in MEAN_NAMES)]
        for kind, scores in content["means"].items()
    ]
    rows = [
        [
            *(row["phrase"], row["kind"], row["present"], row["absent"]),
            *(_score(row[name]) for name in PHRASE_NAMES),
        ]
        for row in content["by_phrase"]
    ]
    said = (
        "A pair is a phrase of a frame. Present: its truth has a pixel; absent: it has none. The "
        "false-positive rate is the share of absent pairs that got a mask, the miss rate that of "
        "present pairs that got none; a missed pair has Dice 0. Brackets: 95 % intervals as above."
    )
    return [
        tag("h2", "Phrases"),
        tag("p", said),
        table(["kind of phrase", *(heads[name] for name in MEAN_NAMES)], means),
        table(
            ["phrase", "kind", "present", "absent", *(heads[name] for name in PHRASE_NAMES)],
            rows,
            "sortable",
        ),
    ]


def _score(stored: dict[str, Any]) -> str:
    bounds = stored["interval"]
    return score_text(Score(number(stored["value"]), tuple(bounds) if bounds else None))


def _cards(run: RunFiles, kind: str, unit: str) -> Html:
    over = "patients" if kind == "patient_mean" else unit
    cards = []
    for name in (name for name in _HEADLINE if name in run.names):
        oracle = (run.report.get("oracle") or {}).get(kind, {}).get(name)
        ceiling = "" if oracle is None else f"; oracle {_number(name, oracle)}"
        cards.append(
            tag(
                "div",
                _label(name),
                tag("b", _number(name, run.report[kind][name])),
                f"{_interval(run, kind, name) or 'no interval'}, mean over {over}{ceiling}",
                class_="card",
            )
        )
    return tag("div", *cards, class_="cards")


def with_interval(run: RunFiles, kind: str, name: str) -> str:
    """A mean and its interval, as ``0.812 [0.790, 0.833]``."""
    text, bounds = _number(name, run.report[kind][name]), _interval(run, kind, name)
    return f"{text} {bounds}" if bounds else text


def _interval(run: RunFiles, kind: str, name: str) -> str:
    bounds = ((run.report.get("intervals") or {}).get(kind) or {}).get(name)
    return f"[{', '.join(_number(name, bound) for bound in bounds)}]" if bounds else ""


def _about_intervals(intervals: dict[str, Any] | None) -> str:
    if intervals is None:
        return "No intervals were computed (test_evaluator.bootstrap is 0)."
    note = f" Note: {intervals['note']}." if intervals["note"] else ""
    return (
        f"[{intervals['level']:.0%} interval] from {intervals['resamples']} bootstrap resamples of "
        f"{intervals['clusters']} {intervals['unit']}s.{note}"
    )


def _about_oracle(oracle: dict[str, Any]) -> str:
    rows, columns = oracle["grid"]
    return (
        "The oracle is the truth itself, shrunk to the decoder's grid and enlarged again: about "
        f"the ceiling for this grid of {rows} x {columns}."
    )


# ------------------------------------------------------------------- distributions and patients


def _distributions(run: RunFiles) -> list[Html]:
    parts = [tag("h2", "Distributions")]
    said = "One value a row. Above the bars: range, quartiles and median (orange)."
    parts += [tag("p", said), tag("div", *distributions(run.rows, run.names))]
    scatter, words = dice_against_vessels(run.rows)
    if scatter is not None:
        parts.append(tag("h3", "Dice against vessel fraction"))
        parts.append(figure(scatter, words))
    return parts


def _patients(run: RunFiles) -> list[Html]:
    parts = [tag("h2", "Patients")]
    patients = run.report["per_patient"]
    if not patients:
        return [*parts, tag("p", "No patient ids are configured (key patient of the data set).")]
    names = [n for n in run.names if any(item[n] is not None for item in patients.values())]
    rows = [
        [patient, item["rows"], *(_number(name, item[name]) for name in names)]
        for patient, item in patients.items()
    ]
    said = "Means over the rows of each patient, under stable pseudonyms. A click sorts a column."
    return [*parts, tag("p", said), table(["patient", "rows", *names], rows, "sortable")]


# --------------------------------------------------------------------------------------- frames


def _frames(run: RunFiles) -> list[Html]:
    ranked = sorted(
        (row for row in run.rows if not math.isnan(row.values["dice"])),
        key=lambda row: (row.values["dice"], row.number),
    )
    parts = [tag("h2", "Worst and best frames")]
    if not run.panels:
        parts.append(
            tag(
                "p",
                "There are no pictures of this run: they were turned off (test_evaluator.pictures) "
                "or lie elsewhere (tools/report.py RUN --pictures FOLDER).",
            )
        )
    for kind, title in _KINDS:
        shown = sorted((p for p in run.panels if p.kind == kind), key=lambda panel: panel.rank)
        rows = {"worst": ranked[:_EXTREMES], "best": ranked[::-1][:_EXTREMES]}.get(kind, [])
        if not (shown or rows):
            continue
        parts.append(tag("h3", title))
        if rows:
            parts.append(_rows_table(run, rows, _short(run)))
        for panel in shown:
            picture = image(
                read_picture(panel.path, _PANEL_WIDTH),
                f"six panels of {panel.row.frame}",
                quality=_PANEL_QUALITY,
                sharp=True,
            )
            caption = f"{kind} {panel.rank}: {panel.row.frame}, “{panel.row.phrase}”, Dice " + (
                _number("dice", panel.row.values["dice"])
            )
            parts.append(figure(picture, caption))
    if run.panels:
        said = "Blue: truth alone. Orange: prediction alone. White: both."
        parts.append(tag("p", said))
    return parts


def _failures(run: RunFiles) -> list[Html]:
    parts = [tag("h2", "Failures")]
    failed = [(row, faults) for row in run.rows if (faults := row.faults)]
    if not failed:
        return [*parts, tag("p", "None: every answer held [SEG] and every prediction some truth.")]
    rows = [
        (row.frame, row.patient or "-", row.phrase, "; ".join(faults), row.answer)
        for row, faults in failed[:_MOST_ROWS]
    ]
    heads = ("frame", "patient", "phrase", "what", "answer")
    parts.append(tag("p", f"{len(failed)} of {len(run.rows)} rows."))
    return [*parts, table(heads, rows, "sortable text"), *_rest(len(failed))]


def _all_rows(run: RunFiles) -> list[Html]:
    shown = run.rows[:_MOST_ROWS]
    rows = _rows_table(run, shown, run.names)
    return [tag("h2", "All frames"), folded(f"{len(shown)} rows", rows), *_rest(len(run.rows))]


def _rest(count: int) -> list[Html]:
    more = count - _MOST_ROWS
    return [tag("p", f"{more} more rows are in per_frame.csv.")] if more > 0 else []


def _short(run: RunFiles) -> list[str]:
    wanted = ("dice", "cldice", "hd95", "precision", "recall")
    return [name for name in wanted if name in run.names]


def _rows_table(run: RunFiles, rows: Iterable[RunRow], names: list[str]) -> Html:
    several = run.report["counts"]["phrases"] > 1
    heads = ["frame", "patient", *(["phrase"] if several else []), "vessel fraction", *names]
    lines = [
        [
            row.frame,
            row.patient or "-",
            *([row.phrase] if several else []),
            "-" if math.isnan(row.vessel_fraction) else f"{row.vessel_fraction:.2%}",
            *(_number(name, row.values[name]) for name in names),
        ]
        for row in rows
    ]
    return table(heads, lines, "sortable")


def _number(name: str, value: float | None) -> str:
    # Distances and counts are not shares: two digits behind the point are enough.
    value = number(value)
    return "-" if math.isnan(value) else f"{value:.{2 if name in LOWER_IS_BETTER else 3}f}"


def _label(name: str) -> str:
    return {"dice": "Dice", "cldice": "clDice", "hd95": "HD95, px"}[name]

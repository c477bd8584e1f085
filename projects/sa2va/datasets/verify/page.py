"""One HTML file with everything that was found; it loads nothing from anywhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ...errors import listing
from ...html import Html, bars, folded, image, page, table
from .findings import KINDS, Finding
from .pictures import draw_finding
from .run import Checked

_MOST_LINES = 200
_BINS = 20


def summary(checked: Checked) -> dict[str, Any]:
    """Counts per split and patient, as plain values for JSON."""
    splits = {}
    for split, dataset in checked.datasets.items():
        rows = checked.facts[split]
        good = [facts for facts in rows if facts.error is None]
        splits[split] = {
            "frames": len(rows),
            "unreadable": len(rows) - len(good),
            "patients": len({name for name in dataset.patients if name is not None}),
            "vessel_fraction": _spread([facts.vessel_fraction for facts in good]),
            "grey_mean": _spread([facts.mean for facts in good]),
        }
    return {
        "splits": splits,
        "patients": _patients(checked),
        "counts": {s: checked.count(s) for s in ("error", "warning", "info")},
    }


def findings_json(checked: Checked) -> dict[str, Any]:
    """Everything that was found, as plain values for JSON."""
    return {**summary(checked), "findings": [finding.to_dict() for finding in checked.findings]}


def html_page(checked: Checked, title: str, pictures: int = 6) -> str:
    """Returns the page.

    Args:
        checked: the result of the check.
        title: what was checked.
        pictures: most findings of a kind that are drawn.
    """
    found = summary(checked)
    counts = found["counts"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p><b class=error>{counts['error']} errors</b>, "
        f"<b class=warning>{counts['warning']} warnings</b>, {counts['info']} notes.</p>",
        "<h2>Splits</h2>",
        table(
            ("split", "frames", "unreadable", "patients", *_SPREAD_HEADS),
            (
                (split, row["frames"], row["unreadable"], row["patients"] or "-", *_cells(row))
                for split, row in found["splits"].items()
            ),
        ),
        "<h2>Distributions</h2>",
        *_histograms(checked),
    ]
    if found["patients"]:
        rows = [(p["patient"], p["split"], p["frames"], *_cells(p)) for p in found["patients"]]
        shown = table(("patient", "split", "frames", *_SPREAD_HEADS), rows)
        parts.append(f"<h2>Patients</h2>{folded(f'{len(rows)} rows', shown)}")
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in checked.findings:
        by_kind[finding.kind].append(finding)
    for kind in (kind for kind in KINDS if kind in by_kind):
        parts += _kind_section(kind, by_kind[kind], checked, pictures)
    return page(title, map(Html, parts))


_SPREAD_HEADS = ("vessel fraction: mean", "min", "max", "grey value: mean", "min", "max")


def _cells(row: dict[str, Any]) -> list[str]:
    texts = []
    for name, form in (("vessel_fraction", "{:.2%}"), ("grey_mean", "{:.0f}")):
        values = row[name]
        texts += [form.format(v) for v in values.values()] if values else ["-"] * 3
    return texts


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}


def _patients(checked: Checked) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for split, dataset in checked.datasets.items():
        for index, patient in enumerate(dataset.patients):
            if patient is not None:
                groups[patient, split].append(index)
    rows = []
    for (patient, split), members in sorted(groups.items()):
        good = [f for f in (checked.facts[split][i] for i in members) if f.error is None]
        rows.append(
            {
                "patient": patient,
                "split": split,
                "frames": len(members),
                "vessel_fraction": _spread([facts.vessel_fraction for facts in good]),
                "grey_mean": _spread([facts.mean for facts in good]),
            }
        )
    return rows


def _histograms(checked: Checked) -> list[str]:
    parts = []
    for name, label in (("vessel_fraction", "vessel fraction"), ("mean", "mean grey value")):
        values = {
            split: np.array([getattr(f, name) for f in rows if f.error is None])
            for split, rows in checked.facts.items()
        }
        values = {split: numbers for split, numbers in values.items() if len(numbers)}
        if not values:
            continue
        top = max(float(numbers.max()) for numbers in values.values()) or 1.0
        figures = [
            f"<figure>{bars(np.histogram(numbers, _BINS, (0, top))[0].tolist())}"
            f"<figcaption>{escape(split)}: {label}, 0 to {top:.3g}</figcaption></figure>"
            for split, numbers in values.items()
        ]
        parts.append("<div>" + "".join(figures) + "</div>")
    return parts


def _kind_section(kind: str, findings: list[Finding], checked: Checked, pictures: int) -> list[str]:
    what = KINDS[kind]
    parts = [
        f'<h2 id="{kind}" class="{what.severity}">{escape(what.title)}: {len(findings)} '
        f"({what.severity})</h2>",
        f"<p>{escape(what.advice)}</p>",
    ]
    drawn = 0
    for finding in findings:
        if drawn >= pictures:
            break
        images = draw_finding(finding, checked.datasets)
        if images:
            drawn += 1
            shown = "".join(image(picture) for _, picture in images)
            names = listing(f"{frame.split}/{frame.name}" for frame, _ in images)
            parts.append(
                f"<figure>{shown}<figcaption>{escape(names)}<br>{escape(finding.text)}"
                "</figcaption></figure>"
            )
    lines = "".join(f"<li>{escape(finding.text)}</li>" for finding in findings[:_MOST_LINES])
    more = len(findings) - _MOST_LINES
    lines += f"<li>and {more} more, in the JSON file</li>" if more > 0 else ""
    parts.append(f"<details><summary>all {len(findings)}</summary><ul>{lines}</ul></details>")
    return parts

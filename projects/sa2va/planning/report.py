"""A plan as text and as JSON."""

from __future__ import annotations

from typing import Any

from projects.sa2va.columns import columns

from .plan import Plan
from .section import GIB, Section

_SHOWN = 0.0005 * GIB  # smaller ones would be rows of zeros
_TITLES = {
    "training": "training, per GPU",
    "validation": "validation during training, per GPU",
    "inference": "inference, per GPU",
    "host": "host memory, per process",
}


def as_text(plan: Plan) -> str:
    """The assumptions, the tables and the verdict."""
    lines = ["assumed: " + line for line in plan.assumptions]
    for section in [*plan.sections, plan.host]:
        lines += ["", *_table(section, plan)]
    lines += ["", verdict(plan)]
    return "\n".join(lines)


def _table(section: Section, plan: Plan) -> list[str]:
    where = f" (fullest: {section.part})" if section.part else ""
    rows = [(_TITLES[section.key] + where, "GiB")]
    shown = [item for item in section.items if item.size >= _SHOWN]
    rows += [(f"  {item.name}", f"{item.size / GIB:.3f}") for item in shown]
    rest = section.peak - sum(item.size for item in shown)
    if rest:
        rows.append(("  smaller items", f"{rest / GIB:.3f}"))
    rows.append(("peak" if section.key != "host" else "all", f"{section.peak / GIB:.2f}"))
    if section.key == "host":
        whole = section.peak * plan.strategy.gpus / GIB
        rows.append((f"per machine, {plan.strategy.gpus} process(es)", f"{whole:.2f}"))
    else:
        rows.append((f"free of {plan.card.usable_gib:.2f}", f"{section.free(plan.card):.2f}"))
    return columns(rows, right=[1])


def verdict(plan: Plan) -> str:
    """Whether it fits, by how much, in a line."""
    tightest = min(plan.sections, key=lambda s: s.free(plan.card))
    free = tightest.free(plan.card)
    if plan.fits:
        return f"fits: {free:.1f} GiB free of {plan.card.usable_gib:.2f} ({tightest.key})"
    return f"does not fit: {-free:.1f} GiB over {plan.card.usable_gib:.2f} ({tightest.key})"


def as_json(plan: Plan) -> dict[str, Any]:
    """The same as plain data, sizes in GiB."""
    return {
        "fits": plan.fits,
        "verdict": verdict(plan),
        "assumptions": plan.assumptions,
        "usable_gib": plan.card.usable_gib,
        "parameters": {
            part: {"all": counts[0], "trained": counts[1]}
            for part, counts in plan.parameters.items()
        },
        "sections": [_section_json(s) for s in [*plan.sections, plan.host]],
    }


def _section_json(section: Section) -> dict[str, Any]:
    return {
        "section": section.key,
        "fullest": section.part,
        "peak_gib": section.peak / GIB,
        "peak_allocated_gib": section.allocated / GIB,
        "parts_gib": {part: size / GIB for part, size in (section.parts or {}).items()},
        "items": [
            {"group": item.group, "name": item.name, "gib": item.size / GIB}
            for item in section.items
        ],
    }

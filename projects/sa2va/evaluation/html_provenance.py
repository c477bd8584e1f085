"""What the page about a test run says of its metrics, and of where the predictions came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..html import Html, bullets, table, tag
from .html_files import RunFiles

DEFINITIONS = {
    "dice": "2 TP / (2 TP + FP + FN), in pixels",
    "iou": "TP / (TP + FP + FN)",
    "precision": "TP / (TP + FP)",
    "recall": "TP / (TP + FN)",
    "specificity": "TN / (TN + FP); near 1 even for an empty prediction",
    "accuracy": "share of pixels that are right; near 1 even for an empty prediction",
    "average_precision": "area under the precision-recall curve; needs no threshold",
    "cldice": "harmonic mean of the shares of each skeleton that lies in the other mask",
    "centreline_precision": "share of the predicted skeleton near the true one",
    "centreline_recall": "share of the true skeleton near the predicted one",
    "skeleton_recall": "share of the true skeleton, thickened, that was predicted",
    "hd95": "95th percentile of the distances between the outlines, px; 0 is best",
    "assd": "mean distance between the outlines, px; 0 is best",
    "hd95_mm": "hd95 in mm",
    "assd_mm": "assd in mm",
    "betti0_error": "pieces too many or too few; 0 is best",
    "betti1_error": "holes too many or too few; 0 is best",
}
"""One line for each of :data:`~.metrics.METRIC_NAMES`; docs/evaluation.md has more."""

_MEANS = (
    ("mean over frames (rows)", "each phrase of each frame counts once"),
    ("per patient", "over the rows of one patient: the table of patients"),
    ("mean over patients", "each patient counts once, however many frames"),
    ("pooled", "all rows as if they were one image; wide vessels and large frames weigh more"),
)
_PATHS = ("config", "source", "file")
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\"]+/)+")


def definitions(run: RunFiles) -> list[Html]:
    """Section: what each metric and each mean is."""
    tolerance = run.report.get("centreline_tolerance_px")
    rows = [(name, DEFINITIONS[name]) for name in run.names]
    if tolerance is not None and any(name.startswith("centreline") for name in run.names):
        rows.append(("tolerance of centrelines", f"{tolerance:g} px"))
    return [
        tag("h2", "How the numbers are defined"),
        table(("metric", "what"), rows, "text"),
        table(("mean", "what"), _MEANS, "text"),
        tag(
            "p",
            "0/0, and a distance to an empty outline, is undefined (-): such a value is left out "
            "of every mean and counted. More in docs/evaluation.md.",
        ),
    ]


def provenance(run: RunFiles) -> list[Html]:
    """Section: checkpoint, weights by part, config, split and software."""
    report = run.report
    checkpoint = report.get("checkpoint")
    facts: list[tuple[str, object]] = [
        ("results folder", run.folder.resolve().name),
        ("config", _name(report.get("config")) + "; as it ran: config.py in the folder"),
        ("split (hash of frames and labels)", report.get("split") or "not recorded"),
        ("answers", report.get("answer_mode") or "not recorded"),
    ]
    if report.get("presence_threshold") is not None:
        facts.append(("answered as present from", report["presence_threshold"]))
    for key in ("precision", "placement"):
        facts += [(f"{key}: {k}", v) for k, v in (report.get(key) or {}).items() if v]
    if isinstance(checkpoint, Mapping):
        facts += [(f"checkpoint: {k}", v) for k, v in _plain(checkpoint).items() if v is not None]
    else:
        facts.append(("checkpoint", "none: the model as it is built, or not recorded"))
    if report.get("rescored_from"):
        facts.append(("scored again from the maps of", report["rescored_from"]))
    facts += _plain(report.get("software") or {"software": "not recorded"}).items()
    weights = report.get("weights") or {}
    parts = [tag("h2", "Provenance"), table(("what", "value"), facts, "text")]
    if weights.get("parts"):
        heads = ("part", "source", "tensors", "loaded", "dtype", "checksum")
        rows = [[_plain(part).get(head, "") for head in heads] for part in weights["parts"]]
        parts += [tag("h3", "Weights by part"), table(heads, rows, "text")]
    notes = [_FOLDERS.sub("", note) for note in weights.get("notes", [])]
    return [*parts, *([bullets(notes)] if notes else [])]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Paths without their folders, whose names may say what nobody should read here."""
    return {key: _name(value) if key in _PATHS else value for key, value in values.items()}


def _name(path: Any) -> str:
    return Path(str(path)).name if path else "not recorded"

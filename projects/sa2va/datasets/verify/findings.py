"""What the check of a data set finds, and how grave each kind is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        severity: ``error``: training refuses the data; ``warning``: look at it; ``info``: good
            to know.
        title: what a reader of the page sees.
        advice: what to do about it.
    """

    severity: str
    title: str
    advice: str


_EXPORT = "Export the annotations again, or correct these entries."
KINDS: dict[str, Kind] = {
    "split": Kind("error", "Splits that cannot be opened", "See the text of the finding."),
    "file": Kind("error", "Files that cannot be read", "Copy the files again."),
    "annotations": Kind("error", "Broken annotations", _EXPORT),
    "repeated_entry": Kind("error", "Entries that repeat", _EXPORT),
    "label_size": Kind(
        "error",
        "Labels drawn at another size than the image",
        "tools/verify_dataset.py CONFIG --fix OUT writes rescaled annotations.",
    ),
    "outside": Kind(
        "error",
        "Polygons outside the image",
        "They were often drawn on larger frames: --fix OUT with --labels-size rescales them.",
    ),
    "polygon": Kind(
        "error", "Polygons that are none", "--fix OUT leaves them out; or draw them again."
    ),
    "rle": Kind("error", "Broken run lengths (RLE)", _EXPORT),
    "unlabelled": Kind("error", "Frames without annotation", "Label or remove them."),
    "unpaired": Kind("error", "Images without mask, masks without image", "Add or remove files."),
    "same_across": Kind(
        "error",
        "The same image in two splits",
        "Take it out of one of them, or split again: tools/make_splits.py.",
    ),
    "near_across": Kind(
        "error",
        "Near-duplicates in two splits",
        "Take one out or split again; where the pictures do differ, name the frame in "
        "allow_near_duplicates.",
    ),
    "patient_across": Kind(
        "error", "A patient in two splits", "Split by patient: tools/make_splits.py."
    ),
    "near_allowed": Kind("info", "Near-duplicates in two splits, allowed by the config", ""),
    "empty_mask": Kind(
        "warning", "Empty masks", "Right where the object is not in the frame; else label it."
    ),
    "mostly_labelled": Kind(
        "warning", "More than half of the frame is labelled", "Is the mask inverted?"
    ),
    "no_pixel": Kind("warning", "Regions that cover no pixel", "Remove or draw them again."),
    "drawn_twice": Kind("warning", "Regions drawn twice", "Remove one of each pair."),
    "same_within": Kind("warning", "The same image twice in a split", "It counts twice there."),
    "near_within": Kind(
        "warning",
        "Near-duplicates within a split",
        "Frames of one run are alike; keep them in one split, which patient ids ensure.",
    ),
    "flat": Kind("warning", "Frames of one grey value", "Remove them."),
    "intensity": Kind(
        "warning", "Brightness or contrast far from the others", "Look at them; see `intensity`."
    ),
    "polarity": Kind(
        "warning", "Vessels bright where they are dark elsewhere", "Is the frame inverted?"
    ),
    "exif": Kind(
        "warning",
        "An EXIF tag that turns the image",
        "Pixels are read as stored: check the labels.",
    ),
    "no_patients": Kind(
        "warning", "No patient ids", "Set `patient` of the data sets (docs/data_formats.md)."
    ),
    "overlap": Kind(
        "info", "Regions of a frame that overlap", "They are united where they are one phrase."
    ),
}


@dataclass(frozen=True)
class FrameRef:
    """A frame of a finding.

    Attributes:
        split: name of its split.
        name: its output name; a pseudonym where patients are configured.
        index: number of its record; None where it has none (its file is missing, for instance).
    """

    split: str
    name: str
    index: int | None = None


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: key of :data:`KINDS`.
        text: what was found, without file names where patients are configured.
        frames: the frames that it is about, at most two of them drawn.
        regions: polygons [x1, y1, ...] to draw in the first frame.
        local_text: the same with file names, for the terminal only.
    """

    kind: str
    text: str
    frames: tuple[FrameRef, ...] = ()
    regions: tuple[tuple[float, ...], ...] = ()
    local_text: str = ""

    @property
    def severity(self) -> str:
        """``error``, ``warning`` or ``info``."""
        return KINDS[self.kind].severity

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "frames": [{"split": f.split, "frame": f.name} for f in self.frames],
            "text": self.text,
        }

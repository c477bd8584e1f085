"""Checks that stand between a mistake and a number that looks like a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import ConfigError, DataError, UserError, listing
from .rows import FrameResult

if TYPE_CHECKING:
    from ..models.outputs import Prediction

EXACT_COPY_LIMIT = 0.05
"""Above this share of non-empty masks predicted to the pixel, the truth has probably leaked."""


class SuspectResultsError(UserError):
    """Results that no segmentation gives; they are kept, marked as not valid."""


def check_frame(truth: Tensor, meta: Mapping[str, Any], prediction: Prediction) -> None:
    """Refuses a prediction that does not fit its frame.

    Raises:
        DataError: it, truth and phrases do not fit each other, or hold values that they must not.
    """
    probabilities, phrases = prediction.probabilities, meta["phrases"]
    shape, asked = tuple(probabilities.shape), len(phrases)
    lengths = {asked, len(prediction.answers), len(prediction.seg_emitted)}
    fault = ""
    if truth.ndim != 3 or shape != tuple(truth.shape) or lengths != {truth.shape[0]}:
        fault = (
            f"prediction {shape}, truth {tuple(truth.shape)}, {asked} phrases, "
            f"{len(prediction.answers)} answers, {len(prediction.seg_emitted)} marks of [SEG]"
        )
        expected = "one [K, H, W] at the original size for K phrases"
    elif len(set(phrases)) != asked:
        fault, expected = f"phrases {phrases}", "each phrase once; unite the masks of one phrase"
    elif truth.numel() and int(truth.max()) > 1:
        fault, expected = f"truth with values up to {int(truth.max())}", "0 and 1 only"
    elif probabilities.numel() and not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        fault, expected = "probabilities outside [0, 1] or not finite", "probabilities"
    elif any(
        not emitted and bool(probabilities[number].any())
        for number, emitted in enumerate(prediction.seg_emitted)
    ):
        fault, expected = "a map that is not zero for an answer without [SEG]", "an all-zero map"
    elif prediction.presence is not None and not (
        len(prediction.presence) == asked and all(0 <= p <= 1 for p in prediction.presence)
    ):
        fault = f"presence {prediction.presence} of {asked} phrases"
        expected = "a probability for each phrase, or None"
    if fault:
        raise DataError(
            found=f"frame {meta['frame']!r}: {fault}",
            expected=expected,
            fix="check this frame's mask and annotation, and the model's predict",
        )


def check_complete(frames: Sequence[FrameResult], size: int) -> None:
    """Refuses a set of results that is not the data set, frame for frame.

    Args:
        frames: what was scored.
        size: number of frames in the data set.

    Raises:
        ConfigError: a frame is missing, doubled, or none of the data set's.
        DataError: nothing was scored, or two frames share an output name.
    """
    if not any(frame.rows for frame in frames):
        raise DataError(
            found=f"{len(frames)} frames without any phrase to evaluate",
            expected="at least one frame with one phrase",
            fix="check the data set's annotation file and filters",
        )
    times = Counter(frame.index for frame in frames)
    names = {frame.index: frame.frame for frame in frames}
    doubled = [f"{index} ({names[index]})" for index, count in times.items() if count > 1]
    missing = [str(index) for index in range(size) if index not in times]
    foreign = [f"{index} ({names[index]})" for index in times if not 0 <= index < size]
    if doubled or missing or foreign:
        faults = (("doubled", doubled), ("missing", missing), ("beyond the data set", foreign))
        raise ConfigError(
            found="frames "
            + "; ".join(f"{what}: {listing(which)}" for what, which in faults if which),
            expected=f"each of the {size} frames of the data set exactly once",
            fix="give the data loader sampler=dict(type='ExactSampler'), which never pads",
        )
    stems = Counter(row.stem.casefold() for frame in frames for row in frame.rows)
    shared = [stem for stem, count in stems.items() if count > 1]
    if shared:
        raise DataError(
            found=f"several frames with the same output name: {listing(shared)}",
            expected="names that differ by more than case or special characters",
            fix="rename the images",
        )


def copy_fault(counts: Mapping[str, int], limit: float) -> str:
    """What to say of predictions that equal the truth to the pixel; empty where they are few.

    A single copy among several masks is let pass, for a mask of a few pixels can be hit by chance.

    Args:
        counts: from :func:`~.rows.tally`.
        limit: share of the non-empty masks that may be equal.
    """
    copies, filled = counts["exact_copies"], counts["rows"] - counts["empty_truth"]
    if copies <= limit * filled or (copies == 1 and filled > 1):
        return ""
    return (
        f"{copies} of {filled} non-empty masks were predicted to the pixel: "
        "the truth has probably reached the prediction"
    )


def raise_for_copies(fault: str, results: object) -> None:
    """Raises for what :func:`copy_fault` found.

    Args:
        fault: its text; empty: nothing is raised.
        results: the folder of results, or None.

    Raises:
        SuspectResultsError: whatever ``fault`` says.
    """
    if fault:
        where = f"; the results in {results} are marked valid=false" if results else ""
        raise SuspectResultsError(
            found=fault + where,
            expected="predictions that differ from the truth somewhere, as every segmentation does",
            fix="see whether images hold the labels, or labels were made by this model; where "
            "copies are right (synthetic shapes), set max_exact_copies in the evaluator",
        )


def notes_on(counts: Mapping[str, int]) -> list[str]:
    """What a reader of the numbers must know, one line each."""
    found = []
    if counts["without_seg"]:
        found.append(
            f"{counts['without_seg']} of {counts['rows']} answers held no [SEG]; their masks are "
            "empty and are scored as such."
        )
    if counts["patients"] and counts["frames_without_patient"]:
        found.append(
            f"{counts['frames_without_patient']} frames have no patient id and take no part in "
            "the mean over patients."
        )
    if counts["frames"] < counts.get("frames_of_split", counts["frames"]):
        found.append(
            f"Scored {counts['frames']} of the {counts['frames_of_split']} frames of the split: "
            "`limit` or `indices` of the data set leave the others out."
        )
    return found

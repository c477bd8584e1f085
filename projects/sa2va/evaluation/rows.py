"""What is kept of every frame: small enough to be sent between processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .metrics import Scores
from .overlap import Counts


@dataclass(frozen=True)
class Row:
    """What is kept of one phrase of one frame.

    Attributes:
        phrase: the phrase that was asked for.
        scores: prediction against truth.
        seg_emitted: whether the answer held [SEG].
        answer: the answer's text.
        stem: name of this row's files, without folder and ending.
        truth_hash: of the true mask; the same for equal masks only.
        presence: probability that the phrase is in the image, where the model gives one.
        oracle: the truth itself, pushed through the decoder's grid, against the truth.
        prediction_rle: predicted mask as COCO RLE (``counts`` as ASCII text), when needed.
        truth_rle: the truth likewise.
    """

    phrase: str
    scores: Scores
    seg_emitted: bool
    answer: str
    stem: str
    truth_hash: str = ""
    presence: float | None = None
    oracle: Scores | None = None
    prediction_rle: dict | None = None
    truth_rle: dict | None = None

    @property
    def counts(self) -> Counts:
        """Of prediction against truth."""
        return self.scores.counts


@dataclass(frozen=True)
class FrameResult:
    """What is kept of one frame.

    Attributes:
        index: position in the data set.
        frame: the frame's output name.
        patient: the patient's pseudonym, or None.
        image_path: for the pictures only; never written.
        rows: one per phrase; may be empty.
        spacing: mm from one row, and one column, to the next, or None.
    """

    index: int
    frame: str
    patient: str | None
    image_path: str
    rows: tuple[Row, ...] = ()
    spacing: tuple[float, float] | None = None


def tally(frames: Sequence[FrameResult]) -> dict[str, int]:
    """The ``counts`` of metrics.json: of frames, rows and what is special about some of them."""
    rows = [row for frame in frames for row in frame.rows]
    return {
        "frames": len(frames),
        "rows": len(rows),
        "phrases": len({row.phrase for row in rows}),
        "patients": len({frame.patient for frame in frames if frame.patient is not None}),
        "frames_without_patient": sum(frame.patient is None for frame in frames),
        "frames_with_spacing": sum(frame.spacing is not None for frame in frames),
        "with_seg": sum(row.seg_emitted for row in rows),
        "without_seg": sum(not row.seg_emitted for row in rows),
        "empty_truth": sum(row.counts.empty_truth for row in rows),
        "empty_prediction": sum(row.counts.empty_prediction for row in rows),
        "exact_copies": sum(row.counts.exact for row in rows),
    }

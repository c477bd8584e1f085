"""Overlap metrics of binary masks, from confusion counts, and their means.

Definitions, with tp, fp, fn, tn the numbers of pixels (Taha & Hanbury, "Metrics for evaluating 3D
medical image segmentation", BMC Med Imaging 15:29, 2015):

    dice = 2 tp / (2 tp + fp + fn)      iou         = tp / (tp + fp + fn)
    precision = tp / (tp + fp)          recall      = tp / (tp + fn)
    specificity = tn / (tn + fp)        accuracy    = (tp + tn) / (tp + fp + fn + tn)

**The rule for undefined values.** A ratio 0/0 is undefined: it is ``nan`` here and ``null`` in
JSON, it is left out of every mean, and how many were left out is reported beside the mean
(``undefined``). No value is put in its place, neither 0 nor 1. It follows that

    truth    prediction   dice, iou    precision   recall      specificity  accuracy
    empty    empty        undefined    undefined   undefined   1            1
    empty    some         0            0           undefined   < 1          < 1
    some     empty        0            undefined   0           1 (a)        < 1
    full     any          as defined   as defined  as defined  undefined    as defined

(a) undefined as well if the truth fills the whole image.

Mind the third line: a model that answers nothing loses no *mean* precision, its dice and recall
are 0. Read precision together with its number of undefined rows.

**The means.** The unit is a row: one phrase of one frame.

* ``mean``: the mean over rows ("over frames" when every frame has one phrase).
* ``per_patient``: the mean over the patient's rows.
* ``patient_mean``: the mean over patients of ``per_patient``, so that a patient with many frames
  weighs no more than one with few. Rows without a patient id take no part in it.
* ``pooled``: the ratio of the counts summed over all rows; large vessels weigh more.

Sums are correctly rounded (``math.fsum``), so no result depends on the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

METRIC_NAMES = ("dice", "iou", "precision", "recall", "specificity", "accuracy")
"""Names and order of the metrics, everywhere."""


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan


@dataclass(frozen=True)
class Counts:
    """Confusion counts of one or several pairs of masks, in pixels."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    @classmethod
    def of_masks(cls, prediction: Tensor, truth: Tensor) -> Counts:
        """Counts the pixels of two bool masks of the same shape (any number of dimensions).

        Raises:
            ValueError: the shapes or the dtypes are not those.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"shapes differ: {tuple(prediction.shape)}, {tuple(truth.shape)}")
        if prediction.dtype != torch.bool or truth.dtype != torch.bool:
            raise ValueError(f"masks must be bool, not {prediction.dtype} and {truth.dtype}")
        tp = int((prediction & truth).sum())
        positives, wanted = int(prediction.sum()), int(truth.sum())
        fp, fn = positives - tp, wanted - tp
        return cls(tp, fp, fn, truth.numel() - tp - fp - fn)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def empty_truth(self) -> bool:
        """Whether no pixel of the truth is set."""
        return self.tp + self.fn == 0

    @property
    def exact(self) -> bool:
        """Whether the truth is not empty and the prediction equals it to the pixel."""
        return self.tp > 0 and self.fp == 0 and self.fn == 0

    def metrics(self) -> dict[str, float]:
        """All metrics by name; ``nan`` where undefined."""
        tp, fp, fn, tn = self.tp, self.fp, self.fn, self.tn
        return {
            "dice": _ratio(2 * tp, 2 * tp + fp + fn),
            "iou": _ratio(tp, tp + fp + fn),
            "precision": _ratio(tp, tp + fp),
            "recall": _ratio(tp, tp + fn),
            "specificity": _ratio(tn, tn + fp),
            "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
        }


@dataclass(frozen=True)
class Row:
    """What is kept of one phrase of one frame.

    Attributes:
        phrase: the phrase that was asked for.
        counts: prediction against truth.
        seg_emitted: whether the answer held [SEG].
        answer: the answer's text.
        stem: name of this row's files, without folder and ending.
        prediction_rle: predicted mask as COCO RLE (``counts`` as ASCII text), when needed.
        truth_rle: the truth likewise.
    """

    phrase: str
    counts: Counts
    seg_emitted: bool
    answer: str
    stem: str
    prediction_rle: dict | None = None
    truth_rle: dict | None = None


@dataclass(frozen=True)
class FrameResult:
    """What is kept of one frame, small enough to be sent between processes.

    Attributes:
        index: position in the data set.
        frame: the frame's output name.
        patient: the patient's pseudonym, or None.
        image_path: for the pictures only; never written.
        rows: one per phrase; may be empty.
    """

    index: int
    frame: str
    patient: str | None
    image_path: str
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Means over many rows; the module's docstring defines each.

    Attributes:
        mean, patient_mean, pooled: metric by name, ``nan`` where nothing defined was averaged.
        per_patient: metrics by pseudonym, in sorted order.
        undefined: for ``mean`` the number of rows, for ``patient_mean`` the number of patients and
            for ``pooled`` 0 or 1, by metric, that had no defined value and were left out.
    """

    mean: dict[str, float]
    patient_mean: dict[str, float]
    pooled: dict[str, float]
    per_patient: dict[str, dict[str, float]] = field(default_factory=dict)
    undefined: dict[str, dict[str, int]] = field(default_factory=dict)


def mean_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not ``nan``; ``nan`` if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _means(items: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: mean_defined(item[name] for item in items) for name in METRIC_NAMES}


def _undefined(items: list[Mapping[str, float]]) -> dict[str, int]:
    return {name: sum(math.isnan(item[name]) for item in items) for name in METRIC_NAMES}


def summarise(frames: Iterable[FrameResult]) -> Summary:
    """Averages the rows of ``frames`` in the four ways of the module's docstring."""
    rows: list[dict[str, float]] = []
    by_patient: dict[str, list[dict[str, float]]] = {}
    total = Counts()
    for frame in frames:
        for row in frame.rows:
            values = row.counts.metrics()
            rows.append(values)
            total += row.counts
            if frame.patient is not None:
                by_patient.setdefault(frame.patient, []).append(values)
    per_patient = {patient: _means(by_patient[patient]) for patient in sorted(by_patient)}
    patients, pooled = list(per_patient.values()), total.metrics()
    return Summary(
        mean=_means(rows),
        patient_mean=_means(patients),
        pooled=pooled,
        per_patient=per_patient,
        undefined={
            "mean": _undefined(rows),
            "patient_mean": _undefined(patients),
            "pooled": _undefined([pooled]),
        },
    )


def tally(frames: Sequence[FrameResult]) -> dict[str, int]:
    """The ``counts`` of metrics.json: of frames, rows and what is special about some of them."""
    rows = [row for frame in frames for row in frame.rows]
    return {
        "frames": len(frames),
        "rows": len(rows),
        "phrases": len({row.phrase for row in rows}),
        "patients": len({frame.patient for frame in frames if frame.patient is not None}),
        "frames_without_patient": sum(frame.patient is None for frame in frames),
        "with_seg": sum(row.seg_emitted for row in rows),
        "without_seg": sum(not row.seg_emitted for row in rows),
        "empty_truth": sum(row.counts.empty_truth for row in rows),
        "exact_copies": sum(row.counts.exact for row in rows),
    }

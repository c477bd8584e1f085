"""Overlap metrics of binary masks, from confusion counts.

Definitions, with tp, fp, fn, tn the numbers of pixels (Taha & Hanbury, "Metrics for evaluating 3D
medical image segmentation", BMC Med Imaging 15:29, 2015):

    dice = 2 tp / (2 tp + fp + fn)      iou         = tp / (tp + fp + fn)
    precision = tp / (tp + fp)          recall      = tp / (tp + fn)
    specificity = tn / (tn + fp)        accuracy    = (tp + tn) / (tp + fp + fn + tn)

Pooled over rows they are the same ratios of the summed counts.

    truth    prediction   dice, iou    precision   recall      specificity  accuracy
    empty    empty        undefined    undefined   undefined   1            1
    empty    some         0            0           undefined   < 1          < 1
    some     empty        0            undefined   0           1 (a)        < 1
    full     any          as defined   as defined  as defined  undefined    as defined

(a) undefined as well if the truth fills the whole image.

Mind the third line: a model that answers nothing loses no *mean* precision, its dice and recall
are 0. Read precision together with its number of undefined rows.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

OVERLAP_NAMES = ("dice", "iou", "precision", "recall", "specificity", "accuracy")


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """``numerator / denominator`` of parts and wholes, element by element; 0/0 is ``nan``."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(numerator, denominator)


def pooled_overlap(counts: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of summed counts.

    Args:
        counts: [..., 4], tp, fp, fn and tn.

    Returns:
        Each metric, float64 [...]; ``nan`` where undefined.
    """
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, float), -1, 0)
    return {
        "dice": ratio(2 * tp, 2 * tp + fp + fn),
        "iou": ratio(tp, tp + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "accuracy": ratio(tp + tn, tp + fp + fn + tn),
    }


@dataclass(frozen=True)
class Counts:
    """Confusion counts of one or several pairs of masks, in pixels."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    @classmethod
    def of_masks(cls, prediction: np.ndarray, truth: np.ndarray) -> Counts:
        """Counts the pixels of two bool masks of the same shape (any number of dimensions).

        Raises:
            ValueError: the shapes or the dtypes are not those.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"shapes differ: {tuple(prediction.shape)}, {tuple(truth.shape)}")
        if prediction.dtype != bool or truth.dtype != bool:
            raise ValueError(f"masks must be bool, not {prediction.dtype} and {truth.dtype}")
        tp = int(np.count_nonzero(prediction & truth))
        positives, wanted = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
        fp, fn = positives - tp, wanted - tp
        return cls(tp, fp, fn, truth.size - tp - fp - fn)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def empty_truth(self) -> bool:
        """Whether no pixel of the truth is set."""
        return self.tp + self.fn == 0

    @property
    def empty_prediction(self) -> bool:
        """Whether no pixel was predicted."""
        return self.tp + self.fp == 0

    @property
    def exact(self) -> bool:
        """Whether the truth is not empty and the prediction equals it to the pixel."""
        return self.tp > 0 and self.fp == 0 and self.fn == 0

    def metrics(self) -> dict[str, float]:
        """All metrics by name; ``nan`` where undefined."""
        return {name: float(value) for name, value in pooled_overlap(self.array()).items()}

    def array(self) -> np.ndarray:
        """int64 [4]: tp, fp, fn, tn."""
        return np.array(astuple(self), np.int64)

"""The evaluator of vessel masks that mmengine's loops run, on one process or on many."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mmengine.dist import all_gather_object, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch import Tensor

from ..errors import ConfigError, DataError, listing, suggest
from .metrics import METRIC_NAMES, Counts, FrameResult, Row, Summary, summarise, tally
from .pictures import PictureChoice, draw_all
from .table import metrics_table
from .writer import (
    PROBABILITY_FORMATS,
    ResultsWriter,
    encode_mask,
    file_stem,
    frame_records,
    strict,
)

if TYPE_CHECKING:
    from ..models.outputs import Prediction

THRESHOLD_RULE = "probability >= threshold"
EXACT_COPY_LIMIT = 0.05
"""Above this share of rows predicted to the pixel, the truth has probably leaked."""
PROVENANCE = ("answer_mode", "checkpoint", "weights", "config", "split")
"""Keys of metrics.json that the test tool hands in; null, with a warning, where it did not."""


@METRICS.register_module()
class VesselMetric(BaseMetric):
    """Dice, IoU, precision, recall, specificity and accuracy, with result files and pictures.

    Features: probabilities are cut here, never in the model; each process writes the files of its
    own frames; every frame is counted exactly once, whatever the number of processes; means over
    frames, over patients and pooled (:mod:`.metrics` has the rule for undefined values); a warning
    when the predictions look like a copy of the truth.

    Args:
        threshold: a pixel is vessel where probability >= threshold, compared in float32; in
            (0, 1]. There is no default: it is chosen on validation data.
        out_dir: folder of results (:mod:`.writer`), or None for numbers only, as in validation
            during training.
        save_probabilities: 'png' (8 bit), 'npz' (float16) or 'none'.
        save_masks: whether masks are saved, as PNG and as COCO RLE in masks.json.
        pictures: how many ``best``, ``worst`` and ``random`` frames are drawn, and the ``seed`` of
            the random ones; None draws none.
        show_dir: folder of the pictures; ``pictures`` in ``out_dir`` by default.
        prefix: of the names in what :meth:`evaluate` returns.
        collect_device: as mmengine expects it; results are gathered over the default process
            group, whose backend decides the device.

    Raises:
        ConfigError: an argument is not one of those.
        SetupError: ``out_dir`` cannot be written to.
    """

    default_prefix = "vessel"

    def __init__(
        self,
        *,
        threshold: float,
        out_dir: str | Path | None = None,
        save_probabilities: str = "png",
        save_masks: bool = True,
        pictures: Mapping[str, int] | None = MappingProxyType({}),
        show_dir: str | None = None,
        prefix: str = "vessel",
        collect_device: str = "cpu",
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
        if not number or not 0 < threshold <= 1:
            raise ConfigError(
                found=f"threshold={threshold!r} in VesselMetric",
                expected="a number above 0 and at most 1",
                fix="set threshold in the evaluator; choose it on validation data",
            )
        if save_probabilities not in PROBABILITY_FORMATS:
            raise ConfigError(
                found=f"save_probabilities={save_probabilities!r} in VesselMetric",
                expected="one of " + ", ".join(map(repr, PROBABILITY_FORMATS)),
                fix="correct save_probabilities in the evaluator",
            )
        self.threshold = float(threshold)
        self.pictures = _picture_choice(pictures)
        self.show_dir = show_dir
        self.save_probabilities, self.save_masks = save_probabilities, save_masks
        self._provenance: dict[str, Any] = {}
        self.out_dir = out_dir

    @property
    def out_dir(self) -> str | Path | None:
        """Folder of results; None for numbers only. May be set until the first batch."""
        return None if self._writer is None else self._writer.out_dir

    @out_dir.setter
    def out_dir(self, folder: str | Path | None) -> None:
        if self.results:
            raise RuntimeError("out_dir was set after the first batch: its files lie elsewhere")
        self._writer = None
        if folder is not None:
            self._writer = ResultsWriter(folder, self.save_probabilities, self.save_masks)
        self._keep_truth = self._writer is not None and self.pictures.total > 0
        self._keep_prediction = self._keep_truth or (self._writer is not None and self.save_masks)

    def set_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Stores what metrics.json says about where the predictions came from.

        Args:
            provenance: JSON-like values; ``answer_mode``, ``checkpoint`` (file name and hash),
                ``config`` and ``split`` (its hash) belong in it, other keys may.

        Raises:
            ValueError: a key that the metric itself writes.
            TypeError: a value has no JSON form. Found out here, before any long work.
        """
        taken = sorted(_OWN_KEYS & set(provenance))
        if taken:
            raise ValueError(f"keys of metrics.json that the metric writes itself: {taken}")
        self._provenance = strict(provenance)

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Prediction]) -> None:
        """Scores one batch, writes its files and keeps its counts.

        Args:
            data_batch: ``truth``, a list of uint8 {0, 1} [K, H, W], and ``meta``, a list of dicts
                with ``index``, ``frame``, ``patient``, ``phrases`` (K of them) and ``image_path``.
            data_samples: one prediction per frame, in the same order.

        Raises:
            DataError: a frame's prediction, truth and phrases do not fit each other, or hold
                values that they must not; the message names the frame.
        """
        items = zip(data_batch["truth"], data_batch["meta"], data_samples, strict=True)
        for truth, meta, prediction in items:
            self.results.append(self._frame(truth, meta, prediction))

    def _frame(self, truth: Tensor, meta: Mapping[str, Any], prediction: Prediction) -> FrameResult:
        _check_frame(truth, meta, prediction)
        wanted = truth.cpu().bool()
        probabilities = prediction.probabilities.detach().cpu().float()
        positive = probabilities >= self.threshold
        several, rows = len(meta["phrases"]) > 1, []
        for number, phrase in enumerate(meta["phrases"]):
            mask = positive[number].numpy()
            stem = file_stem(meta["frame"], phrase if several else None)
            if self._writer is not None:
                self._writer.write_row(stem, probabilities[number].numpy(), mask)
            rows.append(
                Row(
                    phrase=phrase,
                    counts=Counts.of_masks(positive[number], wanted[number]),
                    seg_emitted=bool(prediction.seg_emitted[number]),
                    answer=prediction.answers[number],
                    stem=stem,
                    prediction_rle=encode_mask(mask) if self._keep_prediction else None,
                    truth_rle=encode_mask(wanted[number].numpy()) if self._keep_truth else None,
                )
            )
        return FrameResult(
            int(meta["index"]), meta["frame"], meta["patient"], str(meta["image_path"]), tuple(rows)
        )

    def evaluate(self, size: int) -> dict[str, float]:
        """Gathers the frames of all processes, checks that none is missing or doubled, and scores.

        Takes the place of mmengine's method, which drops what padding doubled by interleaving the
        processes' lists and cutting at ``size``: right for one sampler, silently wrong for others.

        Args:
            size: number of frames in the data set.

        Returns:
            On every process the same metrics, by prefixed name; see :meth:`compute_metrics`.

        Raises:
            ConfigError: a frame is missing or was predicted twice; on every process alike.
            DataError: two frames share an output name, or there is no frame or row at all.
        """
        try:
            frames = [frame for part in all_gather_object(self.results) for frame in part]
        finally:
            self.results.clear()
        # Each process sees the same frames, so each fails or goes on alike and none has to wait.
        frames.sort(key=lambda frame: frame.index)
        _check_complete(frames, size)
        metrics = self.compute_metrics(frames)
        return {f"{self.prefix}/{name}": value for name, value in metrics.items()}

    def compute_metrics(self, results: list[FrameResult]) -> dict[str, float]:
        """Scores all frames; the main process also prints the table and writes the files.

        Returns:
            The metrics averaged over rows by their names, ``patient_<name>`` where there are
            patients, ``pooled_dice``, ``pooled_iou`` and ``seg_emission_rate``. An undefined mean
            is ``nan``, not 0 and not left out: the key stays, no false score enters a curve, and
            mmengine's ``save_best`` (with ``rule='greater'``) never takes it for the best, since
            no comparison with ``nan`` holds.
        """
        summary = summarise(results)
        counts = tally(results)
        if is_main_process():
            self._report(results, summary, counts)
        flat = dict(summary.mean)
        if summary.per_patient:
            flat |= {f"patient_{name}": summary.patient_mean[name] for name in METRIC_NAMES}
        flat |= {f"pooled_{name}": summary.pooled[name] for name in ("dice", "iou")}
        return flat | {"seg_emission_rate": counts["with_seg"] / counts["rows"]}

    def _report(
        self, frames: list[FrameResult], summary: Summary, counts: Mapping[str, int]
    ) -> None:
        copied, warnings = _copy_warning(counts), _warnings(counts)
        table = metrics_table(
            summary,
            frames=counts["frames"],
            rows=counts["rows"],
            threshold=self.threshold,
            footer=f"[SEG] in {counts['with_seg']} of {counts['rows']} answers",
        )
        print_log(f"\n{table}", logger="current")
        if self._writer is not None:
            absent = [key for key in PROVENANCE if key not in self._provenance]
            if absent:
                warnings.append(f"Not said where the predictions came from: {', '.join(absent)}.")
            stems = {row.stem for frame in frames for row in frame.rows}
            strangers = self._writer.strangers(stems)
            if strangers:
                warnings.append(f"Files of another run lie here too: {listing(strangers)}.")
        for warning in warnings:
            print_log(warning, logger="current", level=logging.WARNING)
        for error in copied:
            print_log(error, logger="current", level=logging.ERROR)
        if self._writer is not None:
            self._write(self._writer, frames, summary, counts, copied + warnings)

    def _write(
        self,
        writer: ResultsWriter,
        frames: list[FrameResult],
        summary: Summary,
        counts: Mapping[str, int],
        warnings: list[str],
    ) -> None:
        records = frame_records(frames)
        rows = Counter(record["patient"] for record in records)
        own = {
            "mean": summary.mean,
            "patient_mean": summary.patient_mean,
            "pooled": summary.pooled,
            "undefined": summary.undefined,
            "threshold": self.threshold,
            "threshold_rule": THRESHOLD_RULE,
            "seg_emission_rate": counts["with_seg"] / counts["rows"],
            "counts": counts,
            "warnings": warnings,
            "per_patient": {
                patient: {"rows": rows[patient], **metrics}
                for patient, metrics in summary.per_patient.items()
            },
            "per_frame": records,
        }
        writer.write_json("metrics.json", {**dict.fromkeys(PROVENANCE), **self._provenance, **own})
        writer.write_table(records)
        if writer.save_masks:
            writer.write_masks(frames)
        # Last, for pictures can fail on an image that moved; the numbers are safe by then.
        draw_all(frames, self.pictures, Path(self.show_dir or writer.out_dir / "pictures"))
        print_log(f"Results are in {writer.out_dir}", logger="current")


_OWN_KEYS = {
    *("mean", "patient_mean", "pooled", "undefined", "threshold", "threshold_rule"),
    *("seg_emission_rate", "counts", "warnings", "per_patient", "per_frame"),
}


def _picture_choice(pictures: Mapping[str, int] | None) -> PictureChoice:
    if pictures is None:
        return PictureChoice(0, 0, 0)
    known = [field.name for field in fields(PictureChoice)]
    for key, value in pictures.items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if key not in known or not whole:
            raise ConfigError(
                found=f"{key}={value!r} in pictures of VesselMetric",
                expected=f"whole numbers from 0 for {', '.join(known)}{suggest(key, known)}",
                fix="correct pictures in the evaluator",
            )
    return PictureChoice(**pictures)


def _check_frame(truth: Tensor, meta: Mapping[str, Any], prediction: Prediction) -> None:
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
    if fault:
        raise DataError(
            found=f"frame {meta['frame']!r}: {fault}",
            expected=expected,
            fix="check this frame's mask and annotation, and the model's predict",
        )


def _check_complete(frames: Sequence[FrameResult], size: int) -> None:
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


def _copy_warning(counts: Mapping[str, int]) -> list[str]:
    filled = counts["rows"] - counts["empty_truth"]
    if counts["exact_copies"] <= EXACT_COPY_LIMIT * filled:
        return []
    return [
        f"{counts['exact_copies']} of {filled} non-empty masks were predicted to the pixel. No "
        "segmentation does that: the truth has probably reached the prediction. Do not report "
        "these numbers before it is explained."
    ]


def _warnings(counts: Mapping[str, int]) -> list[str]:
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
    return found

"""The evaluator of vessel masks that mmengine's loops run, on one process or on many."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from mmengine.dist import all_gather_object, barrier, get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch import Tensor

from ..errors import ConfigError, listing, suggest
from ..files import write_atomic
from .guards import EXACT_COPY_LIMIT, check_complete, check_frame, raise_for_copies
from .metrics import DEFAULT_TOLERANCE, Scorer, choose_metrics
from .pictures import PictureChoice, draw_all
from .postprocess import PostProcess
from .report import OWN_KEYS, PROVENANCE, Report
from .rows import FrameResult
from .scoring import MANY_PHRASES, FrameJob, FrameWork, ScoringPool, default_workers
from .writer import PROBABILITY_FORMATS, ResultsWriter, strict

if TYPE_CHECKING:
    from ..models.outputs import Prediction


@METRICS.register_module()
class VesselMetric(BaseMetric):
    """Metrics of overlap, ranking, centrelines, surfaces and topology, with files and pictures.

    Features: probabilities are cut here, never in the model; each process writes the files of its
    own frames; frames may be scored by processes of their own beside the test loop; every frame is
    counted exactly once, whatever the number of processes; means over frames, over patients and
    pooled (:mod:`.summary`) with bootstrap intervals over patients (:mod:`.bootstrap`); the ceiling
    of the decoder's grid (:mod:`.oracle`); an error when the predictions are a copy of the truth.

    Args:
        threshold: a pixel is vessel where probability >= threshold, compared in float32; in
            (0, 1]. There is no default: it is chosen on validation data.
        postprocess: keyword arguments of :class:`~.postprocess.PostProcess`, or None for nothing.
        metric_set: 'all', 'fast' (overlap only) or a list of names (:mod:`.metrics`). Not called
            ``metrics``, which makes mmengine take the dict for its own Evaluator.
        centreline_tolerance: of centreline precision and recall, in px.
        bootstrap: number of resamples of the intervals; 0 for none. Drawn for results with files.
        workers: scoring processes beside the test loop; 0 scores in the loop; None decides by the
            number of frames, phrases, metrics and cores.
        max_exact_copies: share of the non-empty masks that may be predicted to the pixel before it
            is an error; 1 switches the check off.
        out_dir: folder of results (:mod:`.writer`), or None for numbers only, as in validation
            during training.
        save_probabilities: 'png' (8 bit), 'npz' (float16) or 'none'.
        save_masks: whether masks are saved, as PNG and as COCO RLE in masks.json.
        pictures: how many ``best``, ``worst`` and ``random`` frames are drawn, and the ``seed`` of
            the random ones; None draws none.
        show_dir: folder of the pictures; ``pictures`` in ``out_dir`` by default.
        html_report: whether report.html is written at the end (:mod:`.html_report`).
        prefix: of the names in what :meth:`evaluate` returns.
        collect_device: as mmengine expects it; results are gathered over the default process
            group, whose backend decides the device.

    Raises:
        ConfigError: an argument is not one of those.
        SetupError: ``out_dir`` cannot be written to.
    """

    CONFIG_SCHEMAS: ClassVar = {"postprocess": PostProcess}
    default_prefix = "vessel"

    def __init__(
        self,
        *,
        threshold: float,
        postprocess: Mapping[str, Any] | None = None,
        metric_set: str | Sequence[str] = "fast",
        centreline_tolerance: float = DEFAULT_TOLERANCE,
        bootstrap: int = 2000,
        workers: int | None = None,
        max_exact_copies: float = EXACT_COPY_LIMIT,
        out_dir: str | Path | None = None,
        save_probabilities: str = "png",
        save_masks: bool = True,
        pictures: Mapping[str, int] | None = MappingProxyType({}),
        show_dir: str | None = None,
        html_report: bool = False,
        prefix: str = "vessel",
        collect_device: str = "cpu",
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        _check_number("threshold", threshold, 0 < _number(threshold) <= 1, "above 0 and at most 1")
        tolerance = _number(centreline_tolerance)
        _check_number("centreline_tolerance", centreline_tolerance, tolerance >= 0, "of px, from 0")
        share = _number(max_exact_copies)
        _check_number("max_exact_copies", max_exact_copies, 0 <= share <= 1, "between 0 and 1")
        _check_whole("bootstrap", bootstrap)
        if workers is not None:
            _check_whole("workers", workers)
        if save_probabilities not in PROBABILITY_FORMATS:
            raise ConfigError(
                found=f"save_probabilities={save_probabilities!r} in VesselMetric",
                expected="one of " + ", ".join(map(repr, PROBABILITY_FORMATS)),
                fix="correct save_probabilities in the evaluator",
            )
        post = PostProcess(**(postprocess or {}))
        post.check(threshold)
        self._scorer = Scorer(float(threshold), choose_metrics(metric_set), tolerance, post)
        self.bootstrap, self.workers, self.max_exact_copies = bootstrap, workers, share
        self.pictures = _picture_choice(pictures)
        self.show_dir, self.html_report = show_dir, html_report
        self.save_probabilities, self.save_masks = save_probabilities, save_masks
        self._provenance: dict[str, Any] = {}
        self._grid: tuple[int, int] | None = None
        self._work: FrameWork | None = None
        self._pool: ScoringPool | None = None
        self.out_dir = out_dir

    @property
    def threshold(self) -> float:
        """A pixel is vessel where probability >= threshold."""
        return self._scorer.threshold

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, in order."""
        return self._scorer.names

    @property
    def out_dir(self) -> str | Path | None:
        """Folder of results; None for numbers only. May be set until the first batch."""
        return None if self._writer is None else self._writer.out_dir

    @out_dir.setter
    def out_dir(self, folder: str | Path | None) -> None:
        if self._work is not None:
            raise RuntimeError("out_dir was set after the first batch: its files lie elsewhere")
        self._writer = None
        # Sorting every map is wasted on a validation that writes nothing.
        self._scorer = replace(self._scorer, calibration=folder is not None)
        if folder is not None:
            self._writer = ResultsWriter(folder, self.save_probabilities, self.save_masks)

    def set_grid(self, grid: Sequence[int]) -> None:
        """Makes the oracle part of the results.

        Args:
            grid: rows and columns of the decoder's logits. From the model's config, never from a
                prediction.
        """
        if self._work is not None:
            raise RuntimeError("the grid was set after the first batch")
        rows, columns = grid
        self._grid = int(rows), int(columns)

    def set_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Stores what metrics.json says about where the predictions came from.

        Args:
            provenance: JSON-like values; ``answer_mode``, ``checkpoint`` (file name and hash),
                ``config`` and ``split`` (its hash) belong in it, other keys may.

        Raises:
            ValueError: a key that the metric itself writes.
            TypeError: a value has no JSON form. Found out here, before any long work.
        """
        taken = sorted(OWN_KEYS & set(provenance))
        if taken:
            raise ValueError(f"keys of metrics.json that the metric writes itself: {taken}")
        self._provenance = strict(provenance)

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Prediction]) -> None:
        """Scores one batch, writes its files and keeps its counts.

        Args:
            data_batch: ``truth``, a list of uint8 {0, 1} [K, H, W], and ``meta``, a list of dicts
                with ``index``, ``frame``, ``patient``, ``phrases`` (K of them), ``image_path`` and,
                where it is known, ``spacing`` (mm from one row, and one column, to the next).
            data_samples: one prediction per frame, in the same order.

        Raises:
            DataError: a frame's prediction, truth and phrases do not fit each other, or hold
                values that they must not; the message names the frame.
        """
        items = zip(data_batch["truth"], data_batch["meta"], data_samples, strict=True)
        for truth, meta, prediction in items:
            check_frame(truth, meta, prediction)
            if self._work is None:
                self._begin()
            job = _job(truth, meta, prediction)
            if self._pool is not None:
                self._pool.submit(job)
            else:
                self.results.append(self._work(job))

    def _begin(self) -> None:
        keep_truth = self._writer is not None and self.pictures.total > 0
        self._work = FrameWork(
            self._scorer,
            self._writer,
            self._grid,
            keep_prediction=keep_truth or (self._writer is not None and self.save_masks),
            keep_truth=keep_truth,
        )
        workers = self.workers
        if workers is None:
            meta = self.dataset_meta or {}
            frames = meta.get("frames", 0) // get_world_size()
            phrases = len(meta.get("phrases", ()))
            # Overlap alone is quicker than handing the maps over; files of many phrases are not.
            files = self._writer is not None and phrases >= MANY_PHRASES
            slow = files or self.names != choose_metrics("fast")
            local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            workers = default_workers(frames * max(1, phrases), local) if slow else 0
        if workers:
            self._pool = ScoringPool(self._work, workers)

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
            SuspectResultsError: predictions are copies of the truth; all files are written first.
        """
        try:
            if self._pool is not None:
                self.results.extend(self._pool.finish())
            frames = [frame for part in all_gather_object(self.results) for frame in part]
        finally:
            self.results.clear()
            self._pool = self._work = None
        # Each process sees the same frames, so each fails or goes on alike and none has to wait.
        frames.sort(key=lambda frame: frame.index)
        check_complete(frames, size)
        metrics = self.compute_metrics(frames)
        return {f"{self.prefix}/{name}": value for name, value in metrics.items()}

    def compute_metrics(self, results: list[FrameResult]) -> dict[str, float]:
        """Scores all frames; the main process also prints the table and writes the files.

        Returns:
            The metrics averaged over rows by their names, ``patient_<name>`` where there are
            patients, ``pooled_dice``, ``pooled_iou`` and ``seg_emission_rate``; of several phrases
            also the means of :mod:`.phrases`, with the kind of phrase before them. An undefined
            mean is ``nan``, not 0 and not left out: the key stays, no false score enters a curve,
            and mmengine's ``save_best`` (with ``rule='greater'``) never takes it for the best,
            since no comparison with ``nan`` holds.

        Raises:
            SuspectResultsError: predictions are copies of the truth.
        """
        report = Report.of(
            results,
            self._scorer,
            grid=self._grid,
            resamples=0 if self._writer is None else self.bootstrap,
            max_exact_copies=self.max_exact_copies,
            frames_of_split=(self.dataset_meta or {}).get("frames_of_split"),
            phrase_kinds=(self.dataset_meta or {}).get("phrase_kinds"),
        )
        if is_main_process():
            self._show(report)
        if report.fault:
            barrier()  # else a process that fails here ends the one that still writes
        raise_for_copies(report.fault, self.out_dir)
        return report.flat()

    def _show(self, report: Report) -> None:
        """Prints the table and what there is to say about it, and writes the files."""
        print_log(f"\n{report.table()}", logger="current")
        if report.phrases is not None:
            print_log(f"\n{report.phrases.table()}", logger="current")
        warnings, writer = report.notes(), self._writer
        if writer is not None:
            absent = [key for key in PROVENANCE if key not in self._provenance]
            if absent:
                warnings.append(f"Not said where the predictions came from: {', '.join(absent)}.")
            stems = {row.stem for frame in report.frames for row in frame.rows}
            strangers = writer.strangers(stems)
            if strangers:
                warnings.append(f"Files of another run lie here too: {listing(strangers)}.")
        for warning in warnings:
            print_log(warning, logger="current", level=logging.WARNING)
        if report.fault:
            print_log(report.fault, logger="current", level=logging.ERROR)
        if writer is None:
            return
        content = report.content(self._provenance, warnings)
        writer.write_json("metrics.json", content)
        if report.calibration is not None and self.pictures.total:
            from ..figures import png_figure  # matplotlib: a second of every start
            from .diagrams import reliability_diagram

            drawn = png_figure(*reliability_diagram(report.calibration))
            write_atomic(writer.out_dir / "calibration.png", lambda file: file.write(drawn))
        writer.write_table(content["per_frame"], self.names)
        if writer.save_masks:
            writer.write_masks(report.frames)
        # Last, for pictures can fail on an image that moved; the numbers are safe by then.
        pictures = Path(self.show_dir or writer.out_dir / "pictures")
        draw_all(report.frames, self.pictures, pictures)
        if self.html_report:
            from .html_report import write_html_report

            # Made from these files alone, so that tools/report.py makes the same.
            write_html_report(writer.out_dir, pictures=pictures)
        print_log(f"Results are in {writer.out_dir}", logger="current")


def _job(truth: Tensor, meta: Mapping[str, Any], prediction: Prediction) -> FrameJob:
    return FrameJob(
        meta=meta,
        truth=truth.cpu().numpy().astype(bool),
        probabilities=prediction.probabilities.detach().cpu().numpy().astype(np.float32),
        answers=list(prediction.answers),
        seg_emitted=list(prediction.seg_emitted),
        presence=prediction.presence,
    )


def _number(value: Any) -> float:
    """``value`` as float, ``nan`` (which is in no range) where it is no number."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if known else math.nan


def _check_number(name: str, value: Any, right: bool, expected: str) -> None:
    if not right:
        raise ConfigError(
            found=f"{name}={value!r} in VesselMetric",
            expected=f"a number {expected}",
            fix=f"set {name} in the evaluator"
            + ("; choose it on validation data" if name == "threshold" else ""),
        )


def _check_whole(name: str, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    _check_number(name, value, whole, "without a fraction, from 0")


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

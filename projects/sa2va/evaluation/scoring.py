"""The work on one frame, and the processes that share it with the test loop.

Metrics of shape take tens of milliseconds a frame, as long as the model. Scored by other processes
they keep no card waiting. These come from a fork server: they never inherit a CUDA context, a
process group or a half-held lock of the process that runs the model.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch

from ..errors import SetupError
from .geometry import MaskGeometry
from .metrics import Scorer
from .oracle import ORACLE_THRESHOLD, through_grid
from .postprocess import PostProcess
from .rows import FrameResult, Row
from .writer import ResultsWriter, encode_mask, file_stem

WORTH_A_POOL = 300
"""Maps a process from which its own scoring processes pay off: each imports for seconds."""
MANY_PHRASES = 8
"""Phrases of a data set from which writing a frame's files takes longer than handing it over."""
_MOST_WORKERS = 8
_AHEAD = 4  # frames a worker that may wait: bounds memory, evens out slow frames


@dataclass(frozen=True)
class FrameJob:
    """One frame as it leaves the model.

    Attributes:
        meta: ``index``, ``frame``, ``patient``, ``phrases``, ``image_path`` and perhaps
            ``spacing`` of the data set's item.
        truth: bool [K, H, W].
        probabilities: float32 [K, H, W].
        answers, seg_emitted: of the K phrases.
        presence: of the K phrases, or None.
    """

    meta: Mapping[str, Any]
    truth: np.ndarray
    probabilities: np.ndarray
    answers: list[str]
    seg_emitted: list[bool]
    presence: list[float] | None = None


@dataclass(frozen=True)
class FrameWork:
    """Scores a frame and writes its files; the same in every process.

    Attributes:
        scorer: of the predictions.
        writer: of the frame's files, or None.
        grid: rows and columns of the decoder's logits, or None for no oracle.
        keep_prediction, keep_truth: whether rows carry their masks.
    """

    scorer: Scorer
    writer: ResultsWriter | None = None
    grid: tuple[int, int] | None = None
    keep_prediction: bool = False
    keep_truth: bool = False

    def __call__(self, job: FrameJob) -> FrameResult:
        spacing = job.meta.get("spacing")
        several, rows = len(job.meta["phrases"]) > 1, []
        for number, phrase in enumerate(job.meta["phrases"]):
            probability, truth = job.probabilities[number], job.truth[number]
            mask = self.scorer.cut(probability)
            stem = file_stem(job.meta["frame"], phrase if several else None)
            if self.writer is not None:
                self.writer.write_row(stem, probability, mask)
            geometry = MaskGeometry(truth)
            oracle = None
            if self.grid is not None:
                ceiling = replace(
                    self.scorer,
                    threshold=ORACLE_THRESHOLD,
                    postprocess=PostProcess(),
                    calibration=False,
                )
                oracle = ceiling.score(through_grid(truth, self.grid), geometry, spacing)
            rows.append(
                Row(
                    phrase=phrase,
                    scores=self.scorer.score(probability, geometry, spacing, mask=mask),
                    seg_emitted=bool(job.seg_emitted[number]),
                    answer=job.answers[number],
                    stem=stem,
                    truth_hash=mask_hash(truth),
                    presence=None if job.presence is None else job.presence[number],
                    oracle=oracle,
                    prediction_rle=encode_mask(mask) if self.keep_prediction else None,
                    truth_rle=encode_mask(truth) if self.keep_truth else None,
                )
            )
        return FrameResult(
            index=int(job.meta["index"]),
            frame=job.meta["frame"],
            patient=job.meta["patient"],
            image_path=str(job.meta["image_path"]),
            rows=tuple(rows),
            spacing=None if spacing is None else tuple(spacing),
        )


def mask_hash(mask: np.ndarray) -> str:
    """16 hexadecimal digits of the sha256 of a bool mask's shape and pixels."""
    return hashlib.sha256(f"{mask.shape}".encode() + np.packbits(mask).tobytes()).hexdigest()[:16]


def default_workers(maps: int, processes: int = 1) -> int:
    """How many scoring processes ``maps`` maps a process are worth; 0: none.

    Args:
        maps: that this process will score, about.
        processes: of the run on this machine, which share its cores.
    """
    if maps < WORTH_A_POOL:
        return 0
    return max(1, min(_MOST_WORKERS, len(os.sched_getaffinity(0)) // processes))


class ScoringPool:
    """Runs :class:`FrameWork` or its like in other processes, results in order of submission.

    Args:
        work: what is done with every frame; can be pickled.
        workers: number of processes.
        start_method: of :mod:`multiprocessing`; 'fork' starts at once, and is safe only where no
            card and no threads are in use.

    Attributes:
        done: results so far, in order.
    """

    def __init__(
        self, work: Callable[[Any], Any], workers: int, start_method: str = "forkserver"
    ) -> None:
        context = multiprocessing.get_context(start_method)
        context.set_forkserver_preload([__name__])
        self._executor = ProcessPoolExecutor(workers, context, initializer=_one_thread)
        self._work, self._most = work, _AHEAD * workers
        self._pending: deque[Future[Any]] = deque()
        self.done: list[Any] = []

    def submit(self, job: Any) -> None:
        """Hands a frame over; waits where too many are under way.

        Raises:
            UserError: an earlier frame's files cannot be written, or a process died.
        """
        while len(self._pending) >= self._most:
            self._take()
        try:
            self._pending.append(self._executor.submit(self._work, job))
        except BrokenProcessPool as error:
            raise _died() from error

    def finish(self) -> list[Any]:
        """The results of all frames; the processes end. Raises as :meth:`submit`."""
        try:
            while self._pending:
                self._take()
        finally:
            self.close()
        return self.done

    def close(self) -> None:
        """Ends the processes; frames that have not begun are dropped."""
        self._executor.shutdown(cancel_futures=True)

    def _take(self) -> None:
        try:
            self.done.append(self._pending.popleft().result())
        except BrokenProcessPool as error:
            raise _died() from error


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _died() -> SetupError:
    return SetupError(
        found="a scoring process died (killed, or out of memory)",
        expected="enough host memory for the scoring processes, about 1 GiB each",
        fix="set workers=0 in the evaluator (test_evaluator.workers=0), or a smaller number",
    )

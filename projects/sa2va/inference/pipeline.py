"""Reading, predicting and handing on, side by side and in order, with bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from ..datasets.collate import collate_inputs
from ..errors import DataError, MemoryFullError, UserError
from ..evaluation.postprocess import PostProcess
from ..models import SegmentationModel
from ..models.outputs import Prediction
from ..processing.tokenizer import IM_END
from .inputs import Source
from .questions import Question
from .results import InferenceResult

T = TypeVar("T")
_AHEAD = 3  # batches that are read while one is predicted


@dataclass(frozen=True)
class Task:
    """What is done with every image.

    Attributes:
        questions: asked of each.
        threshold, postprocess: how maps become masks.
    """

    questions: tuple[Question, ...]
    threshold: float
    postprocess: PostProcess


@dataclass
class _Read:
    """An image that has been read: the model's input until it is loaded, or why there is none."""

    source: Source
    image: np.ndarray | None = None
    item: dict[str, Any] | None = None
    error: UserError | None = None
    seconds: float = 0.0


@dataclass
class _Batch:
    """What was read, and the model's inputs of those that could be; None where none could."""

    read: list[_Read]
    inputs: dict[str, Any] | None = None


class Pipeline:
    """One model in this process.

    Args:
        model: ready for prediction, on its device.
        batch_size: images of a forward pass.
        readers: threads that read and prepare images.
    """

    def __init__(self, model: SegmentationModel, batch_size: int, readers: int) -> None:
        self.model, self.batch_size, self.readers = model, batch_size, readers
        device = model.data_preprocessor.device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, sources: Iterable[Source], task: Task) -> Iterator[InferenceResult]:
        """Results in the order of ``sources``, which are consumed as they are needed."""
        before: Future[_Batch] | None = None
        with contextlib.closing(self._loading(sources, task)) as loading:
            for batch in loading:
                if before is not None:
                    yield from self._predict(before.result(), task)
                before = batch
            if before is not None:
                yield from self._predict(before.result(), task)

    def _loading(self, sources: Iterable[Source], task: Task) -> Iterator[Future[_Batch]]:
        """Batches on their way to the device; images of later ones are being read meanwhile."""
        with (
            ThreadPoolExecutor(self.readers, "read") as read,
            ThreadPoolExecutor(1, "load") as load,
        ):
            waiting: deque[list[Future[_Read]]] = deque()
            try:
                for chunk in batches(sources, self.batch_size):
                    waiting.append([read.submit(self._read, one, task) for one in chunk])
                    if len(waiting) > _AHEAD:
                        yield load.submit(self._load, waiting.popleft())
                while waiting:
                    yield load.submit(self._load, waiting.popleft())
            finally:
                for future in itertools.chain.from_iterable(waiting):
                    future.cancel()

    def _read(self, source: Source, task: Task) -> _Read:
        start = time.perf_counter()
        try:
            image = source.read()
            item = self.model.processor.prediction_item(
                image,
                [question.phrases for question in task.questions],
                [question.text for question in task.questions],
                normalised=False,
            )
        except DataError as error:
            return _Read(source, error=error)
        return _Read(source, image, item, seconds=time.perf_counter() - start)

    def _load(self, futures: Sequence[Future[_Read]]) -> _Batch:
        """A batch on the device, copied beside what the device computes."""
        read = [future.result() for future in futures]
        items = [one.item for one in read if one.item is not None]
        for one in read:
            one.item = None
        if not items:
            return _Batch(read)
        inputs = collate_inputs(items)
        if self._copies is None:
            return _Batch(read, inputs)
        with torch.cuda.stream(self._copies):
            inputs = {
                key: value.pin_memory().to(self._copies.device, non_blocking=True)
                if torch.is_tensor(value)
                else value
                for key, value in inputs.items()
            }
        self._copies.synchronize()
        return _Batch(read, inputs)

    def _predict(self, batch: _Batch, task: Task) -> list[InferenceResult]:
        start = time.perf_counter()
        predictions: Iterator[Prediction] = iter(())
        good = sum(one.error is None for one in batch.read)
        if batch.inputs is not None:
            if self._copies is not None:
                for value in filter(torch.is_tensor, batch.inputs.values()):
                    value.record_stream(torch.cuda.current_stream(value.device))
            with torch.no_grad(), explain_full_card(f"a batch of {good}"):
                predictions = iter(self.model.test_step({"inputs": batch.inputs}))
        seconds = (time.perf_counter() - start) / max(1, good)
        return [
            _result(one, next(predictions) if one.error is None else None, task, seconds)
            for one in batch.read
        ]


@contextlib.contextmanager
def explain_full_card(what: str) -> Iterator[None]:
    """Memory of a card that runs out becomes an error that says what to do.

    Args:
        what: what it was needed for.

    Raises:
        MemoryFullError: it ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
        raise MemoryFullError(
            found=f"the card's memory is full: {what}, {free:.1f} of {total:.1f} GiB free",
            expected="room for the weights and for what a batch computes",
            fix="one of: --batch-size 1; --merge-lora; --precision int8 or nf4; --placement auto "
            "or sharded with more cards; --placement cpu (docs/placement.md)",
        ) from error


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """``items`` in lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _result(
    read: _Read, prediction: Prediction | None, task: Task, seconds: float
) -> InferenceResult:
    source = read.source
    phrases = [phrase for question in task.questions for phrase in question.phrases]
    about = (source.name, phrases, task.threshold, task.postprocess)
    if prediction is None:
        return InferenceResult(*about, error=read.error, path=source.path, stem=source.stem)
    return InferenceResult(
        *about,
        timing={"read": read.seconds, "model": seconds},
        path=source.path,
        stem=source.stem,
        _image=read.image,
        _probabilities=prediction.probabilities.numpy(),
        _answers=[answer.removesuffix(IM_END) for answer in prediction.answers],
        _seg_emitted=prediction.seg_emitted,
        _presence=prediction.presence,
        _mapped=prediction.mapped,
    )

"""What the buttons and the endpoint do. Frames and results of all visitors are behind tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ...datasets.image_io import read_image
from ...errors import DataError, listing
from ..results import InferenceResult, check_threshold
from . import drawing
from .files import PrivateFolder
from .store import Store
from .uploads import Limits, read_upload

_LONGEST_TEXT = 500
_THUMBNAIL = 128


class Inferencer(Protocol):
    """What the page needs of :class:`~projects.sa2va.inference.Sa2VAInferencer`."""

    threshold: float
    threshold_text: str
    intensity: str

    def __call__(
        self, images: list[np.ndarray], text: str, *, threshold: float | None = None
    ) -> list[InferenceResult]:
        """One result an image."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What one visitor looks at.

    Attributes:
        image: uint8 RGB [H, W, 3].
        result: None before the model ran.
    """

    image: np.ndarray
    result: InferenceResult | None = None

    @property
    def size(self) -> int:
        """Bytes in memory, the mask that is cut from the map among them."""
        pixels = self.image.shape[0] * self.image.shape[1]
        return self.image.nbytes + (0 if self.result is None else 5 * pixels)


class Desk:
    """Takes frames, runs the model, cuts its maps.

    Args:
        inferencer: the loaded model; called for one frame at a time by one thread at a time.
        limits: of uploads.
        folder: where uploads lie until they are read.
        keep_bytes: frames and results in memory, of all visitors together.
        examples: frames to choose from, files or uint8 [H, W, 3].
    """

    def __init__(
        self,
        inferencer: Inferencer,
        limits: Limits,
        folder: PrivateFolder,
        *,
        keep_bytes: int = 2**30,
        examples: Sequence[Path | np.ndarray] = (),
    ) -> None:
        self.inferencer, self.limits, self.folder = inferencer, limits, folder
        self.examples = list(examples)
        self._store: Store[Shown] = Store(keep_bytes)

    def take(self, path: str | Path, old: str | None = None) -> str:
        """Reads an upload and removes its file; returns the token of what is shown now.

        Raises:
            DataError: no frame of ours, or one that cannot be read.
        """
        image = self._read_upload(path)
        return self._show(Shown(image), old)

    def take_example(self, index: int, old: str | None = None) -> str:
        """As :meth:`take`, of an example."""
        return self._show(Shown(self._example(index)), old)

    def thumbnails(self) -> list[np.ndarray]:
        """The examples, uint8 [h, w, 3], about 128 pixels a side."""
        images = [self._example(index) for index in range(len(self.examples))]
        steps = [max(1, min(image.shape[:2]) // _THUMBNAIL) for image in images]
        return [image[::step, ::step] for image, step in zip(images, steps, strict=True)]

    def run(self, token: str | None, text: str, threshold: float) -> str:
        """Predicts what is shown; returns the token of the result, which takes its place.

        Raises:
            UserError: there is no frame, or the question or the threshold cannot be used.
        """
        if not token:
            raise DataError(
                found="no frame",
                expected="a frame to look at",
                fix="upload one, or choose an example",
            )
        image = self._store.get(token).image
        return self._show(Shown(image, self._ask(image, text, threshold)), token)

    def cut(self, token: str, threshold: float) -> InferenceResult:
        """The kept maps cut at ``threshold``; the model is not run.

        Raises:
            UserError: the result is no longer kept, or the threshold cannot be used.
        """
        shown = self._store.get(token)
        if shown.result is None:
            raise DataError(found="no result", expected="one to cut", fix="run the model first")
        return shown.result.with_threshold(threshold)

    def view(self, token: str, kind: str, threshold: float | None) -> bytes:
        """A picture of ``drawing.VIEWS`` as PNG; only ``frame`` is there before a run.

        Raises:
            UserError: as :meth:`cut`.
        """
        if kind == "frame":
            return drawing.preview_png(self._store.get(token).image)
        return drawing.view_png(self._result(token, threshold), kind)

    def file(self, token: str, name: str, threshold: float | None) -> bytes:
        """A file of ``drawing.FILES``.

        Raises:
            UserError: as :meth:`cut`.
        """
        return drawing.FILES[name](self._result(token, threshold))

    def predict(self, path: str | Path, text: str, threshold: float | None) -> InferenceResult:
        """Upload and run in one; nothing is kept.

        Raises:
            UserError: as :meth:`take` and :meth:`run`.
        """
        return self._ask(self._read_upload(path), text, threshold)

    def image(self, token: str) -> np.ndarray:
        """The frame of a token, uint8 [H, W, 3]."""
        return self._store.get(token).image

    def has(self, token: str | None) -> bool:
        """Whether there is something to show for a token."""
        return token in self._store

    def is_result(self, token: str | None) -> bool:
        """Whether the model ran on what is shown."""
        return token in self._store and self._store.get(token).result is not None

    def forget(self, token: str | None) -> None:
        """Drops what a visitor who left was shown."""
        self._store.drop(token)

    def _result(self, token: str, threshold: float | None) -> InferenceResult:
        return self.cut(token, self.inferencer.threshold if threshold is None else threshold)

    def _ask(self, image: np.ndarray, text: str, threshold: float | None) -> InferenceResult:
        if len(text) > _LONGEST_TEXT:
            raise DataError(
                found=f"a question of {len(text)} characters",
                expected=f"at most {_LONGEST_TEXT}",
                fix="name what is looked for in a few words: blood vessel",
            )
        if threshold is not None:
            check_threshold(threshold)
        (result,) = self.inferencer([image], text, threshold=threshold)
        if result.error is not None:
            raise result.error
        if len(result.phrases) > 1:
            raise DataError(
                found=f"a question about {len(result.phrases)} phrases: {listing(result.phrases)}",
                expected="one: the page shows one mask",
                fix="ask for one of them; tools/predict.py and Python give a mask for each",
            )
        return result

    def _read_upload(self, path: str | Path) -> np.ndarray:
        self.folder.sweep()
        upload = self.folder.owned(path)
        try:
            return read_upload(upload, self.limits, self.inferencer.intensity)
        finally:
            self.folder.remove(upload)

    def _example(self, index: int) -> np.ndarray:
        example = self.examples[index]
        if isinstance(example, np.ndarray):
            return example
        return read_image(example, self.inferencer.intensity)

    def _show(self, shown: Shown, old: str | None) -> str:
        self._store.drop(old)
        return self._store.add(shown, shown.size)

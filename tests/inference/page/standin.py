"""An inferencer that is quick, counts its calls, and whose maps are known."""

from __future__ import annotations

import threading

import numpy as np

from projects.sa2va.errors import DataError
from projects.sa2va.inference.results import InferenceResult


class StandIn:
    """The map of a frame is its red channel / 255; a frame with red 13 at [0, 0] is refused."""

    def __init__(self, threshold: float = 0.25, answer: str = "Sure, [SEG].") -> None:
        self.threshold, self.answer = threshold, answer
        self.threshold_text = "Masks are cut at 0.25, chosen for a test."
        self.intensity = "own_range"
        self.asked: list[tuple[tuple[int, ...], str]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(
        self, images: list[np.ndarray], text: str, *, threshold: float | None = None
    ) -> list[InferenceResult]:
        self.go.wait(20)
        (image,) = images
        self.asked.append((image.shape, text))
        if image[0, 0, 0] == 13:
            error = DataError("this frame cannot be asked about", "another one", "give another")
            return [InferenceResult("x", [text], 0.5, error=error)]
        return [
            InferenceResult(
                "image_0000",
                [text],
                self.threshold if threshold is None else threshold,
                timing={"read": 0.01, "model": 0.02},
                _image=image,
                _probabilities=image[None, ..., 0].astype(np.float32) / 255,
                _answers=[self.answer],
                _seg_emitted=["[SEG]" in self.answer],
            )
        ]

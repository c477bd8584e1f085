"""What comes back for one image."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError, listing
from ..evaluation.pictures import overlay
from ..evaluation.postprocess import PostProcess


@dataclass(frozen=True, eq=False)
class InferenceResult:
    """Maps, masks and answers for the K phrases that were asked about one image.

    Attributes:
        name: of the image (:class:`~.inputs.Source`).
        phrases: K phrases.
        threshold: a pixel belongs to a mask where probability >= threshold.
        postprocess: what is done to a mask after that.
        timing: seconds: ``read`` (file to tensors), ``model`` (its share of its batch).
        error: why there is no prediction; None where there is one. Everything below raises it.
        path: the image's file, where it has one.
    """

    name: str
    phrases: list[str]
    threshold: float
    postprocess: PostProcess = field(default_factory=PostProcess)
    timing: dict[str, float] = field(default_factory=dict)
    error: UserError | None = None
    path: Path | None = None
    stem: PurePath = field(default_factory=lambda: PurePath("image"))
    _image: np.ndarray | None = None
    _probabilities: np.ndarray | None = None
    _answers: list[str] = field(default_factory=list)
    _seg_emitted: list[bool] = field(default_factory=list)
    _presence: list[float] | None = None
    _mapped: list[bool] | None = None

    def __bool__(self) -> bool:
        """Whether there is a prediction."""
        return self.error is None

    @property
    def image(self) -> np.ndarray:
        """uint8 RGB [H, W, 3], as the model saw it."""
        return self._get("_image")

    @property
    def probabilities(self) -> np.ndarray:
        """float32 [K, H, W] in [0, 1], at the image's own size; no threshold is in them."""
        return self._get("_probabilities")

    @property
    def probability(self) -> np.ndarray:
        """float32 [H, W], where there is one phrase."""
        return self._only(self.probabilities, "probabilities")

    @functools.cached_property
    def masks(self) -> np.ndarray:
        """bool [K, H, W]."""
        cut = [self.postprocess.cut(one, self.threshold) for one in self.probabilities]
        return np.stack(cut) if cut else np.zeros(self.probabilities.shape, bool)

    @property
    def mask(self) -> np.ndarray:
        """bool [H, W], where there is one phrase."""
        return self._only(self.masks, "masks")

    @property
    def answers(self) -> list[str]:
        """K answers, the same for phrases of one question; empty where there is no language."""
        return self._get("_answers")

    @property
    def seg_emitted(self) -> list[bool]:
        """Whether each answer held [SEG] for its phrase; a map without it is all zero."""
        return self._get("_seg_emitted")

    @property
    def presence(self) -> list[float] | None:
        """K probabilities that the phrase is in the image, with ``answer_mode='choice'``."""
        return self._get("_presence")

    @property
    def unmapped(self) -> list[str]:
        """Phrases of questions about several whose answer does not say which [SEG] is whose.

        Their maps are all zero, and their answers stand in :attr:`answers`.
        """
        mapped = self._get("_mapped") or [True] * len(self.phrases)
        return [phrase for phrase, good in zip(self.phrases, mapped, strict=True) if not good]

    def with_threshold(self, threshold: float) -> InferenceResult:
        """The same maps cut elsewhere; nothing is predicted again.

        Raises:
            ConfigError: no number above 0 and at most 1, or below the lower one of hysteresis.
        """
        check_threshold(threshold)
        self.postprocess.check(threshold)
        return replace(self, threshold=float(threshold))

    def overlay(self, index: int = 0) -> Image.Image:
        """The image with the mask of one phrase over it."""
        return Image.fromarray(overlay(self.image, self.masks[index]))

    def save(self, folder: str | Path, outputs: Sequence[str] = ("mask", "overlay")) -> list[Path]:
        """Writes files below ``folder``; returns their paths.

        Args:
            folder: made if absent.
            outputs: of ``mask``, ``probability`` (8-bit PNG), ``probability-npz`` (float16) and
                ``overlay``.

        Raises:
            UserError: an unknown output, a folder that cannot be written, or :attr:`error`.
        """
        from .outputs import check_outputs, write_files

        check_outputs(outputs, files_only=True)
        return list(write_files(self, Path(folder), outputs).values())

    def show(self) -> Image.Image:
        """Opens the overlay of the first question in the system's image viewer; returns it.

        In a notebook the returned picture is drawn under the cell.
        """
        picture = self.overlay()
        if not _in_notebook():
            picture.show(title=self.name)
        return picture

    def _get(self, name: str) -> Any:
        if self.error is not None:
            raise self.error
        return getattr(self, name)

    def _only(self, maps: np.ndarray, several: str) -> np.ndarray:
        if len(maps) != 1:
            raise ValueError(
                f"{len(maps)} phrases were asked ({listing(self.phrases)}): read .{several}"
            )
        return maps[0]

    def __repr__(self) -> str:
        if self.error is not None:
            return f"InferenceResult({self.name!r}, error={self.error.found!r})"
        height, width = self.image.shape[:2]
        shares = ", ".join(
            f"{phrase}: {mask.mean():.1%}"
            for phrase, mask in zip(self.phrases, self.masks, strict=True)
        )
        return f"InferenceResult({self.name!r}, {width} x {height}, {shares})"


def check_threshold(threshold: float) -> None:
    """Raises ConfigError unless ``threshold`` is a number above 0 and at most 1."""
    from ..errors import ConfigError

    number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
    if not number or not 0 < threshold <= 1:
        raise ConfigError(
            found=f"threshold={threshold!r}",
            expected="a number above 0 and at most 1",
            fix="correct the threshold, or leave it out for the tuned one",
        )


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"

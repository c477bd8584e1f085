"""How well a MaskedImageModel draws what was hidden: a number and a picture at each validation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS
from PIL import Image
from torch import Tensor

from projects.sa2va.errors import ConfigError
from projects.sa2va.files import write_atomic
from projects.sa2va.models.masked_image import Reconstruction

_GAP = 4  # px between the pictures of a panel
_SPREAD = (0.5, 99.5)  # percentiles of the frame that become black and white


@METRICS.register_module()
class ReconstructionMetric(BaseMetric):
    """``reconstruction/l1``: the mean over frames of the difference at what was hidden.

    In units of the normalised pixels; 0 is a perfect drawing. All frames hide as many pixels.
    """

    default_prefix = "reconstruction"

    def process(self, data_batch: Any, data_samples: Sequence[Reconstruction]) -> None:
        """Adds the frames of a batch."""
        self.results += [sample.loss() for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """The mean over all frames of all processes."""
        return {"l1": float(np.mean(results))}


@HOOKS.register_module()
class ReconstructionPictures(Hook):
    """Writes ``reconstructions/iter_<N>.png`` in the run's folder at each validation.

    A row a frame: the frame, what the encoder saw of it, what was drawn (where nothing was hidden,
    the frame's own pixels), and all that the head drew.

    Args:
        frames: rows; the first frames of the validation set.

    Raises:
        ConfigError: less than one frame.
    """

    def __init__(self, frames: int = 4) -> None:
        if frames < 1:
            raise ConfigError(
                found=f"ReconstructionPictures: frames={frames!r}",
                expected="at least 1",
                fix="correct frames of ReconstructionPictures in custom_hooks, or remove it",
            )
        self.frames = frames
        self._kept: list[Reconstruction] = []

    def before_val(self, runner: Any) -> None:
        """A new picture begins."""
        self._kept = []

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Keeps the first frames."""
        self._kept += list(outputs or ())[: self.frames - len(self._kept)]

    def after_val(self, runner: Any) -> None:
        """Writes the picture, in the first process."""
        if not is_main_process() or not self._kept:
            return
        path = Path(runner.log_dir) / "reconstructions" / f"iter_{runner.iter}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(panel(self._kept)).save(buffer, format="png")
        write_atomic(path, lambda file: file.write(buffer.getvalue()))
        runner.logger.info(f"What was hidden and drawn: {path}")
        self._kept = []


def panel(reconstructions: Sequence[Reconstruction]) -> np.ndarray:
    """The picture of :class:`ReconstructionPictures`: uint8 [rows * S, 4 * S, 3], with gaps.

    Args:
        reconstructions: one a row, of one size.
    """
    rows = []
    for own in reconstructions:
        low, high = (float(v) for v in np.percentile(own.image.numpy(), _SPREAD))
        joined = torch.where(own.hidden, own.drawn, own.image)
        cells = [_grey(t, low, high) for t in (own.image, own.masked, joined, own.drawn)]
        rows.append(_joined(cells, axis=1))
    return _joined(rows, axis=0)


def _grey(pixels: Tensor, low: float, high: float) -> np.ndarray:
    """uint8 [S, S, 3] of [C, S, S]."""
    scaled = ((pixels - low) / max(high - low, 1e-6)).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy()


def _joined(pictures: Sequence[np.ndarray], axis: int) -> np.ndarray:
    shape = list(pictures[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([p for picture in pictures for p in (picture, gap)][:-1], axis)

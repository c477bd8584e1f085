"""What may be done to a mask after its map was cut: hysteresis, and removal of small pieces.

Both are optional, chosen on validation frames together with the threshold
(``tools/tune_threshold.py``), and change masks only: stored probability maps stay as predicted.

* Hysteresis (Canny, IEEE PAMI 8:679, 1986): pixels >= ``low`` count where they are connected,
  through such pixels, to one that is >= the threshold. Faint ends of a vessel stay, faint specks
  go. As ``skimage.filters.apply_hysteresis_threshold``, but with >= and 8 neighbours, so that a
  thin diagonal vessel is one piece.
* Small pieces: 8-connected components of fewer than ``min_area`` pixels, at the image's own size,
  are removed; as ``skimage.morphology.remove_small_objects``. After hysteresis, if there is both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from ..errors import ConfigError

_AREA = cv2.CC_STAT_AREA


@dataclass(frozen=True)
class PostProcess:
    """What is done, in this order.

    Args:
        low: the lower threshold of hysteresis, below the threshold itself; None for none.
        min_area: smallest piece that stays, in px of the image; 0 and 1 keep all.

    Raises:
        ConfigError: a value is out of range.
    """

    low: float | None = None
    min_area: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.low, (int, float)) and not isinstance(self.low, bool)
        if self.low is not None and not (number and 0 < self.low <= 1):
            raise _error("low", self.low, "a probability above 0 and below the threshold, or None")
        whole = isinstance(self.min_area, int) and not isinstance(self.min_area, bool)
        if not whole or self.min_area < 0:
            raise _error("min_area", self.min_area, "a whole number of pixels, from 0")

    def check(self, threshold: float) -> None:
        """Raises ConfigError where ``low`` is above the threshold."""
        if self.low is not None and self.low > threshold:
            raise _error("low", self.low, f"at most the threshold, {threshold:g}")

    @property
    def changes(self) -> bool:
        """Whether anything is done at all."""
        return self.low is not None or self.min_area > 1

    def kinds(self) -> list[str]:
        """Names of what is done, for comparing runs."""
        found = {"hysteresis": self.low is not None, "components": self.min_area > 1}
        return [name for name, done in found.items() if done]

    def as_dict(self) -> dict[str, Any] | None:
        """For metrics.json and threshold files; None where nothing is done."""
        return asdict(self) if self.changes else None

    def describe(self) -> str:
        """For the log; empty where nothing is done."""
        texts = []
        if self.low is not None:
            texts.append(f"and >= {self.low:g} where connected to it")
        if self.min_area > 1:
            texts.append(f"pieces of fewer than {self.min_area} px removed")
        return "; ".join(texts)

    def cut(self, probability: np.ndarray, threshold: float) -> np.ndarray:
        """The mask of a map.

        Args:
            probability: float32 [H, W].
            threshold: a pixel is vessel where probability >= threshold, in float32.

        Returns:
            bool [H, W].
        """
        mask = probability >= np.float32(threshold if self.low is None else self.low)
        if not self.changes or not mask.any():
            return mask
        labels, areas = pieces(mask)
        kept = areas >= self.min_area
        if self.low is not None:
            kept &= touched(labels, len(areas), probability >= np.float32(threshold))
        kept[0] = False
        return kept[labels]


def pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8-connected components of a bool mask [H, W].

    Returns:
        labels int32 [H, W], 0 for background, and the area of each label, int32 [N].
    """
    mask = np.ascontiguousarray(mask)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return labels, stats[:, _AREA]


def touched(labels: np.ndarray, count: int, mask: np.ndarray) -> np.ndarray:
    """Which of ``count`` labels have a pixel in ``mask``, bool [count]."""
    found = np.zeros(count, bool)
    found[labels[mask]] = True
    return found


def _error(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(
        found=f"{name}={value!r} in postprocess of VesselMetric",
        expected=expected,
        fix=f"correct test_evaluator.postprocess.{name}, or let tools/tune_threshold.py choose it",
    )

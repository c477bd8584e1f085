"""What baselines share: they read the image, not the language."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.sa2va.errors import ConfigError
from projects.sa2va.models.outputs import Prediction
from projects.sa2va.models.segmentation import SegmentationModel


class BaselineModel(SegmentationModel):
    """A model of images alone; it sees what SAM2 sees, ``grounding_pixels``.

    Args:
        processor, autocast, data_preprocessor: those of :class:`SegmentationModel`;
            ``processor.image_only`` must be True.

    Raises:
        ConfigError: the data sets would make prompts and tiles that nobody reads.
    """

    answer_mode = "none"

    def __init__(
        self, processor: dict, autocast: str | None = None, data_preprocessor: dict | None = None
    ) -> None:
        super().__init__(processor, autocast, data_preprocessor)
        if not self.processor.image_only:
            raise ConfigError(
                found=f"processor.image_only=False and model.type={self.kind!r}",
                expected="images and phrases without tokens and tiles: this model reads no others",
                fix="set processor.image_only=True",
            )

    @property
    def grid_size(self) -> tuple[int, int]:
        """The input's own size: baselines draw at full resolution."""
        return self.processor.image_size, self.processor.image_size


def as_prediction(maps: list[Tensor], size: tuple[int, int]) -> Prediction:
    """Probability maps of the K phrases of an image, K times float32 [H, W], without text."""
    height, width = (int(side) for side in size)
    return Prediction(
        probabilities=torch.stack(maps) if maps else torch.zeros(0, height, width),
        answers=[""] * len(maps),
        seg_emitted=[True] * len(maps),
    )

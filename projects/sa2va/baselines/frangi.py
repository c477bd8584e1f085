"""Frangi's vesselness: a floor that needs no training.

Source: Frangi et al., 1998 (Multiscale vessel enhancement filtering), by
``skimage.filters.frangi``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from projects.sa2va.errors import ConfigError
from projects.sa2va.models.outputs import Prediction
from projects.sa2va.models.segmentation import nothing_to_train
from projects.sa2va.weights.report import LoadReport

from .base import BaselineModel, as_prediction


@MODELS.register_module()
class FrangiVesselness(BaselineModel):
    """Vesselness of each image, divided by a percentile of itself; whatever is asked, vessels.

    The filter runs on the CPU, on the grey image of ``processor.image_size``; its response is
    divided by ``percentile`` of the responses of that image, cut at 1, and enlarged to the
    original size. So 1 means "as vessel-like as the top of this image", which is no probability.

    Args:
        processor: keyword arguments of :class:`Sa2VAProcessor`, with ``image_only=True``.
        sigmas: scales in px of the resized image, about the radii of the vessels.
        alpha: sensitivity to plates; without effect on flat images.
        beta: sensitivity to blobs.
        gamma: sensitivity to areas of little structure; None: half of the largest Hessian norm.
        black_ridges: vessels are dark on a bright background.
        percentile: in (0, 100]; see above.

    Raises:
        ConfigError: sigmas or a percentile that cannot be.
    """

    is_trainable: ClassVar[bool] = False

    def __init__(
        self,
        processor: dict,
        sigmas: Sequence[float] = (1, 3, 5, 7, 9),
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float | None = None,
        black_ridges: bool = True,
        percentile: float = 99.0,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(processor, None, data_preprocessor)
        numbers = isinstance(sigmas, Sequence) and all(isinstance(s, int | float) for s in sigmas)
        if not numbers or not sigmas or min(sigmas) <= 0:
            raise ConfigError(
                found=f"model.sigmas={sigmas!r}",
                expected="a list of scales above 0, in px of processor.image_size",
                fix="model.sigmas=[1,3,5,7,9]",
            )
        if not isinstance(percentile, int | float) or not 0 < percentile <= 100:
            raise ConfigError(
                found=f"model.percentile={percentile!r}",
                expected="above 0 and at most 100",
                fix="model.percentile=99",
            )
        self.settings = dict(
            sigmas=tuple(sigmas), alpha=alpha, beta=beta, gamma=gamma, black_ridges=black_ridges
        )
        self.percentile = float(percentile)

    def loss(
        self,
        inputs: dict[str, Any],
        masks: list[Tensor],
        meta: list[dict],
        skeletons: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """There is nothing to train.

        Raises:
            ConfigError: always.
        """
        raise nothing_to_train(self.kind)

    def predict(self, inputs: dict[str, Any]) -> list[Prediction]:
        """Vesselness maps, the same for all phrases of an image.

        Args:
            inputs: ``grounding_pixels`` [B, 3, S, S]; ``phrases``, B lists of K texts; ``sizes``:
                per image (H, W).

        Returns:
            B predictions.
        """
        predictions = []
        for pixels, phrases, size in zip(
            inputs["grounding_pixels"], inputs["phrases"], inputs["sizes"], strict=True
        ):
            response = torch.from_numpy(self._vesselness(_grey(pixels)))
            height, width = (int(side) for side in size)
            resized = F.interpolate(response[None, None], (height, width), mode="bilinear")[0, 0]
            # Rounding may leave the interval by one unit in the last place.
            predictions.append(as_prediction([resized.clamp(0, 1)] * len(phrases), size))
        return predictions

    def _vesselness(self, grey: np.ndarray) -> np.ndarray:
        """float32 [S, S] in [0, 1] of a grey image [S, S]."""
        from skimage.filters import frangi

        response = frangi(grey, **self.settings)
        top = np.percentile(response, self.percentile)
        if top == 0:  # fewer vessel-like pixels than the percentile leaves
            top = response.max()
        if top == 0:  # an image without any structure
            return np.zeros_like(grey, dtype=np.float32)
        return np.minimum(response / top, 1.0).astype(np.float32)

    def load_report(self) -> LoadReport:
        return LoadReport([], ["Frangi's filter has no weights"])


def _grey(pixels: Tensor) -> np.ndarray:
    """float64 [S, S] in [0, 1]: the mean of the three channels, as they were before normalising."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (pixels.cpu().double() * std + mean).mean(dim=0).numpy()

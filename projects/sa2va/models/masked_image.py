"""Pretraining of the mask model's image encoder on frames alone: what was hidden is drawn again.

Source: SimMIM (Xie et al., 2022): random patches of the input are replaced by one pixel value, a
linear head draws them from the encoder's maps, and the loss is the mean absolute difference at what
was hidden. Hiera's stages shrink the map, so the head reads the three maps of SAM2's FPN. Gaussian
noise on what is seen makes it a denoising task besides (Vincent et al., 2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from projects.sa2va.errors import ConfigError
from projects.sa2va.weights.report import LoadReport

from .building import random_rows
from .grounding import Sam2Adapter
from .parameters import fingerprint, frozen_tensors
from .segmentation import SegmentationModel, predicts_no_masks

_STRIDE = 4  # of the FPN's finest map


@dataclass
class Reconstruction:
    """What the model makes of one frame, for validation; float32 [C, S, S] on the CPU, normalised.

    Attributes:
        image: the frame.
        masked: what the encoder saw of it.
        drawn: what the head drew, everywhere.
        hidden: bool [S, S], where patches were hidden.
    """

    image: Tensor
    masked: Tensor
    drawn: Tensor
    hidden: Tensor

    def loss(self) -> float:
        """Mean absolute difference at what was hidden, in units of the normalised pixels."""
        return float((self.drawn - self.image).abs()[:, self.hidden].mean())


class ReconstructionHead(nn.Module):
    """Pixels from the FPN's maps: a 1x1 convolution each to 4 x 4 x C values, summed.

    Args:
        width: channels of the maps.
        channels: C, 1 (grey) or 3.
        learned: whether the value of a hidden pixel is learned, from 0 (the mean); else it is 0.
    """

    def __init__(self, width: int, channels: int, learned: bool) -> None:
        super().__init__()
        self.to_pixels = nn.ModuleList(nn.Conv2d(width, _STRIDE**2 * channels, 1) for _ in range(3))
        if learned:
            self.hidden_pixel = nn.Parameter(torch.zeros(1, 3, 1, 1))
        else:
            self.register_buffer("hidden_pixel", torch.zeros(1, 3, 1, 1), persistent=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps [B, width, S/n, S/n] of strides n = 4, 8 and 16 to [B, C, S, S]."""
        size = maps[0].shape[-2:]
        total = sum(
            F.interpolate(convolution(m), size, mode="bilinear")
            for convolution, m in zip(self.to_pixels, maps, strict=True)
        )
        return F.pixel_shuffle(total, _STRIDE)


@MODELS.register_module()
class MaskedImageModel(SegmentationModel):
    """SAM2's image encoder and a linear head that draws hidden patches; masks are not read.

    The encoder's weights have the names that they have in :class:`Sa2VAModel`, so that
    ``init_from=dict(checkpoint=FILE, parts=['SAM2 image encoder'])`` takes them.

    Args:
        grounding: config of a ``Sam2Adapter``, that of the model to come, as it is: here its image
            encoder trains and its mask decoder does not, whatever it says of them.
        processor: keyword arguments of :class:`Sa2VAProcessor`, with ``image_only=True``.
        patch_size: side of a hidden patch in px, a multiple of 4 that divides the input size.
        mask_ratio: share of the patches that is hidden, 0 to 1 (both excluded).
        hidden_pixel: ``learned``, or ``mean`` (0 after normalisation).
        noise: standard deviation of the Gaussian noise on what is seen, in normalised units.
        seen_weight: weight of the difference at what is seen; 0: hidden patches only.
        channels: 3, or 1 for the mean of the three normalised ones (grey frames).
        autocast: ``bfloat16``, or None.
        seed: seed of the head, and of the patches that are hidden in validation.

    Raises:
        ConfigError: sizes or shares that cannot be, or prompts and tiles that nobody reads.

    Shapes: B images, C channels, S the input size.
    """

    CONFIG_SCHEMAS: ClassVar = SegmentationModel.CONFIG_SCHEMAS
    predicts_masks: ClassVar[bool] = False
    answer_mode = "none"

    def __init__(
        self,
        grounding: dict,
        processor: dict,
        patch_size: int = 32,
        mask_ratio: float = 0.6,
        hidden_pixel: Literal["learned", "mean"] = "learned",
        noise: float = 0.0,
        seen_weight: float = 0.0,
        channels: Literal[1, 3] = 1,
        autocast: str | None = None,
        seed: int = 0,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(processor, autocast, data_preprocessor)
        side = self.processor.image_size
        self._check(patch_size, mask_ratio, hidden_pixel, channels, side)
        self._check_not_negative(noise=noise, seen_weight=seen_weight)
        if not self.processor.image_only:
            raise _wrong("processor.image_only", False, "True: only the image is read")
        self.patch_size, self.mask_ratio, self.noise = patch_size, mask_ratio, noise
        self.seen_weight, self.channels, self.seed = seen_weight, channels, seed
        own = {"image_size": side, "train_image_encoder": True, "train_mask_decoder": False}
        self.grounding: Sam2Adapter = MODELS.build({**grounding, **own})
        width = self.grounding.model.vision_encoder.config.fpn_hidden_size
        with torch.random.fork_rng():
            torch.manual_seed(seed + 5)
            self.reconstruction_head = ReconstructionHead(
                width, channels, hidden_pixel == "learned"
            )
        self.head_rows = random_rows("reconstruction_head.", self.reconstruction_head, seed)
        self.base_fingerprint = fingerprint(frozen_tensors(self))

    @staticmethod
    def _check(patch: int, ratio: float, hidden_pixel: str, channels: int, side: int) -> None:
        if not isinstance(patch, int) or patch < _STRIDE or patch % _STRIDE or side % patch:
            divides = [n for n in range(_STRIDE, side + 1, _STRIDE) if side % n == 0]
            expected = f"a multiple of {_STRIDE} that divides processor.image_size={side}: "
            raise _wrong("patch_size", patch, expected + ", ".join(map(str, divides)))
        hidden = round(ratio * (side // patch) ** 2) if isinstance(ratio, int | float) else 0
        if not 0 < hidden < (side // patch) ** 2:
            most = "a share between 0 and 1 that hides at least one patch, and not all of the "
            raise _wrong("mask_ratio", ratio, most + str((side // patch) ** 2))
        if hidden_pixel not in ("learned", "mean"):
            raise _wrong("hidden_pixel", hidden_pixel, "'learned' or 'mean'")
        if channels not in (1, 3):
            raise _wrong("channels", channels, "3, or 1 for the mean of the three")

    @staticmethod
    def _check_not_negative(**values: float) -> None:
        for key, value in values.items():
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise _wrong(key, value, "a number of at least 0")

    def loss(
        self,
        inputs: dict[str, Any],
        masks: list[Tensor],
        meta: list[dict],
        skeletons: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one batch; patches and noise are drawn from torch's global CPU generator.

        The training loop seeds it for each iteration, so a resumed run hides the same patches.

        Args:
            inputs: ``grounding_pixels`` [B, 3, S, S], normalised.
            masks, meta, skeletons: not read.

        Returns:
            ``loss_hidden``, the mean absolute difference at what was hidden, in units of the
            normalised pixels, and with ``seen_weight`` ``loss_seen``: float32 scalars.
        """
        pixels = inputs["grounding_pixels"]
        hidden = self._draw(len(pixels), None).to(pixels.device)
        noise = torch.randn(pixels.shape).to(pixels.device) if self.noise else None
        self.mark("sam2")
        drawn = self._reconstruct(self._masked(pixels, hidden, noise))
        self.mark("masks")
        difference = (drawn - self._target(pixels)).abs()
        where = hidden.expand_as(difference)
        losses = {"loss_hidden": difference[where].mean()}
        if self.seen_weight:
            losses["loss_seen"] = self.seen_weight * difference[~where].mean()
        self.mark("backward")
        return losses

    @torch.no_grad()
    def predict(self, inputs: dict[str, Any]) -> list[Reconstruction]:
        """What the model draws, for validation: the same patches are hidden in every frame.

        Args:
            inputs: ``grounding_pixels`` [B, 3, S, S].

        Returns:
            B reconstructions. No noise is added.
        """
        pixels = inputs["grounding_pixels"]
        generator = torch.Generator().manual_seed(self.seed)
        hidden = self._draw(1, generator).to(pixels.device)
        masked = self._masked(pixels, hidden, None)
        drawn = self._reconstruct(masked)
        rows = (self._target(pixels), self._target(masked), drawn)
        return [
            Reconstruction(*(row.float().cpu() for row in triple), hidden[0, 0].cpu())
            for triple in zip(*rows, strict=True)
        ]

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Hidden pixels: bool [count, 1, S, S] on the CPU, the same number of patches in each."""
        side = self.processor.image_size // self.patch_size
        order = torch.rand(count, side**2, generator=generator).argsort(dim=1).argsort(dim=1)
        hidden = (order < round(self.mask_ratio * side**2)).reshape(count, 1, side, side)
        for axis in (2, 3):
            hidden = hidden.repeat_interleave(self.patch_size, axis)
        return hidden

    def _masked(self, pixels: Tensor, hidden: Tensor, noise: Tensor | None) -> Tensor:
        seen = pixels if noise is None else pixels + self.noise * noise
        return torch.where(hidden, self.reconstruction_head.hidden_pixel.to(pixels.dtype), seen)

    def _target(self, pixels: Tensor) -> Tensor:
        """[B, C, S, S] of [B, 3, S, S]."""
        return pixels.mean(dim=1, keepdim=True) if self.channels == 1 else pixels

    def _reconstruct(self, pixels: Tensor) -> Tensor:
        """Pixels float32 [B, C, S, S] from [B, 3, S, S]."""
        maps = self.grounding.model.vision_encoder(pixels).fpn_hidden_states[:3]
        return self.reconstruction_head(list(maps)).float()

    def load_report(self) -> LoadReport:
        return LoadReport([*self.grounding.rows, *self.head_rows])

    @property
    def grid_size(self) -> tuple[int, int]:
        """There is none.

        Raises:
            ConfigError: always; this model predicts no masks.
        """
        raise predicts_no_masks(self.kind)


def _wrong(key: str, value: object, expected: str) -> ConfigError:
    key = key if "." in key else f"model.{key}"
    return ConfigError(found=f"{key}={value!r}", expected=expected, fix=f"correct {key}")

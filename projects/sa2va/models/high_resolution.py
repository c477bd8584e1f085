"""A mask head of high resolution over SAM2's: detail that its grid of stride 4 cannot hold.

SAM2 predicts logits at a quarter of the input's resolution, where a vessel of 4 px is one cell. Its
Hiera has no map finer than that, so a convolutional stem reads the input pixels, and a U-Net
decoder (Ronneberger et al., 2015; residual blocks as in nnU-Net, Isensee et al., 2021, by MONAI)
takes the mask decoder's upscaled embedding and logits back up beside it. With ``context`` the stem
is a U-Net of its own, which reads each image once, whatever the number of prompts; with
``prompted`` the prompt scales and shifts the decoder's maps (Perez et al., 2018, FiLM), as the
classes of a U-Net weigh its last map. The last convolution starts at zero: over pretrained weights
the output is SAM2's own until training changes it (Zhang et al., 2023, ControlNet's zero
convolution).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.sa2va.errors import ConfigError

_SAM2_STRIDE = 4
_CONTEXTS = (4, 8, 16, 32)
_MOST_CHANNELS = 512  # as nnU-Net's in 2D


class Stem(nn.Module):
    """Maps of the input pixels, down to ``strides[-1]`` and back up to SAM2's stride.

    Args:
        strides: of the maps on the way down, finest first; SAM2's is among them.
        widths: their channels.
        norm: of MONAI's blocks.
    """

    def __init__(self, strides: list[int], widths: list[int], norm: tuple[str, dict]) -> None:
        super().__init__()
        from monai.networks.blocks import UnetResBlock, UnetUpBlock  # takes seconds to import

        first, coarse = strides[0], widths[strides.index(_SAM2_STRIDE) :]
        self.down_blocks = nn.ModuleList(
            UnetResBlock(2, below, own, 3, 2 if index else first, norm)
            for index, (below, own) in enumerate(zip([3, *widths], widths, strict=False))
        )
        self.up_blocks = nn.ModuleList(
            UnetUpBlock(2, below, own, 3, 1, 2, norm)
            for below, own in zip(coarse[:0:-1], coarse[-2::-1], strict=True)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of images [B, 3, S, S], finest first: [B, C, S/s, S/s] for each stride s up to 4."""
        maps = []
        images = images.to(self.down_blocks[0].conv1.conv.weight.device)
        for block in self.down_blocks:
            images = block(images)
            maps.append(images)
        coarsest = maps.pop()
        for block in self.up_blocks:
            coarsest = block(coarsest, maps.pop())
        return (*maps, coarsest)


class PromptModulation(nn.Module):
    """Scale and shift of C channels by a prompt; it starts as none.

    Source: feature-wise linear modulation (Perez et al., 2018, FiLM).

    Args:
        prompt_size: width P of a prompt.
        channels: C.
    """

    def __init__(self, prompt_size: int, channels: int) -> None:
        super().__init__()
        self.scale_and_shift = nn.Linear(prompt_size, 2 * channels)
        nn.init.zeros_(self.scale_and_shift.weight)
        nn.init.zeros_(self.scale_and_shift.bias)

    def forward(self, maps: Tensor, prompts: Tensor) -> Tensor:
        """Maps [N, C, H, W] of N prompts [N, P], scaled and shifted; in the dtype of the maps."""
        weight = self.scale_and_shift.weight
        both = self.scale_and_shift(prompts.to(weight.device, weight.dtype))
        scale, shift = both[..., None, None].to(maps.dtype).chunk(2, dim=1)
        return maps * (1 + scale) + shift


class HighResolutionHead(nn.Module):
    """Adds a correction of stride 1 or 2 to SAM2's logits.

    Args:
        embedding_size: channels of the mask decoder's upscaled embedding.
        prompt_size: width of a prompt.
        stride: 1 or 2, of the correction's grid.
        width: channels at stride 1; s times as many at stride s, 512 at most.
        context: coarsest stride of the stem: 4, 8, 16 or 32. Beyond 4 the stem goes on down and
            comes back up to 4, so that its maps know their surroundings.
        prompted: the prompt scales and shifts the decoder's maps. Without it the head tells prompts
            apart by SAM2's logits and embedding alone.
        seed: seed of the weights; the global generator is left as it was.

    Raises:
        ConfigError: another stride or context, or no channels.

    Shapes: B images, N prompts of width P, S the input size, E the embedding size.
    """

    def __init__(
        self,
        embedding_size: int,
        prompt_size: int,
        stride: int = 2,
        width: int = 16,
        context: int = 4,
        prompted: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if stride not in (1, 2) or width < 1 or context not in _CONTEXTS:
            raise ConfigError(
                found=f"model.high_resolution stride={stride!r}, width={width!r}, "
                f"context={context!r}",
                expected="stride 1 or 2, at least one channel, and context 4, 8, 16 or 32",
                fix="set model.high_resolution=dict(stride=2, width=16, context=4), or None to "
                "leave it out",
            )
        from monai.networks.blocks import UnetResBlock, UnetUpBlock  # takes seconds to import

        self.stride = stride
        strides = [s for s in (1, 2, *_CONTEXTS) if stride <= s <= context]
        widths = [min(width * s, _MOST_CHANNELS) for s in strides]
        norm = ("instance", {"affine": True})
        with torch.random.fork_rng():
            torch.manual_seed(seed + 4)
            self.stem = Stem(strides, widths, norm)
            fine = widths[: strides.index(_SAM2_STRIDE) + 1]
            self.join = UnetResBlock(2, fine[-1] + embedding_size + 1, fine[-1], 3, 1, norm)
            self.up_blocks = nn.ModuleList(
                UnetUpBlock(2, below, own, 3, 1, 2, norm)
                for below, own in zip(fine[:0:-1], fine[-2::-1], strict=True)
            )
            self.correction = nn.Conv2d(fine[0], 1, kernel_size=1)
            # One for each map of the decoder, the last of which the correction is read from.
            self.modulations = nn.ModuleList(
                PromptModulation(prompt_size, channels) for channels in fine[::-1] if prompted
            )
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(
        self, logits: Tensor, upscaled: Tensor, stem: tuple[Tensor, ...], prompts: Tensor
    ) -> Tensor:
        """Logits at the input's resolution.

        Args:
            logits: float32 [N, S/4, S/4], SAM2's.
            upscaled: [N, E, S/4, S/4], the embedding that its masks are read from.
            stem: maps of :class:`Stem`, one image for each prompt.
            prompts: [N, P], as SAM2 was given them.

        Returns:
            float32 [N, S, S]: the logits enlarged bilinearly, plus the correction.
        """
        size = [side * _SAM2_STRIDE for side in logits.shape[-2:]]
        x = self.join(torch.cat([stem[-1], upscaled.to(stem[-1].dtype), logits[:, None]], dim=1))
        x = self._modulated(x, 0, prompts)
        for level, (block, skip) in enumerate(zip(self.up_blocks, stem[-2::-1], strict=True), 1):
            x = self._modulated(block(x, skip), level, prompts)
        correction = self.correction(x).float()
        if self.stride > 1:
            correction = F.interpolate(correction, size, mode="bilinear")
        return (F.interpolate(logits[:, None].float(), size, mode="bilinear") + correction)[:, 0]

    def _modulated(self, maps: Tensor, level: int, prompts: Tensor) -> Tensor:
        return self.modulations[level](maps, prompts) if self.modulations else maps


def build_head(
    config: Any, embedding_size: int, prompt_size: int, seed: int
) -> HighResolutionHead | None:
    """The head of ``model.high_resolution``, if there is one.

    Raises:
        ConfigError: not a dict, or settings that cannot be.
    """
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise ConfigError(
            found=f"model.high_resolution={config!r}",
            expected="a dict, or None for SAM2's masks as they are",
            fix="set model.high_resolution=dict(stride=2, width=16) in a config file",
        )
    return HighResolutionHead(embedding_size, prompt_size, seed=seed, **config)

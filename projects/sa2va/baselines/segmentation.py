"""A network with one channel a class: U-Net and nnU-Net's DynUNet, by MONAI.

Source: Ronneberger et al., 2015 (U-Net); Kerfoot et al., 2018 (residual units: MONAI's ``UNet``);
Isensee et al., 2021 (nnU-Net: ``DynUNet``, Dice + cross-entropy, deep supervision).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from projects.sa2va.errors import ConfigError, DataError, listing
from projects.sa2va.models.losses import skeletons_amiss
from projects.sa2va.models.outputs import Prediction
from projects.sa2va.models.trained import load_trained_state_dict
from projects.sa2va.weights.report import LoadReport, PartRow, dtype_names

from .base import BaselineModel, as_prediction
from .networks import LOSSES, NETWORKS, build_loss, build_network

_FIX = "test with the config the checkpoint was trained with (it is stored inside: meta.cfg)"


@MODELS.register_module()
class SegmentationBaseline(BaselineModel):
    """One network, one sigmoid channel a class, trained and tested as :class:`Sa2VAModel` is.

    Each (image, phrase) is one binary map: a channel learns from the frames that ask for its
    phrase and from no others, as Sa2VA does. A frame that does not ask says nothing about it.

    Args:
        processor: keyword arguments of :class:`Sa2VAProcessor`, with ``image_only=True``.
        classes: the phrase of each channel, or a list of its wordings.
        network: ``type`` (``UNet``, ``BasicUNet`` or ``DynUNet``) and keyword arguments of MONAI's
            class; dimensions and channels at both ends are filled in.
        loss: ``type`` (``DiceCELoss`` or ``DiceFocalLoss``) and keyword arguments of MONAI's class.
        in_channels: 3, or 1 for the mean of the three normalised ones.
        autocast: ``bfloat16``, or None.
        seed: seed of the weights.

    Raises:
        ConfigError: classes, network or loss that cannot be.

    Shapes: B images, C classes, N phrases in all, S the input size.
    """

    CONFIG_SCHEMAS: ClassVar = {"network": NETWORKS, "loss": LOSSES}

    def __init__(
        self,
        processor: dict,
        classes: Sequence[str | Sequence[str]],
        network: dict,
        loss: dict,
        in_channels: int = 3,
        autocast: str | None = None,
        seed: int = 0,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(processor, autocast, data_preprocessor)
        if in_channels not in (1, 3):
            raise ConfigError(
                found=f"model.in_channels={in_channels!r}",
                expected="3, or 1 for the mean of the three",
                fix="correct model.in_channels",
            )
        self.channel_of = _channels(classes)
        self.in_channels, self.seed = in_channels, seed
        self.network = build_network(
            network,
            in_channels=in_channels,
            out_channels=len(classes),
            image_size=self.processor.image_size,
            seed=seed,
        )
        self.criterion = build_loss(loss)

    def loss(
        self,
        inputs: dict[str, Any],
        masks: list[Tensor],
        meta: list[dict],
        skeletons: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Loss of one batch, at the labels' own resolution.

        Args:
            inputs: ``grounding_pixels`` [B, 3, S, S] and ``phrases``, B lists of K texts.
            masks: per sample uint8 [K, H, W]; K may be 0.
            meta: per sample a dict with ``frame``.
            skeletons: None; there is no loss for them here.

        Returns:
            ``loss_mask``, a float32 scalar: the mean over the N maps. Of a network with deep
            supervision the mean over its outputs with weights 1, 1/2, 1/4, ... (nnU-Net).

        Raises:
            DataError: a phrase that is not among the classes, or skeletons, which nothing reads.
        """
        if skeletons is not None:
            raise skeletons_amiss(given=True)
        channels = self._channels_of(inputs["phrases"], meta)
        if [len(own) for own in masks] != [len(own) for own in channels]:
            raise ValueError(
                f"phrases {[len(own) for own in channels]}, masks {[len(own) for own in masks]}"
            )
        self.mark("vision")
        logits = self._logits(inputs["grounding_pixels"])
        self.mark("masks")
        outputs = logits.unbind(1) if logits.ndim == 5 else [logits]
        weights = [0.5**depth for depth in range(len(outputs))]
        total = sum(
            w * self._compare(o, channels, masks) for w, o in zip(weights, outputs, strict=True)
        )
        self.mark("backward")
        return {"loss_mask": total / sum(weights)}

    def _compare(self, logits: Tensor, channels: list[list[int]], masks: list[Tensor]) -> Tensor:
        """Mean loss over all maps; logits [B, C, S, S]."""
        pairs: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for own, channel, mask in zip(logits.float(), channels, masks, strict=True):
            if channel:
                size = tuple(mask.shape[-2:])
                pairs.setdefault(size, []).append((own[channel], mask))
        count = sum(len(channel) for channel in channels)
        if not count:
            # The network takes part in every backward pass, or DDP waits forever.
            return logits.float().sum() * 0.0
        losses = []
        for size, group in pairs.items():
            # Frames of one size go together.
            maps = torch.cat([own for own, _ in group]).unsqueeze(1)
            labels = torch.cat([mask for _, mask in group]).unsqueeze(1).float()
            maps = F.interpolate(maps, size, mode="bilinear")
            losses.append(self.criterion(maps, labels) * len(maps))
        return torch.stack(losses).sum() / count

    @torch.no_grad()
    def predict(self, inputs: dict[str, Any]) -> list[Prediction]:
        """Probability maps for phrases.

        Args:
            inputs: ``grounding_pixels`` [B, 3, S, S]; ``phrases``, B lists of K texts; ``sizes``:
                per image (H, W).

        Returns:
            B predictions.

        Raises:
            DataError: a phrase that is not among the classes.
        """
        channels = self._channels_of(inputs["phrases"], [])
        logits = self._logits(inputs["grounding_pixels"])
        return [
            as_prediction(self._to_original(own[wanted], [size] * len(wanted)), size)
            for own, wanted, size in zip(logits, channels, inputs["sizes"], strict=True)
        ]

    def _logits(self, pixels: Tensor) -> Tensor:
        """[B, C, S, S]; [B, outputs, C, S, S] in training with deep supervision."""
        if self.in_channels == 1:
            pixels = pixels.mean(dim=1, keepdim=True)
        return self.network(pixels)

    def _channels_of(self, phrases: list[list[str]], meta: list[dict]) -> list[list[int]]:
        unknown = sorted({p for own in phrases for p in own if p not in self.channel_of})
        if unknown:
            frames = [
                str(m.get("frame"))
                for m, own in zip(meta, phrases, strict=False)
                if not self.channel_of.keys() >= set(own)
            ]
            raise DataError(
                found=f"phrases that are no class of the model: {listing(unknown)}"
                + (f" (frames {listing(frames, 3)})" if frames else ""),
                expected=f"one of {listing(self.channel_of)}",
                fix="add them to model.classes (a list in it holds wordings of one class), or set "
                "the phrase of the data sets to a class",
            )
        return [[self.channel_of[phrase] for phrase in own] for own in phrases]

    def load_trained_state_dict(self, state: dict[str, Tensor], source: str) -> dict[str, int]:
        return load_trained_state_dict(self, state, source, _FIX)

    def load_report(self) -> LoadReport:
        parameters = list(self.network.parameters())
        row = PartRow(
            part="network",
            source=f"random weights (seed {self.seed})",
            tensors=len(parameters),
            loaded=0,
            dtype=dtype_names(p.dtype for p in parameters),
        )
        return LoadReport([row])


def _channels(classes: object) -> dict[str, int]:
    """Each phrase's channel."""
    known = isinstance(classes, Sequence) and not isinstance(classes, str)
    groups = [c if isinstance(c, list | tuple) else [c] for c in classes] if known else []
    phrases = [(phrase, channel) for channel, group in enumerate(groups) for phrase in group]
    texts = [phrase for phrase, _ in phrases]
    right = all(isinstance(t, str) and t.strip() for t in texts) and all(groups)
    if not groups or not right or len(set(texts)) < len(texts):
        raise ConfigError(
            found=f"model.classes={classes!r}",
            expected="a list: for each class its phrase, or a list of its wordings; none twice",
            fix="model.classes=['blood vessel']",
        )
    return dict(phrases)

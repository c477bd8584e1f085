"""MONAI's networks and losses from a config, built reproducibly."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn

from projects.sa2va.errors import ConfigError, suggest

# What the model hands over; everything else of MONAI's signature may stand in the config.
_OF_NETWORK = ("spatial_dims", "in_channels", "out_channels")
_OF_LOSS = ("include_background", "to_onehot_y", "sigmoid", "softmax", "other_act", "reduction")

NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    name: (f"monai.networks.nets.{name}", _OF_NETWORK) for name in ("UNet", "BasicUNet", "DynUNet")
}
LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    name: (f"monai.losses.{name}", _OF_LOSS) for name in ("DiceCELoss", "DiceFocalLoss")
}


def build_network(
    config: dict[str, Any], *, in_channels: int, out_channels: int, image_size: int, seed: int
) -> nn.Module:
    """A network of :data:`NETWORKS` in two dimensions, its weights drawn from ``seed``.

    Args:
        config: ``type`` and keyword arguments of MONAI's class.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        image_size: side of the image in px, which the network's strides must divide.
        seed: seed of the weights; the global generator is left as it was.

    Raises:
        ConfigError: unknown type, settings that MONAI refuses, strides that do not divide the
            image, or a norm with running statistics.
    """
    from monai.networks import nets  # takes seconds, which tools without a model need not wait

    kind, settings = _type_of(config, "model.network", NETWORKS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _build(
            getattr(nets, kind),
            "model.network",
            dict(settings, spatial_dims=2, in_channels=in_channels, out_channels=out_channels),
        )
    stride = _total_stride(settings.get("strides", ()))
    if image_size % stride:
        raise ConfigError(
            found=f"processor.image_size={image_size} and model.network.strides="
            f"{settings['strides']!r}",
            expected=f"an image_size that is a multiple of {stride}, the product of the strides",
            fix=f"set processor.image_size={-(-image_size // stride) * stride}",
        )
    running = [name for name, _ in network.named_buffers()]
    if running:
        raise ConfigError(
            found=f"model.network with statistics that no optimiser step trains ({running[0]})",
            expected="a norm of each image by itself: checkpoints hold what was trained, and "
            "statistics of small batches are poor",
            fix="set the network's norm to 'INSTANCE'",
        )
    return network


def build_loss(config: dict[str, Any]) -> nn.Module:
    """A loss of :data:`LOSSES` between logits [N, 1, H, W] and labels of the same shape.

    Raises:
        ConfigError: unknown type, or settings that MONAI refuses.
    """
    from monai import losses

    kind, settings = _type_of(config, "model.loss", LOSSES)
    return _build(getattr(losses, kind), "model.loss", {**settings, "sigmoid": True})


def _type_of(config: dict[str, Any], key: str, known: dict[str, Any]) -> tuple[str, dict]:
    settings = dict(config)
    kind = settings.pop("type", None)
    if kind not in known:
        raise ConfigError(
            found=f"{key}.type={kind!r}" + suggest(str(kind), known),
            expected="one of " + ", ".join(known),
            fix=f"correct {key}.type",
        )
    return kind, settings


def _build(owner: type[nn.Module], key: str, settings: dict[str, Any]) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # MONAI ignores what is left over of `strides`.
            warnings.filterwarnings("error", message=".*will not be used", category=UserWarning)
            return owner(**settings)
    except (TypeError, ValueError, AssertionError, LookupError, UserWarning) as error:
        raise ConfigError(
            found=f"{key} is refused by MONAI's {owner.__name__}: {error}",
            expected=f"keyword arguments of {owner.__module__.rpartition('.')[0]}.{owner.__name__}",
            fix=f"correct {key}",
        ) from error


def _total_stride(strides: Any) -> int:
    """By how much the coarsest map is smaller; a stride is a number or one for each axis."""
    return math.prod(max(s) if isinstance(s, (list, tuple)) else s for s in strides)

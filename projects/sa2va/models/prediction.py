"""What a model that only predicts needs no more: float32 copies of weights that autocast rounds.

Under autocast a linear layer's float32 weight is rounded to the autocast dtype in every forward
pass, and torch keeps the rounded copy until the pass ends. Rounding it once, for good, gives the
same numbers bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def move_frozen_first(module: nn.Module, device: torch.device | str) -> None:
    """As ``module.to(device)``, with what trains behind what is frozen.

    Prediction replaces what trained by something smaller, or merges it. Scattered among the frozen
    weights it would leave holes that the card cannot use otherwise (0.4 GiB at 8B).
    """
    for parameter in module.parameters():
        # The data of an int8 weight is two tensors, which only the module's own `to` moves.
        if not parameter.requires_grad and not is_traceable_wrapper_subclass(parameter):
            parameter.data = parameter.data.to(device)
    module.to(device)


def channels_last(module: nn.Module) -> int:
    """Lays convolutions below ``module`` out as a card's kernels want them; returns their number.

    Without it the maps between them are turned around again and again. Same values, other kernels:
    the last digits of a result may change.
    """
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    for convolution in convolutions:
        weight = convolution.weight
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return len(convolutions)


def trained_linears(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and float32 parameters of the linear layers below ``module`` that train."""
    for name, linear in module.named_modules():
        if not isinstance(linear, nn.Linear) or not linear.weight.requires_grad:
            continue
        for own, parameter in linear.named_parameters(recurse=False):
            if parameter.dtype == torch.float32:
                yield f"{name}.{own}" if name else own, parameter


def round_trained_linears(module: nn.Module, dtype: torch.dtype | None) -> int:
    """Rounds the trained linear layers below ``module`` to the dtype of autocast, in place.

    What autocast leaves in float32 (norms, embeddings, token rows) stays so, and so do frozen
    weights, of which a head may share its table with the embedding. Not for a model that goes on
    training: float32 is what an optimiser step is added to.

    Args:
        module: a module that runs under autocast to ``dtype`` only.
        dtype: dtype of autocast; None, where there is no autocast, changes nothing.

    Returns:
        Bytes that are free now.
    """
    freed = 0
    if dtype is None:
        return freed
    for _, parameter in trained_linears(module):
        freed += parameter.numel() * (4 - dtype.itemsize)
        parameter.data = parameter.data.to(dtype)
    return freed

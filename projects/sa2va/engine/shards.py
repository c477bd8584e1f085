"""Tensors in FSDP2's shards, and whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor; all processes take part where it is sharded."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's share of the values, sharing memory with ``tensor``."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(value: Any, parameter: Tensor) -> Any:
    """``value`` on the device of ``parameter``, and this process's shard where it is sharded.

    What is no tensor of its shape (a step count of an optimiser) stays as it is.
    """
    if not torch.is_tensor(value) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    # Every process has read the whole tensor: nothing need be sent.
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)

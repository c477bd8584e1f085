"""What an optimiser keeps of a trained value, and what a step takes beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from projects.sa2va.models import part_of

# Two constants of float32 for each 256 values of the two 8-bit moments.
_EIGHT_BIT = 2 + 2 * 4 / 256
_SMALL = 4096  # bitsandbytes keeps the moments of smaller tensors in float32
_FUSED = ("AdamW", "Adam", "SGD")
_STATES = {"AdamW": 8, "Adam": 8, "NAdam": 8, "RAdam": 8, "Adamax": 8, "Lion": 4, "SGD": 0}


def state_bytes(optimizer: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of the states of ``parameters``.

    Args:
        optimizer: ``optim_wrapper.optimizer``; of a type that is not known, two float32 moments
            are assumed.
        parameters: what trains, of any device.
    """
    kind = str(optimizer.get("type"))
    if "8bit" in kind:
        each = ((p.numel(), 8 if p.numel() < _SMALL else _EIGHT_BIT) for p in parameters)
        return int(sum(count * size for count, size in each))
    size = 4 if kind == "SGD" and optimizer.get("momentum") else _STATES.get(kind, 8)
    return size * sum(p.numel() for p in parameters)


def is_known(optimizer: Mapping[str, Any]) -> bool:
    """Whether :func:`state_bytes` knows the type."""
    return "8bit" in str(optimizer.get("type")) or optimizer.get("type") in _STATES


def step_bytes(
    optimizer: Mapping[str, Any], named: Iterable[tuple[str, nn.Parameter]], deepspeed: bool
) -> int:
    """Bytes that a step takes for a while, in float32.

    torch's optimisers step a parameter group at once (``foreach``), with the square roots of all
    second moments of the group beside them; the groups are those of ``engine/optim.py``, a part
    and whether it decays. In one fused kernel, which is the rule on a card without DeepSpeed,
    they take nothing.
    """
    said = {"fused", "foreach", "capturable", "differentiable"} & set(optimizer)
    kind = optimizer.get("type")
    if optimizer.get("fused") or optimizer.get("foreach") is False or "8bit" in str(kind):
        return 0
    if kind in _FUSED and not said and not deepspeed:
        return 0
    groups: dict[tuple[str, bool], int] = {}
    for name, parameter in named:
        part = part_of(name)
        decays = parameter.ndim > 1 and part != "token rows" and "embed" not in name
        groups[part, decays] = groups.get((part, decays), 0) + 4 * parameter.numel()
    return max(groups.values(), default=0)

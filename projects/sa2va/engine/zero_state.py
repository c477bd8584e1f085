"""Optimiser state and float32 masters of DeepSpeed ZeRO, whole: out of the shards and back.

A checkpoint then is the same under DeepSpeed, DDP and in one process, and goes on under another
stage or with another number of processes. Little is trained here, so the whole fits a host's
memory many times over; it is gathered a tensor at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from torch import Tensor, nn

from projects.sa2va.errors import CheckpointError

Groups = list[list[nn.Parameter]]


def gather_masters(named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The float32 masters of trained parameters, on the CPU; empty but in the first process.

    Args:
        named: names to parameters; every process gives the same ones.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    masters = {}
    for name, parameter in named.items():
        whole = safe_get_full_fp32_param(parameter)
        if is_main_process():
            masters[name] = whole.detach().cpu().clone()
    return masters


def gather_optimizer(zero: Any, groups: Groups) -> dict[str, Any]:
    """The state dict that torch's optimiser would have without DeepSpeed.

    Args:
        zero: DeepSpeed's ZeRO optimiser.
        groups: the parameters of each group, as the optimiser was built with them.

    Returns:
        ``state`` and ``param_groups``; ``state`` is empty but in the first process, and before
        the first step.

    Raises:
        CheckpointError: the optimiser keeps something that cannot be put together (8-bit states).
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    base = zero.optimizer
    kept = [base.state[flat] for flat in _masters(zero) if base.state.get(flat)]
    keys = _tensor_keys(base, zero) if kept else []
    if kept:
        _link(zero)
    state: dict[int, dict[str, Any]] = {}
    numbers: list[list[int]] = []
    index = 0
    for group in groups:
        numbers.append(list(range(index, index + len(group))))
        for parameter in group:
            whole = {key: safe_get_full_optimizer_state(parameter, key) for key in keys}
            if kept and is_main_process():
                state[index] = {key: value.cpu().clone() for key, value in whole.items()}
                if "step" in kept[0]:
                    state[index]["step"] = torch.as_tensor(float(kept[0]["step"]))
            index += 1
    options = [
        {**{key: value for key, value in group.items() if key != "params"}, "params": numbers[at]}
        for at, group in enumerate(base.param_groups)
    ]
    return {"state": state, "param_groups": options}


def scatter(
    zero: Any, groups: Groups, masters: list[list[Tensor]], optimizer: dict[str, Any]
) -> None:
    """Puts masters and optimiser state into the shards of this process.

    Args:
        zero: DeepSpeed's ZeRO optimiser, before its first step.
        groups: as for :func:`gather_optimizer`.
        masters: float32, for each parameter of ``groups``.
        optimizer: what :func:`gather_optimizer` gave, or the state dict of torch's optimiser.
    """
    base, state = zero.optimizer, optimizer["state"]
    for group, saved in zip(base.param_groups, optimizer["param_groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    keys = [key for key in next(iter(state.values()), {}) if key != "step"]
    if state:
        step = torch.as_tensor(float(next(iter(state.values())).get("step", 0)))
        # As torch does: the counter is beside the weights only where a kernel reads it there.
        fused = any(g.get("fused") or g.get("capturable") for g in base.param_groups)
        for flat in _masters(zero):
            base.state[flat] = {"step": step.to(flat.device) if fused else step.clone()}
            base.state[flat] |= {key: torch.zeros_like(flat) for key in keys}
        _link(zero)
    index = 0
    for group, values in zip(groups, masters, strict=True):
        for parameter, master in zip(group, values, strict=True):
            _put(parameter, master, None)
            for key in keys:
                _put(parameter, state[index][key], key)
            index += 1


def _masters(zero: Any) -> list[Tensor]:
    """The flat float32 tensors that this process's optimiser steps."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):  # stage 3
        return list(zero.fp32_partitioned_groups_flat)
    return list(zero.single_partition_of_fp32_groups)


def _link(zero: Any) -> None:
    """Lets the parameters of stages 1 and 2 find their states.

    DeepSpeed 0.19.8 does so once, when the first of several groups has been stepped and the others
    have no states yet.
    """
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _tensor_keys(base: torch.optim.Optimizer, zero: Any) -> list[str]:
    flat = next(flat for flat in _masters(zero) if base.state.get(flat))
    values = base.state[flat]
    keys = [k for k, v in values.items() if torch.is_tensor(v) and v.shape == flat.shape]
    other = sorted(set(values) - set(keys) - {"step"})
    if other:
        raise CheckpointError(
            found=f"{type(base).__name__} keeps {', '.join(other)} for its shards",
            expected="an optimiser whose states have the shape of the weights, such as AdamW: "
            "others cannot be put together from ZeRO's shards",
            fix="set optim_wrapper.optimizer.type=AdamW, or train without --deepspeed",
        )
    return sorted(keys)


def _put(parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    """Sets this process's share of a master (``key`` None) or of a state."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if not hasattr(parameter, "ds_tensor"):  # stages 1 and 2
        if key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)
        return
    # DeepSpeed's setter of whole tensors fails where they do not divide by the processes.
    share = parameter.ds_tensor.numel()
    padded = value.new_zeros(share * get_world_size())
    padded[: value.numel()] = value.flatten()
    own = padded[share * get_rank() : share * (get_rank() + 1)]
    if key is None:
        safe_set_local_fp32_param(parameter, own)
    else:
        safe_set_local_optimizer_state(parameter, own, key)

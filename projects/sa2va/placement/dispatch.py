"""A model over several devices, the host's memory and the disk.

accelerate's hooks (``add_hook_to_module``) bring a unit's inputs to its device. accelerate's own
offloading sends weights through the meta device by name and so loses what 4-bit and int8 weights
carry beside their values; here the weights of a waiting unit come as they are.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from projects.sa2va.models import Sa2VAModel
from projects.sa2va.planning.section import GIB

from .choice import Placement
from .units import units_of

_CACHE = "past_key_values"  # each layer's keys and values stay on that layer's device


class UnitHook(ModelHook):
    """Brings the inputs of a module to its device, and its weights for each call if they wait.

    Args:
        device: where it computes.
        waits: its weights are kept elsewhere.
    """

    def __init__(self, device: str, waits: bool) -> None:
        self.device = torch.device(device)
        self.waits = waits
        self._kept: list[tuple[dict[str, Any], str, Any]] = []

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple, dict]:
        """Moves inputs, fetches weights."""
        if self.waits:
            self._fetch(module)
        return (
            send_to_device(args, self.device),
            send_to_device(kwargs, self.device, skip_keys=_CACHE),
        )

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Drops the fetched weights."""
        while self._kept:
            tensors, name, own = self._kept.pop()
            tensors[name] = own
        return output

    def _fetch(self, module: nn.Module) -> None:
        fetched: dict[int, Tensor] = {}
        for below in module.modules():
            for tensors in (below._parameters, below._buffers):
                for name, own in tensors.items():
                    if own is None:
                        continue
                    if id(own) not in fetched:
                        fetched[id(own)] = _copy_to(own, self.device)
                    self._kept.append((tensors, name, own))
                    tensors[name] = fetched[id(own)]


def _copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, for one call, with all that it carries."""
    with torch.no_grad():
        if getattr(tensor, "quant_state", None) is not None:
            # bitsandbytes moves the state of 4-bit weights in place, and packs both anew at the
            # first call on a CPU.
            small = copy.copy(tensor)
            small.quant_state = copy.deepcopy(tensor.quant_state)
            small.quant_state.to(device)
            small.data = tensor.data.to(device, copy=True)
            return small
        moved = tensor.detach().to(device)
    # Without a gradient: autocast keeps copies of what trains until the whole pass is over.
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved


def dispatch(model: Sa2VAModel, placement: Placement, folder: str | Path | None = None) -> None:
    """Hooks a model whose weights are where ``placement`` keeps them.

    Args:
        model: in its last form.
        placement: sharded.
        folder: on whose disk waiting weights are mapped; None: the system's temporary folder.
            Their files have no name there and vanish with the process.
    """
    sizes: dict[str, int] = {}
    for unit in units_of(model):
        waits = placement.waiting.get(unit.name)
        if waits is not None:
            sizes[waits] = sizes.get(waits, 0) + sum(map(_size, unit.tensors()))
        if waits == "disk":
            for module in unit.modules:
                _map_to_disk(module, folder)
        for module in unit.calls:
            add_hook_to_module(module, UnitHook(placement.units[unit.name], waits is not None))
    for place, size in sizes.items():
        print_log(
            f"{size / GIB:.2f} GiB of weights do not fit and wait on the {place}: they are copied "
            f"for every pass, which is slow",
            logger="current",
            level=logging.WARNING,
        )


def _map_to_disk(module: nn.Module, folder: str | Path | None) -> None:
    """Replaces the memory of the parameters below ``module`` by mapped files."""
    for parameter in module.parameters():
        if parameter.numel():
            parameter.data = _mapped(parameter.data, folder)


def _mapped(tensor: Tensor, folder: str | Path | None) -> Tensor:
    if is_traceable_wrapper_subclass(tensor):
        names, context = tensor.__tensor_flatten__()
        inner = {name: _mapped(getattr(tensor, name), folder) for name in names}
        return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    # Unnamed as soon as it is mapped: a killed process leaves nothing behind.
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        disk = torch.from_file(file.name, True, tensor.numel(), dtype=tensor.dtype)
    return disk.view(tensor.shape).copy_(tensor)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

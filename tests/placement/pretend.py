"""Cards that are not there: real numbers on the CPU, tensors that say they are elsewhere.

An operation on tensors of two devices fails as it does on cards, so that a forgotten ``.to`` is
found on a machine without any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
_MOVES = (aten._to_copy.default, aten.copy_.default)


class Pretended(Tensor):
    """A tensor of a card that is not there."""

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device) -> Pretended:
        made = Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), dtype=real.dtype, device=device,
            storage_offset=real.storage_offset(),
        )  # fmt: skip
        made.held = real
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.held}, {self.device})"

    # These ask the card's own library for its current device before they are dispatched.

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        return Pretended(self.held.contiguous(memory_format=memory_format), self.device)

    def __getitem__(self, index: Any) -> Tensor:
        others = {t.device for t in tree_leaves(index) if isinstance(t, Tensor)}
        if others - {self.device}:
            raise RuntimeError(f"index on {others} of a tensor on {self.device}")
        plain = tree_map_only(Pretended, lambda t: t.held, index)
        return Pretended(self.held[plain], self.device)

    def __setitem__(self, index: Any, value: Any) -> None:
        plain = tree_map_only(Pretended, lambda t: t.held, (index, value))
        self.held[plain[0]] = plain[1]

    def __and__(self, other: Any) -> Tensor:
        return torch.bitwise_and(self, other)

    def __or__(self, other: Any) -> Tensor:
        return torch.bitwise_or(self, other)

    def __invert__(self) -> Tensor:
        return torch.bitwise_not(self)

    def __int__(self) -> int:
        return int(self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    def item(self) -> Any:
        return self.held.item()

    def tolist(self) -> list:
        return self.held.tolist()

    def cpu(self, *_: Any) -> Tensor:
        return self.held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on the real numbers; the result is where its inputs are."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    # A number ([] on the CPU) goes with any device.
    devices = {t.device for t in given if t.dim() or t.device.type != "cpu"}
    wanted = kwargs.get("device")
    if func not in _MOVES and func is not aten.index.Tensor and len(devices) > 1:
        raise RuntimeError(f"{func}: tensors on {sorted(map(str, devices))}")
    if wanted is None and devices:
        wanted = given[0].device if func in _MOVES else next(iter(devices))
    kwargs = {k: torch.device("cpu") if k == "device" else v for k, v in kwargs.items()}
    plain, named = tree_map_only(Pretended, lambda t: t.held, (args, kwargs))
    with torch.no_grad():
        found = func(*plain, **named)
    if wanted is None or torch.device(wanted).type == "cpu":
        return found
    first = given[0] if given else None
    if isinstance(first, Pretended) and found is first.held:
        return first  # in place
    return tree_map_only(Tensor, lambda t: Pretended(t, torch.device(wanted)), found)


class _MakeThere(TorchDispatchMode):
    """New tensors of a pretended device, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and torch.device(device).type != "cpu":
            return compute(func, args, kwargs)
        return func(*args, **kwargs)


class _TensorThere(TorchFunctionMode):
    """``torch.tensor`` fills memory of its device itself, without being dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and (device := kwargs.pop("device", None)) is not None:
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextlib.contextmanager
def pretended_cards() -> Iterator[None]:
    """Tensors may be made on and moved to ``xla:0``, ``xla:1`` ... here; nothing trains."""
    with torch.no_grad(), _MakeThere(), _TensorThere():
        yield

"""Following the memory of operations: which storages live, what they are, and the peak.

Works on fake tensors (shapes without data) and on real ones alike. A storage counts from the
operation that makes it until nothing refers to it any more, as under torch's caching allocator,
in multiples of its 512 bytes. What a kernel takes for itself while it runs is not seen.

Following storages by weak references is the idea of ``torch.distributed._tools.mem_tracker``.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
_GRANULE = 512  # bytes; torch's CUDA allocator rounds blocks up to it
FROZEN, TRAINED, GRADIENTS = "frozen weights", "trained weights", "gradients"
COPIES, LOGITS, INPUTS = "rounded copies of trained weights", "vocabulary logits", "inputs"
STATIC = (FROZEN, TRAINED, GRADIENTS)
_BY_MASK = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


@dataclass(frozen=True)
class Moment:
    """What lives at one moment, in bytes by kind."""

    held: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.held.values())

    @property
    def passing(self) -> int:
        """All but weights and gradients."""
        return sum(size for kind, size in self.held.items() if kind not in STATIC)


class StorageTracker(TorchDispatchMode):
    """Counts live storages by kind and keeps the fullest moment of each part of a step.

    Args:
        vocabulary: rows of the embedding, by which logits are told; None where it does not matter.

    Attributes:
        peaks: the fullest moment of each part, in the order of the parts.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()
        self.peaks: dict[str, Moment] = {}
        self._vocabulary = vocabulary
        self._part = "start"
        self._live: dict[int, tuple[weakref.ref, int, str]] = {}
        self._by_kind: Counter[str] = Counter()
        self._total = 0
        self._highest = 0

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Counts ``tensors`` as ``kind``, also those that were counted as something else."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            known = self._live.get(id(storage))
            if known is None:
                self._add(storage, kind)
            elif known[2] != kind:
                self._live[id(storage)] = (known[0], known[1], kind)
                self._by_kind[known[2]] -= known[1]
                self._by_kind[kind] += known[1]

    def mark(self, part: str) -> None:
        """What follows belongs to ``part``; its peak includes what lives already."""
        self._part, self._highest = part, 0
        self._note()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in _BY_MASK:
            args = (args[0], _without_masks(args[1]), *args[2:])
        if func is aten.masked_scatter_backward.default:
            # The number of values depends on data; at most as many as the result has room for.
            result = args[0].new_empty(args[2])
        else:
            result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._live:
                    self._add(storage, self._kind(func, args, tensor))
        return result

    def _kind(self, func: Any, args: tuple, result: Tensor) -> str:
        if func is aten._to_copy.default:
            source = self._live.get(id(args[0].untyped_storage()))
            if source is not None and source[2] == TRAINED:
                return COPIES
        if self._vocabulary is not None and result.ndim and result.shape[-1] == self._vocabulary:
            return LOGITS
        return self._part

    def _add(self, storage: Any, kind: str) -> None:
        size = -(-storage.nbytes() // _GRANULE) * _GRANULE
        key = id(storage)

        def gone(_: object) -> None:
            entry = self._live.pop(key, None)
            if entry is not None:
                self._total -= entry[1]
                self._by_kind[entry[2]] -= entry[1]

        self._live[key] = (weakref.ref(storage, gone), size, kind)
        self._total += size
        self._by_kind[kind] += size
        if self._total > self._highest:
            self._note()

    def _note(self) -> None:
        self._highest = self._total
        before = self.peaks.get(self._part)
        if before is None or before.total < self._total:
            held = {kind: size for kind, size in self._by_kind.items() if size}
            self.peaks[self._part] = Moment(held)


def _without_masks(indices: list) -> list:
    """Masks as positions: fake tensors cannot say how many values a mask takes, real ones can."""
    positions: list = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            positions += index.nonzero().unbind(1)
        else:
            positions.append(index)
    return positions


# What autocast computes in float32 on CUDA and not on the CPU, of what the models call.
# Source: torch's documentation, Automatic Mixed Precision, "CUDA Ops that can autocast to float32".
_FLOAT32_ON_CUDA = {
    *(F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.group_norm, F.log_softmax),
    *(torch.pow, Tensor.pow, torch.sum, Tensor.sum, torch.exp, Tensor.exp, torch.rsqrt),
    *(F.binary_cross_entropy_with_logits, F.cross_entropy, F.normalize, torch.norm, Tensor.norm),
}


class CudaAutocast(TorchFunctionMode):
    """Lets autocast on (fake) CPU tensors choose dtypes as on CUDA.

    Fake CUDA tensors would need a build of torch with CUDA for their backward pass.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _raised, (args, kwargs))
        return func(*args, **kwargs)


def _raised(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


@contextlib.contextmanager
def following_gradients(tracker: StorageTracker, parameters: Iterable[Tensor]) -> Iterator[None]:
    """Counts gradients as such from the moment they are whole."""

    def is_whole(parameter: Tensor) -> None:
        tracker.hold([parameter.grad], GRADIENTS)

    hooks = [p.register_post_accumulate_grad_hook(is_whole) for p in parameters if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def tensors_of(batch: Any) -> list[Tensor]:
    """All tensors of nested lists and dicts."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]

"""Accounting of parameters by part: the table at start, and the identity of the frozen weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from projects.sa2va.columns import columns
from projects.sa2va.weights.parts import PARTS, part_of

from .quantization import Original


def _numel(parameter: Tensor) -> int:
    # Under ZeRO-3 the tensor itself is empty; DeepSpeed keeps the real count.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def parameter_table(model: nn.Module) -> str:
    """Formats part, total, trainable, dtype and MiB of all parameters, a line a part."""
    rows: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        row = rows.setdefault(part_of(name), {"total": 0, "train": 0, "dtypes": set(), "bytes": 0})
        count = _numel(parameter)
        original = getattr(model.get_submodule(name.rpartition(".")[0]), "original", None)
        if isinstance(original, Original) and name.endswith(".weight"):
            count = math.prod(original.shape)  # two values a byte
        row["total"] += count
        row["train"] += count if parameter.requires_grad else 0
        row["dtypes"].add(str(parameter.dtype).removeprefix("torch."))
        row["bytes"] += _numel(parameter) * parameter.element_size()
    order = [part for part, _ in PARTS] + ["other"]
    lines = [("part", "total", "trainable", "dtype", "MiB")]
    for part in sorted(rows, key=order.index):
        row = rows[part]
        lines.append(
            (
                part,
                f"{row['total']:,}",
                f"{row['train']:,}",
                "+".join(sorted(row["dtypes"])),
                f"{row['bytes'] / 2**20:,.1f}",
            )
        )
    totals = [sum(row[key] for row in rows.values()) for key in ("total", "train", "bytes")]
    lines.append(("all", f"{totals[0]:,}", f"{totals[1]:,}", "", f"{totals[2] / 2**20:,.1f}"))
    return "\n".join(columns(lines, right=range(1, 5)))


def sample(tensor: Tensor) -> Tensor:
    """At most 64 values of ``tensor``, evenly spread, float32 on the CPU."""
    flat = tensor.detach().flatten()
    picked = flat[:: max(1, flat.numel() // 64)][:64]
    # bfloat16, so that a base loaded as float32 and as bfloat16 is the same base.
    return picked.to(torch.bfloat16).float().cpu()


def fingerprint(named: Iterable[tuple[str, Tensor | Original]]) -> dict[str, str]:
    """Hashes 64 values of every tensor, by part: which weights these are, in seconds at 8B."""
    hashes: dict[str, hashlib._Hash] = {}
    for name, tensor in named:
        if isinstance(tensor, Tensor) and tensor.is_meta:
            continue  # a model without data (planning) is no weights
        digest = hashes.setdefault(part_of(name), hashlib.sha256())
        digest.update(str(tuple(tensor.shape)).encode())
        values = tensor.sample if isinstance(tensor, Original) else sample(tensor)
        digest.update(values.numpy().tobytes())
    return {part: digest.hexdigest()[:16] for part, digest in hashes.items()}


def frozen_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor | Original]]:
    """Yields the named frozen parameters, in the order of the model.

    Of a quantized weight it yields what the weight was: the base is the same in 4 bits.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            owner, _, own = name.rpartition(".")
            original = getattr(model.get_submodule(owner), "original", None)
            is_quantized = own == "weight" and isinstance(original, Original)
            yield name, original if is_quantized else parameter

"""Frozen weights of the language model in 4 bits (QLoRA's NF4), by bitsandbytes.

Source: Dettmers et al., 2023 (QLoRA): 4-bit NormalFloat in blocks of 64 values, the blocks'
constants quantized once more, arithmetic in bfloat16. LoRA, token rows, projectors and SAM2 are as
without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from projects.sa2va.errors import ConfigError, suggest
from projects.sa2va.versions import check_versions

METHODS = ("nf4",)


@dataclass(frozen=True)
class Original:
    """What identifies a weight that has been quantized.

    Attributes:
        shape: its shape.
        sample: some of its values; see ``parameters.sample``.
    """

    shape: tuple[int, ...]
    sample: Tensor


def check_method(method: str | None) -> None:
    """Raises ConfigError unless ``method`` is None or known, SetupError without bitsandbytes."""
    if method is None:
        return
    if method not in METHODS:
        raise ConfigError(
            found=f"model.mllm.quantization={method!r}" + suggest(str(method), METHODS),
            expected="None, or " + " or ".join(METHODS),
            fix="correct model.mllm.quantization",
        )
    check_versions(also=["bitsandbytes"])


def quantize_linears(module: nn.Module, compute_dtype: torch.dtype) -> int:
    """Replaces every linear layer below ``module`` by a 4-bit one; returns their number.

    One layer at a time, on the card if there is one, so that the whole is never held twice. The
    embedding and the head are not below a decoder's layers and stay as they are.

    Args:
        module: the decoder layers.
        compute_dtype: dtype of the arithmetic.

    Raises:
        ConfigError: a layer whose size is no multiple of the block.
    """
    import bitsandbytes as bnb

    from .parameters import sample

    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [name for name, child in module.named_modules() if type(child) is nn.Linear]
    for name in names:
        linear = module.get_submodule(name)
        if linear.weight.numel() % 64:
            raise ConfigError(
                found=f"model.mllm.quantization='nf4' and {name} of {tuple(linear.weight.shape)}",
                expected="layers whose number of values is a multiple of 64, a block of NF4",
                fix="set model.mllm.quantization=None",
            )
        small = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=compute_dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        small.weight = bnb.nn.Params4bit(
            linear.weight.data.to(compute_dtype),
            requires_grad=False,
            compress_statistics=True,
            quant_type="nf4",
            module=small,
        )
        small.bias = linear.bias
        small.original = Original(tuple(linear.weight.shape), sample(linear.weight))
        module.set_submodule(name, small.to(device))
    return len(names)

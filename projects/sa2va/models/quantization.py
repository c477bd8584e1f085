"""Linear layers with frozen weights in 4 bits (NF4, by bitsandbytes) or 8 (int8, by torchao).

Sources: Dettmers et al., 2023 (QLoRA): 4-bit NormalFloat in blocks of 64 values, the blocks'
constants quantized once more. Dettmers et al., 2022 (LLM.int8()), of which torchao's weight-only
int8 is the simplest case: one scale for a row, the largest value of the row at 127.5. Arithmetic is
in bfloat16. In training only NF4, of the language model: LoRA, token rows, projectors and SAM2 are
as without it. The rest is for prediction (placement/precision.py).
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


def quantize_linears(
    module: nn.Module,
    compute_dtype: torch.dtype,
    device: torch.device | str | None = None,
    key: str = "model.mllm.quantization='nf4'",
    fix: str = "set model.mllm.quantization=None",
) -> int:
    """Replaces every linear layer below ``module`` by a 4-bit one; returns their number.

    One layer at a time, on the card if there is one, so that the whole is never held twice. The
    embedding and the head are not below a decoder's layers and stay as they are.

    Args:
        module: the decoder layers.
        compute_dtype: dtype of the arithmetic.
        device: where they are quantized, and stay; None: the card, if there is one.
        key: what asks for it, in the error.
        fix: how it is taken back, in the error.

    Raises:
        ConfigError: a layer whose size is no multiple of the block.
    """
    import bitsandbytes as bnb

    from .parameters import sample

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [name for name, child in module.named_modules() if type(child) is nn.Linear]
    for name in names:
        linear = module.get_submodule(name)
        if linear.weight.numel() % 64:
            raise ConfigError(
                found=f"{key} and {name} of {tuple(linear.weight.shape)}",
                expected="layers whose number of values is a multiple of 64, a block of NF4",
                fix=fix,
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


def set_compute_dtype(module: nn.Module, dtype: torch.dtype) -> int:
    """Sets the dtype of the arithmetic of 4-bit layers below ``module``; returns their number."""
    import bitsandbytes as bnb

    layers = [m for m in module.modules() if isinstance(m, bnb.nn.Linear4bit)]
    for layer in layers:
        layer.compute_dtype = dtype
    return len(layers)


def quantize_int8(linear: nn.Linear, compute_dtype: torch.dtype) -> None:
    """Puts the weight of ``linear`` into int8 with a float32 scale a row, in place.

    For prediction only. No compiled operator of torchao is needed: the layer multiplies by the
    integers in the dtype of its input, then by the scales.

    Args:
        linear: with a weight of any floating-point dtype.
        compute_dtype: dtype of the arithmetic, and of the bias.
    """
    from torchao.quantization import Int8Tensor, PerRow

    # From float32: torchao would round the scales of bfloat16 weights to bfloat16.
    exact = Int8Tensor.from_hp(linear.weight.data.float(), granularity=PerRow())
    weight = Int8Tensor(
        exact.qdata, exact.scale, exact.block_size, compute_dtype, zero_point=exact.zero_point
    )
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        linear.bias.data = linear.bias.data.to(compute_dtype)

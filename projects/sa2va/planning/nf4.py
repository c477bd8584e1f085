"""What a 4-bit linear layer of bitsandbytes holds and computes, as far as memory goes.

bitsandbytes' own layers need data. Source of the sizes: Dettmers et al., 2023 (QLoRA) and
bitsandbytes' ``Linear4bit`` with ``compress_statistics``: two values a byte, a constant for each
64 values in 8 bits, and for each 256 of those one in float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.sa2va.models import part_of

_BLOCK, _NESTED = 64, 256


class _Product(torch.autograd.Function):
    """x W^T with W unpacked for the product alone, in the forward and in the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, packed: Tensor, bias: Tensor | None, shape: tuple[int, int]):
        ctx.shape = shape
        return F.linear(x, x.new_empty(shape), bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient @ gradient.new_empty(ctx.shape), None, None, None


class PackedLinear(nn.Module):
    """Stands for ``bitsandbytes.nn.Linear4bit``: its buffers and its temporaries, no values.

    Args:
        linear: the layer that it stands for, of any dtype, frozen.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        device = linear.weight.device
        self.shape = tuple(linear.weight.shape)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        blocks = math.ceil(linear.weight.numel() / _BLOCK)
        self.dtype = linear.weight.dtype
        packed = torch.empty(linear.weight.numel() // 2, 1, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("constants", torch.empty(blocks, dtype=torch.uint8, device=device))
        nested = torch.empty(math.ceil(blocks / _NESTED), device=device)
        self.register_buffer("nested_constants", nested)
        self.register_buffer("codes", torch.empty(16 + 256, device=device))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x.to(self.dtype), self.weight, self.bias, self.shape)


def stand_in_for_linears(model: nn.Module) -> None:
    """Replaces the language model's frozen linear layers; those of LoRA train and stay.

    Args:
        model: the joint model; its embedding and head stay, as they do under bitsandbytes.
    """
    for name, child in list(model.named_modules()):
        frozen = type(child) is nn.Linear and not child.weight.requires_grad
        if frozen and part_of(f"{name}.weight") == "MLLM language model":
            model.set_submodule(name, PackedLinear(child))

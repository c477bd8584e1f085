"""Which attention the language model computes with."""

from __future__ import annotations

import torch
from mmengine.logging import print_log

from projects.sa2va.errors import ConfigError, suggest

IMPLEMENTATIONS = ("auto", "sdpa", "eager", "flash_attention_2")
_HALF = (torch.float16, torch.bfloat16)
_AMPERE = (8, 0)  # compute capability that flash-attn 2 needs


def choose_attention(name: str, dtype: torch.dtype) -> str:
    """The attention backend of transformers for ``model.mllm.attn_implementation``.

    ``auto`` is flash-attn 2 where it can run, else torch's ``scaled_dot_product_attention``; with a
    card, which of them is said in the log. Padded batches go through transformers' unpadding.

    Args:
        name: one of :data:`IMPLEMENTATIONS`.
        dtype: dtype of the weights.

    Returns:
        ``sdpa``, ``eager`` or ``flash_attention_2``.

    Raises:
        ConfigError: an unknown name; flash-attn asked for where it cannot run.
    """
    if name not in IMPLEMENTATIONS:
        raise ConfigError(
            found=f"model.mllm.attn_implementation={name!r}" + suggest(str(name), IMPLEMENTATIONS),
            expected="one of " + ", ".join(IMPLEMENTATIONS),
            fix="correct model.mllm.attn_implementation",
        )
    if name in ("sdpa", "eager"):
        return name
    hindrance = _hindrance(dtype)
    if name == "flash_attention_2" and hindrance is not None:
        # transformers would go to the hub for a kernel where the package is missing.
        raise ConfigError(
            found=f"model.mllm.attn_implementation='flash_attention_2' and {hindrance}",
            expected="flash-attn 2.3.3 or newer, a card of compute capability 8.0 or more, and "
            "model.mllm.dtype bfloat16 or float16",
            fix="pip install flash-attn --no-build-isolation, or leave "
            "model.mllm.attn_implementation='auto'",
        )
    chosen = "sdpa" if hindrance is not None else "flash_attention_2"
    reason = f" ({hindrance})" if hindrance is not None else ""
    if torch.cuda.is_available():
        print_log(f"Attention of the language model: {chosen}{reason}", logger="current")
    return chosen


def _hindrance(dtype: torch.dtype) -> str | None:
    """Why flash-attn 2 cannot run here, None where it can."""
    from transformers.utils import is_flash_attn_2_available

    if not torch.cuda.is_available():
        return "no CUDA"
    if torch.cuda.get_device_capability() < _AMPERE:
        return "a card older than compute capability 8.0"
    if dtype not in _HALF:
        return f"weights in {str(dtype).removeprefix('torch.')}"
    return None if is_flash_attn_2_available() else "no package flash-attn"

"""Activation checkpointing of the language model, by transformers.

Source: Chen et al., 2016 (Training Deep Nets with Sublinear Memory Cost): of each decoder layer the
forward pass keeps the input alone, and the backward pass computes the layer again from it.
"""

from __future__ import annotations

from typing import Literal

import torch
from mmengine.logging import print_log
from torch import nn

from projects.sa2va.errors import ConfigError

Where = bool | Literal["cpu"]


def check_where(where: Where) -> None:
    """Raises ConfigError unless ``where`` is True, False or ``cpu``."""
    if where not in (True, False, "cpu"):
        raise ConfigError(
            found=f"model.mllm.gradient_checkpointing={where!r}",
            expected="True, False, or 'cpu' (the layers' inputs wait in host memory)",
            fix="correct model.mllm.gradient_checkpointing",
        )


def checkpoint_layers(language_model: nn.Module, where: Where) -> None:
    """Lets every decoder layer compute its activations again in the backward pass.

    Args:
        language_model: a transformers model.
        where: where the layers' inputs, [B, L, D] each, wait for the backward pass: True on their
            device, ``cpu`` in pinned host memory (without CUDA they are in host memory anyway);
            False changes nothing.
    """
    if not where:
        return
    offload = where == "cpu" and torch.cuda.is_available()
    if where == "cpu" and not offload:
        print_log(
            "model.mllm.gradient_checkpointing='cpu' is as True without CUDA", logger="current"
        )
    language_model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}, offload=offload
    )

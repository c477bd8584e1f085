"""The parts of a model that can predict in a precision of their own: what belongs to each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from projects.sa2va.errors import ConfigError

# The words of --precision, and what messages call them.
PART_NAMES = {"llm": "language model", "vit": "vision encoder", "sam2": "SAM2"}


@dataclass(frozen=True)
class PredictionPart:
    """Modules of one part.

    Attributes:
        modules: all of it; no weight is below two of them.
        layers: those below ``modules`` that hold most of its weights, in running order; linear
            layers below them may be quantized.
        trained: those below ``modules`` that are float32 as a whole because they train, also
            where single weights in them do not.
    """

    modules: tuple[nn.Module, ...]
    layers: tuple[nn.Module, ...]
    trained: tuple[nn.Module, ...] = ()


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 arithmetic without TF32, which torch takes for convolutions on a card by itself."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def check_finite(part: str, values: Tensor) -> None:
    """Refuses what float16 cannot hold, before it becomes a mask.

    Args:
        part: key of :data:`PART_NAMES`.
        values: what the part computed.

    Raises:
        ConfigError: infinite values, or none at all (NaN).
    """
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise overflow(part, f"{wrong:,} of {values.numel():,} values that it computed")


def overflow(part: str, what: str) -> ConfigError:
    """The error of a part that float16 cannot hold; ``what`` of it is not finite."""
    return ConfigError(
        found=f"{PART_NAMES[part]} in fp16: {what} are not finite",
        expected="values within 65,504, the largest of float16",
        fix=f"--precision {part}=bf16 (or {part}=fp32), which hold values up to 3e38",
    )

"""A training that diverged ends at once, with its last good checkpoint intact."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from projects.sa2va.errors import DivergedError, listing
from projects.sa2va.models import part_of

_FIX = (
    "lower optim_wrapper.optimizer.lr, or that of a part by optim_wrapper.paramwise_cfg.lr_mult, "
    "and begin anew, from the weights of the last checkpoint by load_from or from the start"
)


def check_losses(losses: Mapping[str, Tensor], where: str) -> None:
    """Raises DivergedError where a loss is not finite.

    Args:
        losses: what the training step gave, float scalars by name.
        where: which step it is (:func:`name_step`).
    """
    values = {name: float(value.detach()) for name, value in losses.items()}
    wrong = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise DivergedError(
            found=f"{listing(wrong)} in {where}",
            expected="finite losses; the last checkpoint is intact",
            fix=_FIX,
        )


@contextlib.contextmanager
def gradients_watched(model: nn.Module, where: str) -> Iterator[None]:
    """Around a training step: names the parts whose gradients are not finite.

    torch refuses to clip by a norm that is not finite (``error_if_nonfinite``), and the step that
    would have made all weights NaN is not taken.

    Args:
        model: the model without its wrapper.
        where: which step it is (:func:`name_step`).

    Raises:
        DivergedError: gradients that are not finite.
    """
    try:
        yield
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        parts = Counter(
            part_of(name)
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
        )
        said = listing(f"{part} ({count} tensors)" for part, count in parts.items())
        raise DivergedError(
            found=f"gradients that are not finite in {where}: {said or 'their norm overflows'}",
            expected="finite gradients; the step was not taken, the last checkpoint is intact",
            fix=_FIX,
        ) from error


def check_weights(trained: Mapping[str, Tensor]) -> None:
    """Refuses to save weights that are lost: without ``clip_grad`` any gradient makes a step.

    Args:
        trained: what a checkpoint would hold, by the model's own names.

    Raises:
        DivergedError: weights that are not finite.
    """
    wrong = Counter(part_of(n) for n, tensor in trained.items() if not tensor.isfinite().all())
    if wrong:
        said = listing(f"{part} ({count} tensors)" for part, count in wrong.items())
        raise DivergedError(
            found=f"weights that are not finite, about to be saved: {said}",
            expected="finite weights; the checkpoint before is intact",
            fix=f"set optim_wrapper.clip_grad=dict(max_norm=1.0), {_FIX}",
        )


def name_step(iteration: int, meta: Sequence[Mapping[str, Any]]) -> str:
    """``iteration 8 (frames a, b)``; ``iteration`` counts from 0, ``meta`` is the batch's."""
    frames = listing([sample.get("frame") for sample in meta], 8)
    return f"iteration {iteration + 1} (frames {frames})"

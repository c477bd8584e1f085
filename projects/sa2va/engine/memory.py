"""GPU memory: a cap on what a process may take, and the peak of each part of a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, LOG_PROCESSORS
from mmengine.runner import LogProcessor

from projects.sa2va.errors import ConfigError

from .bare import bare_model

GIB = 2**30
# The parts of a step, in its order. Sa2VAModel.loss marks the first four.
STEP_PARTS = ("vision", "language", "sam2", "masks", "backward", "optimiser")


def limit_memory(budget_gib: float | None) -> None:
    """Lets this process take ``budget_gib`` of its card and no more.

    The cap holds for torch's allocator: what CUDA itself takes on a card (about half a GiB) comes
    on top. Without CUDA there is nothing to cap, which is said.

    Raises:
        ConfigError: the card has less.
    """
    if budget_gib is None:
        return
    if not torch.cuda.is_available():
        print_log(f"memory_budget_gib={budget_gib}: ignored without CUDA", logger="current")
        return
    device = torch.cuda.current_device()
    total = torch.cuda.get_device_properties(device).total_memory
    if budget_gib * GIB > total:
        raise ConfigError(
            found=f"memory_budget_gib={budget_gib} on a card with {total / GIB:.1f} GiB",
            expected="at most what the card has",
            fix="memory_budget_gib=None for all of the card, or a smaller number",
        )
    torch.cuda.set_per_process_memory_fraction(budget_gib * GIB / total, device)
    print_log(
        f"memory_budget_gib={budget_gib}: torch takes no more of the {total / GIB:.1f} GiB",
        logger="current",
    )


class MemoryRecorder:
    """Peak of allocated memory between marks.

    Only the allocator's own counters are read and reset, on the host: the card is never waited for.

    Args:
        cuda: ``torch.cuda``, or what stands for it in a test.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._peak: Callable[[], int] = cuda.max_memory_allocated
        self._peak_reserved: Callable[[], int] = cuda.max_memory_reserved
        self._reset: Callable[[], None] = cuda.reset_peak_memory_stats
        self.part: str | None = None
        self._reserved = 0
        self._peaks: dict[str | None, int] = {}

    def mark(self, part: str | None) -> None:
        """What follows belongs to ``part``; None is outside a step.

        The peak of a part includes what was held when it began.
        """
        self._peaks[self.part] = max(self._peak(), self._peaks.get(self.part, 0))
        self._reserved = max(self._peak_reserved(), self._reserved)
        self._reset()
        self.part = part

    def take(self) -> dict[str | None, int]:
        """The highest peak of each part, in bytes, since the last call."""
        self.mark(self.part)
        peaks, self._peaks = self._peaks, {}
        return peaks

    def take_reserved(self) -> int:
        """The most that the allocator held of the card, in bytes; :meth:`take` comes first."""
        reserved, self._reserved = self._reserved, 0
        return reserved

    def highest(self) -> int:
        """The highest peak since the last :meth:`take`, in bytes."""
        return max([self._peak(), *self._peaks.values()])


@HOOKS.register_module()
class MemoryHook(Hook):
    """Records the memory of the parts of a training step; does nothing without CUDA.

    Args:
        enabled: None where there is CUDA.
    """

    priority = "HIGH"  # ends a step before the logger asks for its peaks

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = torch.cuda.is_available() if enabled is None else enabled
        self.recorder = MemoryRecorder() if self.enabled else None
        self.batch: dict[str, Any] | None = None

    def before_train(self, runner: Any) -> None:
        """Lets the model and the optimiser wrapper say where their parts begin."""
        if self.recorder is None:
            return
        mark = self.recorder.mark
        bare_model(runner.model).mark = mark
        step = runner.optim_wrapper.step

        def marked_step(*args: Any, **kwargs: Any) -> Any:
            mark("optimiser")
            return step(*args, **kwargs)

        runner.optim_wrapper.step = marked_step

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Notes the batch, for the message when it does not fit."""
        self.batch = data_batch

    before_val_iter = before_test_iter = before_train_iter

    def after_train_iter(self, runner: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Ends the last part of the step."""
        if self.recorder is not None:
            self.recorder.mark(None)

    def peaks(self) -> dict[str, float]:
        """Peaks since the last call in GiB, the highest of all processes; all call it together.

        Returns:
            One entry for each of :data:`STEP_PARTS`, ``reserved`` (what the allocator held, free
            pieces included: this is what must fit) and ``highest``.
        """
        if self.recorder is None:
            return {}
        taken, reserved = self.recorder.take(), self.recorder.take_reserved()
        values = [*(taken.get(part, 0) for part in STEP_PARTS), reserved, max(taken.values())]
        gathered = torch.tensor(values, dtype=torch.int64)
        all_reduce(gathered, "max")
        names = (*STEP_PARTS, "reserved", "highest")
        return {name: n / GIB for name, n in zip(names, gathered.tolist(), strict=True)}


def memory_hook(runner: Any) -> MemoryHook | None:
    """The runner's MemoryHook, None where it has none."""
    hooks = getattr(runner, "_hooks", [])
    return next((hook for hook in hooks if isinstance(hook, MemoryHook)), None)


@LOG_PROCESSORS.register_module()
class Sa2VALogProcessor(LogProcessor):
    """mmengine's log line, with the memory of the parts of a step where it was recorded."""

    def get_log_after_iter(self, runner: Any, batch_idx: int, mode: str) -> tuple[dict, str]:
        """Adds ``memory/<part>`` in GiB to what is logged, and ``GiB: vision 1.2, ...``."""
        hook = memory_hook(runner) if mode == "train" else None
        peaks = hook.peaks() if hook is not None else {}
        self._highest = peaks.pop("highest", 0.0)
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        if peaks:
            tag.update({f"memory/{part}": round(gib, 3) for part, gib in peaks.items()})
            line += "  GiB: " + ", ".join(f"{part} {gib:.2f}" for part, gib in peaks.items())
        return tag, line

    def _get_max_memory(self, runner: Any) -> int:
        # mmengine reads the allocator's peak, which begins anew with each part.
        return max(super()._get_max_memory(runner), int(self._highest * 1024))

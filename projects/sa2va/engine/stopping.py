"""A run that is asked to end (SIGTERM, or Slurm's SIGUSR1) saves what it has learnt first."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader

from projects.sa2va.errors import ConfigError

EXIT_STATUS = 143  # 128 + SIGTERM, what a shell reports of a process that SIGTERM ended
VALIDATION_DUE = "validation_due"


class StoppedBySignal(SystemExit):
    """Training ended early, in order, because a signal asked for it. Its code is 143."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


class ValidationStopped(Exception):
    """A validation was left because a signal asked the run to end; the train loop catches it."""


@HOOKS.register_module()
class StopOnSignal(Hook):
    """Ends training after an optimiser step with a checkpoint, when a signal asks for it.

    The handler only sets a flag. The processes agree on it after each optimiser step, as a signal
    need not reach all of them, and before each batch of a validation, which is left: a resumed run
    does it again. The checkpoint is the interval's, so ``--resume`` goes on as if nothing had been.

    Args:
        signals: names of the signals. Slurm sends SIGTERM at ``scancel``, and what ``--signal``
            names before the time is up.
    """

    priority = "LOWEST"  # after the checkpoint of the interval, and everything that it holds

    def __init__(self, signals: Sequence[str] = ("SIGTERM", "SIGUSR1")) -> None:
        known = signal.Signals.__members__
        for name in signals:
            if name not in known or name in ("SIGKILL", "SIGSTOP"):
                raise ConfigError(
                    found=f"default_hooks.stop.signals names {name!r}",
                    expected="signals that a process can handle, such as SIGTERM and SIGUSR1",
                    fix="correct default_hooks.stop.signals",
                )
        self.signals = [known[name] for name in signals]
        self.received: int | None = None
        self.stopped = False
        self._before: dict[int, Any] = {}

    def before_train(self, runner: Any) -> None:
        """Installs the handlers; a signal before this ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning("Not in the main thread: signals will end this run at once")
            return
        self._before = {number: signal.signal(number, self._remember) for number in self.signals}

    def after_train(self, runner: Any) -> None:
        """Restores the handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def after_train_iter(self, runner: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Stops where the gradients of an optimiser step are used up."""
        done = runner.iter + 1
        if self._before and done % steps_of(runner.cfg) == 0 and self.agreed():
            self.stop(runner, done)

    def after_run(self, runner: Any) -> None:
        """Raises StoppedBySignal when the run was stopped."""
        if self.stopped:
            raise StoppedBySignal

    def check_validation(self) -> None:
        """Called before each batch of a validation, as often in every process.

        Raises:
            ValidationStopped: the run is to end.
        """
        if self._before and self.agreed():
            raise ValidationStopped

    def agreed(self) -> bool:
        """Whether any process has received a signal; all processes call it together."""
        if get_world_size() == 1:
            return self.received is not None
        flag = torch.tensor(self.received or 0)
        all_reduce(flag, "max")
        self.received = int(flag) or None
        return self.received is not None

    def stop(self, runner: Any, done: int) -> None:
        """Saves as the interval does and ends the train loop.

        Args:
            runner: the runner.
            done: finished iterations.
        """
        name = signal.Signals(self.received).name
        runner.logger.warning(f"{name} received: stopping after iteration {done}")
        due = runner.train_loop.time_to_validate(done)
        if due:
            runner.message_hub.update_info(VALIDATION_DUE, done)
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        if hook is None:
            runner.logger.warning("No checkpoint: default_hooks.checkpoint is None")
        else:
            # Saved already where the interval ends here, but without word of the validation.
            if due or getattr(hook, "saved", [])[-1:] != [done]:
                hook._save_checkpoint_with_step(runner, done, dict(epoch=runner.epoch, iter=done))
            runner.logger.warning(
                f"Saved {hook.last_ckpt}; the same command with --resume goes on from there"
            )
        runner.train_loop.stop_training = True
        self.stopped = True

    def _remember(self, number: int, frame: Any) -> None:
        self.received = number


def steps_of(cfg: Any) -> int:
    """Iterations of one optimiser step."""
    strategy, wrapper = cfg.get("strategy") or {}, cfg.get("optim_wrapper") or {}
    counts = strategy.get("gradient_accumulation_steps") or wrapper.get("accumulative_counts")
    return int(counts or 1)


def keep_workers(loader: DataLoader) -> None:
    """Lets the loader's worker processes outlive a signal that was meant for the run.

    Slurm and torchrun send a signal to all processes of the run. torch's workers die of it, and the
    run with them before it has saved anything. Call it before the loader starts them.
    """
    loader.worker_init_fn = functools.partial(_start_worker, loader.worker_init_fn)


def _start_worker(inner: Callable[[int], None] | None, worker_id: int) -> None:
    # Blocked, so that torch's handler never sees it, and taken from the queue by a thread, which
    # is told who sent it: the loader itself ends its workers by SIGTERM.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()
    if inner is not None:
        inner(worker_id)


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)

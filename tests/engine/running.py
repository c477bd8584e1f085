"""Training in this process, as tools/train.py would; and work in two processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, RUNNERS
from torch import multiprocessing

from projects.sa2va.engine.start import prepare_training
from tests.processes import free_port, rendezvous, start_method

_NUMBERS = count()


@HOOKS.register_module()
class SignalAt(Hook):
    """Sends this process a signal at the start of an iteration, or of a validation batch.

    Args:
        iteration: counted from 1.
        number: the signal.
        validation: wait for the validation that follows the iteration.
    """

    def __init__(self, iteration: int, number: str = "SIGTERM", validation: bool = False) -> None:
        self.iteration, self.validation = iteration, validation
        self.number = signal.Signals[number]

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Sends it."""
        if not self.validation and runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), self.number)

    def before_val(self, runner: Any) -> None:
        """Sends it."""
        if self.validation and runner.iter == self.iteration:
            os.kill(os.getpid(), self.number)


def build(config: Path, work_dir: Path, resume: bool = False, **options: Any) -> Any:
    """The runner of a training; ``options`` are overrides with ``__`` for dots."""
    cfg = prepare_training(
        str(config),
        work_dir=str(work_dir),
        resume="auto" if resume else None,
        cfg_options={key.replace("__", "."): value for key, value in options.items()},
    )
    # mmengine's logs and message hubs are found by this name, which else is made of the second.
    cfg.experiment_name = f"run{next(_NUMBERS)}"
    return RUNNERS.build(cfg)


def in_two_processes(work: Callable[..., None], *arguments: Any) -> None:
    """Runs ``work(rank, *arguments)`` as two processes that may form a group, and waits."""
    multiprocessing.start_processes(
        _one_of_two, (free_port(), work, arguments), nprocs=2, start_method=start_method()
    )


def _one_of_two(rank: int, port: int, work: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= rendezvous(rank, 2, port)
    work(rank, *arguments)


def checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of such a run."""
    return torch.load(path, weights_only=True)

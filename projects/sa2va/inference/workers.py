"""Data-parallel prediction: a process with a model of its own on every card.

Batches go to the processes in turn and come back in order. The processes are spawned: they inherit
no CUDA context.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.multiprocessing

from ..errors import SetupError, UserError
from .inputs import Source
from .pipeline import Pipeline, Task, batches
from .results import InferenceResult

_AHEAD = 3  # batches that wait for each process
_LOOK_EVERY = 2.0  # seconds between looks at whether the processes are alive


class Workers:
    """Several processes that predict; used as :class:`~.pipeline.Pipeline`.

    Args:
        build: makes a process's pipeline of its number; can be pickled.
        count: number of processes.
        batch_size: images of a forward pass.

    Raises:
        UserError: what building a model raised in a process.
        SetupError: a process died.
    """

    def __init__(self, build: Callable[[int], Pipeline], count: int, batch_size: int) -> None:
        self.batch_size = batch_size
        context = torch.multiprocessing.get_context("spawn")
        self._results = context.Queue()
        self._jobs = [context.Queue() for _ in range(count)]
        self._processes = [
            context.Process(target=_work, args=(build, n, jobs, self._results), daemon=True)
            for n, jobs in enumerate(self._jobs)
        ]
        self._arrived: dict[int, list[InferenceResult]] = {}
        self._dropped: set[int] = set()
        self._next = 0
        with _main_left_out(), _ctrl_c_left_out():
            for process in self._processes:
                process.start()
        try:
            for _ in self._processes:
                self._receive()  # each says that its model is there
        except BaseException:
            self.close()
            raise

    def run(self, sources: Iterable[Source], task: Task) -> Iterator[InferenceResult]:
        """Results in the order of ``sources``, which are consumed as they are needed."""
        waiting: deque[int] = deque()
        try:
            for chunk in batches(sources, self.batch_size):
                while len(waiting) >= _AHEAD * len(self._jobs):
                    yield from self._wait_for(waiting.popleft())
                self._jobs[self._next % len(self._jobs)].put((self._next, chunk, task))
                waiting.append(self._next)
                self._next += 1
            while waiting:
                yield from self._wait_for(waiting.popleft())
        finally:
            self._dropped.update(waiting)  # whoever took the results has gone

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def _wait_for(self, number: int) -> list[InferenceResult]:
        while number not in self._arrived:
            self._receive()
        return self._arrived.pop(number)

    def _receive(self) -> None:
        while True:
            try:
                number, results = self._results.get(timeout=_LOOK_EVERY)
                break
            except queue.Empty:
                self._check_alive()
        if isinstance(results, BaseException):
            raise results
        if number in self._dropped:
            self._dropped.remove(number)
        elif number is not None:
            self._arrived[number] = results

    def _check_alive(self) -> None:
        dead = [n for n, process in enumerate(self._processes) if not process.is_alive()]
        if dead and self._results.empty():
            raise SetupError(
                found=f"prediction process {dead[0]} died (exit code "
                f"{self._processes[dead[0]].exitcode}): killed, or out of host memory",
                expected="host memory for a model in every process while it loads",
                fix="use fewer processes (--gpus), then go on with --skip-existing",
            )


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    """Started processes do not run the user's script again.

    multiprocessing would import it in each, and a script without ``if __name__ == "__main__"``
    would start processes without end. Nothing that is sent here lives in it.
    """
    main = sys.modules["__main__"]
    held = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(held)


@contextlib.contextmanager
def _ctrl_c_left_out() -> Iterator[None]:
    """Started processes do not see Ctrl-C, which a terminal sends to all: the first ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next_job(jobs: Any) -> tuple[int, list[Source], Task] | None:
    """The next batch; None where the first process was killed and nobody waits any more."""
    while True:
        try:
            return jobs.get(timeout=_LOOK_EVERY)
        except queue.Empty:
            first = multiprocessing.parent_process()
            if first is None or not first.is_alive():
                return None


def _work(build: Callable[[int], Pipeline], number: int, jobs: Any, results: Any) -> None:
    """The life of a process."""
    try:
        pipeline = build(number)
        results.put((None, None))
        while (job := _next_job(jobs)) is not None:
            batch, sources, task = job
            results.put((batch, list(pipeline.run(sources, task))))
        results.cancel_join_thread()  # what nobody reads must not keep this process
    except UserError as error:
        results.put((None, error))
    except Exception as error:
        # Handed on whole: the first process raises it, with what it says.
        results.put((None, RuntimeError(f"prediction process {number}: {error!r}")))
        raise

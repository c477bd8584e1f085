"""Commands as processes of their own: which cards they see, and how they are stopped."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

import torch

from ..errors import SetupError
from ..locks import locked

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Launcher:
    """Starts commands and waits for them; a signal ends them in order.

    A training that is asked to end saves a checkpoint first. Children are sessions of their own, so
    that Ctrl-C in a terminal does not reach them past this.

    Attributes:
        stopped: whether a signal came.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[subprocess.Popen] = set()
        # Reentrant: the handler may interrupt the main thread while it holds it.
        self._lock = threading.RLock()

    def run(self, command: Sequence[str], log: Path, cards: Sequence[str], keep: int) -> int:
        """Runs a command to its end.

        Args:
            command: and its arguments.
            log: its output is appended there.
            cards: what it sees of the cards; empty: what this process sees.
            keep: file descriptor that it inherits (a lock that lasts as long as it does).

        Returns:
            Its exit status.
        """
        environment = {**os.environ, "PYTHON": sys.executable}
        if cards:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(cards)
        with open(log, "ab") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            with self._lock:
                if self.stopped:
                    return 128 + signal.SIGTERM
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    env=environment, start_new_session=True, pass_fds=[keep],
                )  # fmt: skip
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Asks all commands to end; no other is started."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.terminate()

    @contextmanager
    def obeying_signals(self) -> Iterator[None]:
        """While it lasts, signals that ask this process to end are passed on."""
        before = {number: signal.signal(number, self.stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def held(folder: Path) -> AbstractContextManager[int]:
    """Holds a folder against other sweeps, and against runs that a killed one left behind.

    Returns:
        See :func:`~projects.sa2va.locks.locked`, for processes that inherit the lock.

    Raises:
        SetupError: it is held already, or cannot be written to.
    """
    in_use = SetupError(
        found=f"{folder} is in use: another sweep, or a run that a killed one left behind",
        expected="one process at a time in a folder",
        fix="wait for it to end, or end it; then the same command again",
    )
    return locked(folder, "--work-dir", in_use)


def card_groups(gpus: int) -> list[tuple[str, ...]]:
    """The cards that this process sees, in groups of ``gpus``; empty without cards.

    Raises:
        SetupError: there are cards, but fewer.
    """
    count = torch.cuda.device_count()
    if not count:
        return []
    if gpus > count:
        raise SetupError(
            found=f"--gpus-per-run {gpus} with {count} card(s)",
            expected=f"at most {count}",
            fix=f"--gpus-per-run {count}",
        )
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = seen.split(",")[:count] if seen else [str(number) for number in range(count)]
    return [tuple(cards[at : at + gpus]) for at in range(0, count - gpus + 1, gpus)]

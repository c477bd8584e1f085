"""Processes that find the package imported: importing it takes longer than most of their work."""

from __future__ import annotations

import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path

import torch
from torch import multiprocessing

from tests.conftest import ROOT

# What a training imports first and last; the fork server does so once for all tests of a process.
PRELOAD = ["tests.engine.running", "monai.losses", "xtuner.tools.train"]


def start_method() -> str:
    """How such processes start. CUDA does not survive a fork: with a card they are spawned."""
    if torch.cuda.is_available():
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    return "forkserver"


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def rendezvous(rank: int, processes: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for a process of this machine."""
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
        **{"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }


def run_forked(
    tool: str, *arguments: object, cwd: Path = ROOT, processes: int = 0, timeout: float = 300
) -> tuple[int, str, str]:
    """Runs ``tools/<tool>.py`` as a process whose start is not part of what is tested.

    Args:
        tool: name of the tool.
        *arguments: of its command line.
        cwd: the folder to run it in.
        processes: so many that form a group, as torchrun starts them; 0 is one without a group.
        timeout: seconds that each may take.

    Returns:
        Highest exit status, and what was written to stdout and stderr.
    """
    context, path = multiprocessing.get_context(start_method()), ROOT / "tools" / f"{tool}.py"
    words, port = [str(argument) for argument in arguments], free_port()
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, name)) for name in ("out", "err")]
        groups = [rendezvous(rank, processes, port) for rank in range(processes)] or [{}]
        started = [
            context.Process(target=_run, args=(path, words, cwd, files, group)) for group in groups
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout)
        out, err = (Path(file).read_text() for file in files)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert None not in codes, f"{tool} runs longer than {timeout} s: {err[-3000:]}"
    return max(map(abs, codes)), out, err


def _run(
    path: Path, arguments: list[str], cwd: Path, files: list[str], environment: dict[str, str]
) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(1)
    os.chdir(cwd)
    os.environ |= environment
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")

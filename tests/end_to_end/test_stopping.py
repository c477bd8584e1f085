"""A signal to the launcher, as a scheduler sends it, reaches every process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from tests.conftest import ROOT

# Far more iterations than run before the signal, and workers that must outlive it.
LONG = (
    *("--cfg-options", "train_cfg.max_iters=4000", "train_cfg.val_interval=4000"),
    *("default_hooks.checkpoint.interval=4000", "optim_wrapper.accumulative_counts=2"),
    *("train_dataloader.num_workers=1", "train_dataloader.persistent_workers=True"),
)


def stopped(*command: object, number: signal.Signals) -> tuple[int, str]:
    """Runs a command, sends it a signal once it trains; gives its exit status and output."""
    settings = {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Iter(train) [   1/4000]" in line:
            process.send_signal(number)
    return process.wait(timeout=120), "".join(lines)


def iteration(work_dir: Path) -> int:
    """Iteration that the run was stopped at: that of its only checkpoint."""
    (path,) = work_dir.glob("iter_*.pth")
    assert (work_dir / "last_checkpoint").read_text().endswith(path.name)
    done = torch.load(path, weights_only=True)["meta"]["iter"]
    assert path.name == f"iter_{done}.pth"
    assert done % 2 == 0 and 0 < done < 4000
    return done


def test_two_processes_stop_together(experiment: Path) -> None:
    """By SIGUSR1, which torchrun passes on only when it is told to; SIGTERM takes the same way."""
    work_dir = experiment.parent / "stopped"
    status, output = stopped(
        *("bash", "tools/dist.sh", "train", experiment, 2, "--work-dir", work_dir, *LONG),
        number=signal.SIGUSR1,
    )
    assert status == 143, output[-3000:]
    done = iteration(work_dir)
    assert f"SIGUSR1 received: stopping after iteration {done}" in output
    assert f"iter_{done}.pth; the same command with --resume goes on from there" in output

"""A signal ends a run after an optimiser step, with a checkpoint that goes on exactly."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from projects.sa2va.engine import stopping
from projects.sa2va.engine.start import finish
from projects.sa2va.engine.stopping import StopOnSignal, StoppedBySignal, keep_workers
from projects.sa2va.errors import ConfigError
from tests.conftest import ROOT
from tests.tiny_experiment import write_experiment

from .running import build, checkpoint

# ----------------------------------------------------------------------------------- one process


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight iterations, two a step; a checkpoint every sixth, a validation every fourth."""
    return write_experiment(
        tmp_path_factory.mktemp("stopping"),
        frames=(8, 4, 4),
        train_cfg=dict(max_iters=8, val_interval=4),
        optim_wrapper=dict(accumulative_counts=2),
        param_scheduler=[dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=8)],
        default_hooks=dict(checkpoint=dict(interval=6)),
        model=dict(mllm=dict(lora=dict(lora_dropout=0.1)), mask_loss=dict(num_points=64)),
    )


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """Work dir of the run that nothing interrupts."""
    work_dir = config.parent / "whole"
    build(config, work_dir).train()
    return work_dir


def validations(work_dir: Path) -> list[dict]:
    """All validations that the runs of a work dir logged."""
    rows = []
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key.startswith("vessel/")}
        | {"at": row["step"]}
        for row in rows
        if "vessel/accuracy" in row
    ]


# The signal comes in iteration 3, so the step ends with 4, where a validation is due; in 5, and
# the step ends with 6, which the interval saves; and while the validation after 4 runs.
@pytest.mark.parametrize(
    ("number", "iteration", "in_validation", "stops"),
    [
        ("SIGTERM", 3, False, 4),
        ("SIGUSR1", 5, False, 6),
        ("SIGTERM", 4, True, 4),
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(
    config: Path, whole: Path, tmp_path: Path, number, iteration, in_validation, stops
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    hook = dict(type="SignalAt", iteration=iteration, number=number, validation=in_validation)
    with pytest.raises(StoppedBySignal) as caught:
        build(config, tmp_path, custom_hooks=[hook]).train()
    assert caught.value.code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before
    assert (tmp_path / "last_checkpoint").read_text().endswith(f"iter_{stops}.pth")
    assert {path.name for path in tmp_path.glob("iter_*.pth")} == {f"iter_{stops}.pth"}
    if stops < 6:
        assert not list(tmp_path.glob("best_*.pth"))

    runner = build(config, tmp_path, resume=True)
    runner.train()
    first, second = (checkpoint(folder / "iter_8.pth") for folder in (whole, tmp_path))
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    for index, state in first["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, second["optimizer"]["state"][index][key]), (index, key)
    assert first["param_schedulers"] == second["param_schedulers"]
    assert validations(tmp_path) == validations(whole)
    assert [row["at"] for row in validations(whole)] == [4, 8]
    names = [{path.name for path in run.glob("best_*.pth")} for run in (whole, tmp_path)]
    assert names[0] == names[1]


def test_without_a_signal_nothing_happens(whole: Path) -> None:
    assert {path.name for path in whole.glob("iter_*.pth")} == {"iter_6.pth", "iter_8.pth"}


def test_the_tool_ends_with_143(config: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = runpy.run_path(str(ROOT / "tools" / "train.py"))

    def stop(*args):
        raise StoppedBySignal

    monkeypatch.setitem(tool["main"].__wrapped__.__globals__, "run_xtuner", stop)
    work_dir = str(config.parent / "tool")
    monkeypatch.setattr(sys, "argv", ["train.py", str(config), "--work-dir", work_dir])
    assert tool["main"]() == 143
    with pytest.raises(SystemExit) as caught:
        finish(143)
    assert caught.value.code == 143
    finish(0)


# ------------------------------------------------------------------------------------- agreement


def runner(counts: int = 1, **cfg) -> SimpleNamespace:
    """A runner as far as the hook asks it, in the middle of a training."""
    cfg = {"optim_wrapper": {"accumulative_counts": counts}, **cfg}
    return SimpleNamespace(iter=0, cfg=cfg)


@pytest.fixture
def hook(monkeypatch) -> StopOnSignal:
    """A hook at work, which only counts its stops."""
    made = StopOnSignal()
    made._before = {signal.SIGTERM: signal.SIG_DFL}
    made.stops, made.asked = [], []
    made.stop = lambda runner, done: made.stops.append(done)
    agreed = made.agreed
    made.agreed = lambda: made.asked.append(1) or agreed()
    return made


@pytest.mark.parametrize("zero", [False, True])
def test_only_whole_steps_are_asked_about(hook: StopOnSignal, zero: bool) -> None:
    strategy = {"strategy": {"gradient_accumulation_steps": 4}} if zero else {}
    run = runner(1 if zero else 4, **strategy)
    hook._remember(signal.SIGTERM, None)
    for run.iter in range(8):
        hook.after_train_iter(run, run.iter)
    assert hook.stops == [4, 8]
    assert len(hook.asked) == 2  # no word between the processes in the iterations between


def test_a_signal_to_one_process_stops_all(hook: StopOnSignal, monkeypatch) -> None:
    def reduced(tensor, kind):
        assert kind == "max"
        tensor.fill_(max(int(tensor), int(signal.SIGUSR1)))  # another process has received it

    monkeypatch.setattr(stopping, "get_world_size", lambda: 2)
    monkeypatch.setattr(stopping, "all_reduce", reduced)
    hook.after_train_iter(runner(), 0)
    assert hook.stops == [1]
    assert hook.received == signal.SIGUSR1


def test_no_process_has_received_one(hook: StopOnSignal, monkeypatch) -> None:
    monkeypatch.setattr(stopping, "get_world_size", lambda: 2)
    monkeypatch.setattr(stopping, "all_reduce", lambda tensor, kind: None)
    hook.after_train_iter(runner(), 0)
    assert hook.stops == []


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTREM"])
def test_signals_that_cannot_be_handled(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        StopOnSignal(signals=[name])


# --------------------------------------------------------------------------------------- workers


class Slow(Dataset):
    """Numbers of the processes that read them."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        time.sleep(0.05)
        return os.getpid()


@pytest.mark.parametrize(("kept", "name"), [(True, "TERM"), (True, "USR1"), (False, "TERM")])
def test_workers_outlive_a_signal_to_all_processes(kept: bool, name: str) -> None:
    loader = DataLoader(Slow(), num_workers=1, batch_size=1)
    if kept:
        keep_workers(loader)
    batches = iter(loader)
    worker = int(next(batches))
    assert worker != os.getpid()
    # Not from this process, whose SIGTERM the worker obeys.
    subprocess.run(["kill", f"-{name}", str(worker)], check=True)
    if not kept:
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            list(batches)
        return
    assert {int(pid) for pid in batches} == {worker}
    batches = iter(loader)
    worker = int(next(batches))
    os.kill(worker, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while not (ended := os.waitpid(worker, os.WNOHANG)[0]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended == worker

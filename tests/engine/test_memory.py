"""The cap on memory and the recorder, over an allocator that only counts."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import LogProcessor

from projects.sa2va.config import load_config
from projects.sa2va.engine import memory
from projects.sa2va.engine.memory import (
    GIB,
    STEP_PARTS,
    MemoryHook,
    MemoryRecorder,
    Sa2VALogProcessor,
    limit_memory,
)
from projects.sa2va.errors import ConfigError
from projects.sa2va.models import Sa2VAModel
from tests.conftest import ROOT

from .running import build

CONFIG = ROOT / "projects/sa2va/configs/sa2va_demo.py"


class Allocator:
    """torch.cuda's counters. Anything else that is asked of it, such as to wait, is an error."""

    def __init__(self) -> None:
        self.held = self.peak = 0
        self.reserved = self.peak_reserved = 0

    def take(self, n: int) -> None:
        self.held += n
        self.peak = max(self.peak, self.held)
        # Memory is taken from the card in pieces of 64 bytes, and given back only on request.
        self.reserved = max(self.reserved, -(-self.held // 64) * 64)
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def max_memory_allocated(self, device: object = None) -> int:
        return self.peak

    def max_memory_reserved(self, device: object = None) -> int:
        return self.peak_reserved

    def empty_cache(self) -> None:
        self.reserved = -(-self.held // 64) * 64

    def reset_peak_memory_stats(self, device: object = None) -> None:
        self.peak, self.peak_reserved = self.held, self.reserved


def test_each_part_has_the_peak_of_its_own_time() -> None:
    cuda = Allocator()
    cuda.take(100)  # weights
    recorder = MemoryRecorder(cuda)
    recorder.mark("vision")
    cuda.take(70), cuda.take(-60)
    recorder.mark("language")
    cuda.take(30)
    recorder.mark("backward")
    cuda.take(-40)
    recorder.mark(None)
    cuda.take(-90)
    assert recorder.highest() == 170
    assert recorder.take() == {None: 100, "vision": 170, "language": 140, "backward": 140}
    recorder.mark("vision")
    assert recorder.take() == {None: 10, "vision": 10}


def test_what_the_allocator_holds_beside_what_is_in_use() -> None:
    cuda = Allocator()
    recorder = MemoryRecorder(cuda)
    cuda.take(100)
    recorder.mark("vision")
    cuda.take(-90)
    recorder.mark(None)
    held = []
    for _ in range(3):
        recorder.take()
        held.append(recorder.take_reserved())
        cuda.empty_cache()
    assert held == [128, 128, 64]  # the second time began with what was still held


def test_the_highest_of_several_steps_counts() -> None:
    cuda = Allocator()
    recorder = MemoryRecorder(cuda)
    for n in (5, 9, 2):
        recorder.mark("masks")
        cuda.take(n), cuda.take(-n)
        recorder.mark(None)
    assert recorder.take()["masks"] == 9


# ------------------------------------------------------------------------------ the log of a run


def test_parts_of_a_training_step_are_logged(experiment: Path, tmp_path: Path, monkeypatch) -> None:
    cuda = Allocator()
    for name in ("max_memory_allocated", "max_memory_reserved", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    runner = build(
        experiment,
        tmp_path / "run",
        default_hooks__memory=dict(type="MemoryHook", enabled=True),
        train_cfg__max_iters=2,
        optim_wrapper__accumulative_counts=2,
    )
    recorder = next(hook for hook in runner.hooks if isinstance(hook, MemoryHook)).recorder
    marks, mark = [], recorder.mark

    def counted(part):
        marks.append(part)
        mark(part)
        size = GIB * (1 + STEP_PARTS.index(part)) if part in STEP_PARTS else 0
        cuda.take(size), cuda.take(-size)

    recorder.mark = counted
    runner.train()
    # Two iterations are one step of the optimiser; each is logged, which asks for the open part.
    first = [*STEP_PARTS[:5], None, None]
    assert marks == [*first, *STEP_PARTS, None, None]
    path = next((tmp_path / "run").glob("*/vis_data/scalars.json"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert [row["memory/optimiser"] for row in rows] == [0.0, 6.0]
    for row in rows:
        assert [row[f"memory/{part}"] for part in STEP_PARTS[:5]] == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert row["memory/reserved"] >= 5.0
    log = next((tmp_path / "run").glob("*/*.log")).read_text()
    assert "GiB: vision 1.00, language 2.00, sam2 3.00, masks 4.00, backward 5.00" in log


def test_without_cuda_the_hook_does_nothing() -> None:
    hook = MemoryHook(enabled=False)
    hook.before_train(None)  # touches no model and no optimiser
    hook.after_train_iter(None, 0)
    assert hook.recorder is None
    assert hook.peaks() == {}


def test_the_highest_peak_is_the_logs_memory(monkeypatch) -> None:
    """mmengine reads a counter that begins anew with each part."""
    monkeypatch.setattr(LogProcessor, "_get_max_memory", lambda self, runner: 300)
    processor = Sa2VALogProcessor()
    for highest, expected in ((2.0, 2048), (0.1, 300)):
        processor._highest = highest
        assert processor._get_max_memory(None) == expected


# -------------------------------------------------------------------------------------- the cap


@pytest.fixture
def card(monkeypatch):
    """A card of 80 GiB, the second of its machine; gives what was capped."""
    capped, said = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    properties = SimpleNamespace(total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *args: capped.append(args)
    )
    monkeypatch.setattr(memory, "print_log", lambda text, **kwargs: said.append(text))
    return SimpleNamespace(capped=capped, said=said)


def test_a_larger_card_is_capped(card) -> None:
    limit_memory(24)
    assert card.capped == [(0.3, 1)]
    assert len(card.said) == 1 and "80.0 GiB" in card.said[0]


def test_no_budget_is_no_cap(card) -> None:
    limit_memory(None)
    assert card.capped == card.said == []


def test_more_than_the_card_has(card) -> None:
    with pytest.raises(ConfigError, match=r"memory_budget_gib=81 on a card with 80\.0 GiB"):
        limit_memory(81)
    assert card.capped == []


def test_without_cuda_it_is_ignored_and_said_once(card, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    limit_memory(24)
    assert card.capped == []
    assert card.said == ["memory_budget_gib=24: ignored without CUDA"]


def test_the_cap_comes_before_the_model(experiment: Path, tmp_path: Path, monkeypatch) -> None:
    def seen(budget):
        raise KeyboardInterrupt(budget)  # what comes after is not run

    monkeypatch.setattr("projects.sa2va.engine.runner.limit_memory", seen)

    @functools.wraps(Sa2VAModel.__init__)  # the check of the config reads its signature
    def refuse(*args, **kwargs):
        pytest.fail("a model first")

    monkeypatch.setattr(Sa2VAModel, "__init__", refuse)
    with pytest.raises(KeyboardInterrupt, match=r"^3\.5$"):
        build(experiment, tmp_path / "run", memory_budget_gib=3.5)


@pytest.mark.parametrize("budget", [0, -1, True, float("inf"), "24"])
def test_budgets_that_are_none(budget: object) -> None:
    with pytest.raises(ConfigError, match="memory_budget_gib"):
        load_config(CONFIG, {"memory_budget_gib": budget})
    assert load_config(CONFIG, {"memory_budget_gib": 23.5}).memory_budget_gib == 23.5

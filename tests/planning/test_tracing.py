"""Following storages: on real tensors, and the same on tensors without data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS

from projects.sa2va.config import load_config
from projects.sa2va.planning.model import build_without_data
from projects.sa2va.planning.plan import _fake
from projects.sa2va.planning.steps import Frames, follow_prediction, follow_training
from projects.sa2va.planning.tracing import GRADIENTS, StorageTracker
from tests.conftest import ROOT

DEMO = ROOT / "projects/sa2va/configs/sa2va_demo.py"
FRAMES = Frames(batch=2, side=64, phrases=2)


@given(st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_the_peak_is_the_largest_sum_of_what_lives(steps):
    """Tensors come, and some go: against a count by hand, in multiples of 512 bytes."""
    tracker, kept, live, highest = StorageTracker(), [], 0, 0
    with tracker:
        tracker.mark("work")
        for count, stays in steps:
            made = torch.ones(count)
            made.view(-1)[:1].add_(1)  # the same storage
            size = -(-4 * count // 512) * 512
            highest = max(highest, live + size)
            if stays:
                kept.append(made)
                live += size
            del made
    assert tracker.peaks["work"].total == highest


def test_gradients_and_weights_are_counted_as_such():
    cfg = load_config(DEMO)
    model = MODELS.build(cfg.model)
    moments = follow_training(model, _real, FRAMES, as_on_cuda=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    whole = sum(-(-4 * p.numel() // 512) * 512 for p in trained)
    assert 0 < moments["backward"].held[GRADIENTS] <= whole


@pytest.mark.parametrize("follow", [follow_training, follow_prediction])
def test_without_data_the_peaks_are_those_of_real_tensors(follow):
    cfg = load_config(DEMO)
    real = follow(MODELS.build(cfg.model), _real, FRAMES, as_on_cuda=False)
    model, make = _fake(build_without_data(cfg.model), None)
    planned = follow(model, make, FRAMES, as_on_cuda=False)
    assert planned.keys() == real.keys()
    for part, moment in real.items():
        # Kernels on the CPU are composed of others here and there: 3 %.
        assert planned[part].total == pytest.approx(moment.total, rel=0.03), part


@pytest.mark.parametrize("follow", [follow_training, follow_prediction])
def test_an_answer_that_names_its_phrase_is_planned_with_one(follow):
    cfg = load_config(DEMO, {"processor.answer": "Sure, {phrase}: [SEG]."})
    model, make = _fake(build_without_data(cfg.model), None)
    assert follow(model, make, FRAMES, as_on_cuda=False)


def _real(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)

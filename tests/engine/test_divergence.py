"""A training whose numbers are no longer finite."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from projects.sa2va.engine.divergence import (
    check_losses,
    check_weights,
    gradients_watched,
    name_step,
)
from projects.sa2va.engine.optim import PartwiseConstructor
from projects.sa2va.errors import DivergedError

WHERE = name_step(7, [{"frame": "P1_F2"}, {"frame": "P3_F4"}])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seg_projector = nn.Linear(2, 2)
        self.network = nn.Linear(2, 1)


def step(model: nn.Module, factor: float, **clip: object) -> None:
    wrapper = PartwiseConstructor(
        ConfigDict(
            type="OptimWrapper",
            optimizer=dict(type="SGD", lr=0.1),
            clip_grad=dict(max_norm=1.0, **clip),
        )
    )(model)
    hidden = model.seg_projector(torch.ones(3, 2))
    loss = (model.network(hidden.detach()) ** 2).sum() + (hidden * factor).sum()
    with gradients_watched(model, WHERE):
        wrapper.update_params(loss)


def test_finite_losses_pass_and_others_name_themselves_and_their_frames() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of scalars taken from what has a gradient
        check_losses({"loss": torch.tensor(1.0, requires_grad=True)}, WHERE)
    for value in (math.nan, math.inf):
        losses = {"loss_dice": torch.tensor(1.0), "loss_mask": torch.tensor(value)}
        with pytest.raises(DivergedError, match=r"loss_mask=.*iteration 8.*P1_F2, P3_F4") as error:
            check_losses(losses, WHERE)
        assert "loss_dice" not in error.value.found and "optimizer.lr" in error.value.fix


def test_gradients_that_are_not_finite_name_their_part_and_no_step_is_taken() -> None:
    model = Two()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(
        DivergedError, match=r"iteration 8.*\[SEG\] projector \(2 tensors\)"
    ) as error:
        step(model, math.inf)
    assert "network" not in error.value.found
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    model.zero_grad()
    step(model, 1.0)
    assert not all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), gradients_watched(Two(), WHERE):
        raise RuntimeError("out of memory")


def test_the_config_may_say_otherwise() -> None:
    model = Two()
    step(model, math.inf, error_if_nonfinite=False)
    assert not bool(model.seg_projector.weight.isfinite().all())


def test_weights_that_are_lost_are_not_saved() -> None:
    model = Two()
    check_weights(dict(model.named_parameters()))
    step(model, math.inf, error_if_nonfinite=False)
    with pytest.raises(
        DivergedError, match=r"about to be saved: \[SEG\] projector \(2 ten"
    ) as error:
        check_weights(dict(model.named_parameters()))
    assert "network" not in error.value.found and "clip_grad" in error.value.fix

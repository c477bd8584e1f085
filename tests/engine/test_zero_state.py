"""ZeRO's shards are put together, and cut again, as torch's optimiser without ZeRO has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from projects.sa2va.engine.zero_state import gather_masters, gather_optimizer, scatter

from .running import in_two_processes

STAGES = {
    "1": {"stage": 1},
    "2": {"stage": 2},
    "2 offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "3": {"stage": 3},
    "3 offload": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    },
}


def build() -> tuple[nn.Module, torch.optim.Optimizer, list[list[nn.Parameter]]]:
    """Three layers whose sizes do not divide by two processes, the middle one frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3), nn.Linear(3, 7))
    model[1].requires_grad_(False)
    biases = [model[0].bias, model[2].bias]
    groups = [[model[0].weight, model[2].weight], biases]
    settings = [{"params": groups[0], "weight_decay": 0.1}, {"params": biases, "lr": 3e-3}]
    return model, torch.optim.AdamW(settings, lr=1e-2), [list(group) for group in groups]


def steps(model: nn.Module, backward: Any, step: Any, first: int, last: int) -> None:
    for number in range(first, last):
        batch = torch.randn(4, 5, generator=torch.Generator().manual_seed(number))
        backward(model(batch).square().mean())
        step()


def plain(last: int) -> dict[str, Any]:
    """Weights and state dict of AdamW after ``last`` steps without ZeRO."""
    model, optimizer, _ = build()

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    steps(model, torch.Tensor.backward, step, 0, last)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {"weights": weights, "optimizer": optimizer.state_dict()}


def zero(stage: str, first: int, last: int, start: dict | None) -> dict[str, Any]:
    """The same under ZeRO, from ``start`` where there is one."""
    import deepspeed

    model, optimizer, groups = build()
    names = {p: name for name, p in model.named_parameters()}
    if start is not None:
        with torch.no_grad():
            for p, name in names.items():
                p.copy_(start["weights"].get(name, p))
    settings = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": STAGES[stage],
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    if start is not None:
        masters = [[start["weights"][names[p]] for p in group] for group in groups]
        scatter(wrapped, groups, masters, start["optimizer"])
    steps(engine, engine.backward, engine.step, first, last)
    trained = {name: p for p, name in names.items() if p.requires_grad}
    return {"weights": gather_masters(trained), "optimizer": gather_optimizer(wrapped, groups)}


def worker(rank: int, folder: str) -> None:
    """One of two processes."""
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    done = {}
    for stage in STAGES:
        done[stage] = {
            "fresh": zero(stage, 0, 2, None),
            "resumed": zero(stage, 2, 4, plain(2)),
        }
    done["2"]["unstepped"] = zero("2", 0, 0, None)
    torch.save(done, Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What both processes gathered."""
    folder = tmp_path_factory.mktemp("zero")
    in_two_processes(worker, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(("run", "last"), [("fresh", 2), ("resumed", 4)])
@pytest.mark.parametrize("stage", STAGES)
def test_gathered_and_put_back_it_is_plain_adamw(ranks, stage, run, last) -> None:
    found, expected = ranks[0][stage][run], plain(last)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, msg=name)
    ours, theirs = found["optimizer"], expected["optimizer"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, state in theirs["state"].items():
        assert ours["state"][index].keys() == state.keys()
        for key, value in state.items():
            torch.testing.assert_close(ours["state"][index][key], value, msg=f"{index} {key}")
    for own, other in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert {k: own[k] for k in ("params", "lr", "weight_decay", "betas")} == {
            k: other[k] for k in ("params", "lr", "weight_decay", "betas")
        }


def test_the_other_process_keeps_nothing(ranks) -> None:
    for runs in ranks[1].values():
        assert runs["fresh"]["weights"] == {}
        assert runs["fresh"]["optimizer"]["state"] == {}


def test_before_the_first_step_there_is_no_state(ranks) -> None:
    assert ranks[0]["2"]["unstepped"]["optimizer"]["state"] == {}

"""Averaged weights: what they are, who uses them, and that a resumed run has the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, RUNNERS
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from projects.sa2va.checkpoints import (
    build_model_from_checkpoint,
    choose_weights,
    load_trained,
    read_checkpoint,
)
from projects.sa2va.checkpoints.inspection import describe, open_weights
from projects.sa2va.config import load_config
from projects.sa2va.engine.bare import bare_model
from projects.sa2va.engine.ema import WeightEMAHook, averaged_weights, ema_settings, weight_ema
from projects.sa2va.engine.start import prepare_test, prepare_training
from projects.sa2va.errors import CheckpointError, ConfigError
from projects.sa2va.planning.holdings import averages
from tests.tiny_experiment import write_experiment

from .running import build, checkpoint

EMA = dict(type="WeightEMAHook", decay=0.7, warmup=3)
NAME = "seg_projector.0.weight"


@HOOKS.register_module()
class Watcher(Hook):
    """Keeps one weight after each iteration and at each validation."""

    priority = "VERY_HIGH"
    seen: dict[str, list[torch.Tensor]]

    def __init__(self) -> None:
        type(self).seen = {"trained": [], "validated": []}

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self._keep(runner, "trained")

    def before_val_iter(self, runner: Any, batch_idx: int, **kwargs: Any) -> None:
        if batch_idx == 0:
            self._keep(runner, "validated")

    def _keep(self, runner: Any, key: str) -> None:
        weight = bare_model(runner.model).get_parameter(NAME)
        self.seen[key].append(weight.detach().clone())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four iterations, two a step; a checkpoint and a validation every second."""
    return write_experiment(
        tmp_path_factory.mktemp("ema"),
        frames=(4, 2, 2),
        train_cfg=dict(max_iters=4, val_interval=2),
        optim_wrapper=dict(accumulative_counts=2),
        param_scheduler=[dict(type="ConstantLR", factor=1.0, by_epoch=False)],
        default_hooks=dict(checkpoint=dict(interval=2)),
        custom_hooks=[EMA, dict(type="Watcher")],
    )


@pytest.fixture(scope="module")
def run(config: Path) -> tuple[Path, dict[str, list[torch.Tensor]]]:
    """Work dir of a whole run, and what the Watcher saw."""
    work_dir = config.parent / "run"
    build(config, work_dir).train()
    return work_dir, Watcher.seen


# ------------------------------------------------------------------------------------ arithmetic


@settings(max_examples=30, deadline=None)
@given(
    decay=st.floats(0.01, 0.9999),
    warmup=st.integers(1, 20),
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12),
)
def test_the_average_is_the_sum_written_out(decay: float, warmup: int, values: list) -> None:
    hook = WeightEMAHook(decay, warmup)
    hook.shadow = {"w": torch.tensor([1.0])}
    expected = 1.0
    for step, value in enumerate(values):
        hook.update({"w": torch.tensor([value])})
        kept = min(decay, (1 + step) / (warmup + step))
        expected = kept * expected + (1 - kept) * value
    assert float(hook.shadow["w"]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert hook.steps == len(values)


def test_without_a_warm_up_it_is_torchs_own() -> None:
    model = torch.nn.Linear(3, 2)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(model)  # torch's first update copies
    hook = WeightEMAHook(0.9, warmup=1)
    hook.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        theirs.update_parameters(model)
        hook.update(dict(model.named_parameters()))
    for name, parameter in theirs.module.named_parameters():
        torch.testing.assert_close(hook.shadow[name], parameter.detach())


# ------------------------------------------------------------------------------------ a real run


def test_it_is_taken_after_each_optimiser_step(config: Path, run) -> None:
    work_dir, seen = run
    # Half of the iterations only sum gradients up; the first one starts the average.
    assert torch.equal(seen["trained"][1], seen["trained"][2])
    assert not torch.equal(seen["trained"][1], seen["trained"][3])
    fresh = MODELS.build(load_config(config).model)  # from the same seeds
    expected = fresh.get_parameter(NAME).detach().double()
    for step, weight in enumerate(seen["trained"][1::2]):
        kept = min(EMA["decay"], (1 + step) / (EMA["warmup"] + step))
        expected = kept * expected + (1 - kept) * weight.double()
    stored = checkpoint(work_dir / "iter_4.pth")
    torch.testing.assert_close(stored["averaged"][NAME].double(), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(stored["state_dict"][NAME], seen["trained"][-1])
    assert stored["averaged"].keys() == stored["state_dict"].keys()
    assert {t.dtype for t in stored["averaged"].values()} == {torch.float32}
    assert stored["meta"]["averaged"] == {"decay": 0.7, "warmup": 3, "steps": 2}


def test_validation_and_the_best_checkpoint_use_it(run) -> None:
    work_dir, seen = run
    for at, iteration in enumerate((2, 4)):
        stored = checkpoint(work_dir / f"iter_{iteration}.pth")
        assert torch.equal(seen["validated"][at], stored["averaged"][NAME])
        assert not torch.equal(seen["validated"][at], stored["state_dict"][NAME])
    best = next(work_dir.glob("best_*.pth"))
    iteration = best.stem.rsplit("_", 1)[1]
    one, two = checkpoint(best), checkpoint(work_dir / f"iter_{iteration}.pth")
    assert torch.equal(one["averaged"][NAME], two["averaged"][NAME])
    assert torch.equal(one["state_dict"][NAME], two["state_dict"][NAME])


def test_a_resumed_run_is_the_uninterrupted_one(config: Path, run, tmp_path: Path) -> None:
    shutil.copy(run[0] / "iter_2.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    build(config, tmp_path, resume=True).train()
    first, second = (checkpoint(folder / "iter_4.pth") for folder in (run[0], tmp_path))
    for key in ("state_dict", "averaged"):
        for name, tensor in first[key].items():
            assert torch.equal(tensor, second[key][name]), (key, name)
    assert first["meta"]["averaged"] == second["meta"]["averaged"]


def test_the_weights_come_back_after_an_error(run) -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, float("nan")]))
    model = SimpleNamespace(named_parameters=lambda: [("w", parameter)])
    hook = WeightEMAHook()
    hook.shadow = {"w": torch.tensor([5.0, 6.0])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("projects.sa2va.engine.ema.bare_model", lambda _: model)
        runner = SimpleNamespace(_hooks=[hook], model=model)
        assert weight_ema(runner) is hook
        with pytest.raises(KeyError), averaged_weights(runner):
            assert parameter.tolist() == [5.0, 6.0]
            raise KeyError
    assert parameter[0] == 1.0 and parameter.isnan()[1]
    assert hook.shadow["w"].tolist() == [5.0, 6.0]


# -------------------------------------------------------------------------------- what reads them


@pytest.mark.parametrize("which", ["averaged", "raw"])
def test_a_test_takes_the_average_unless_told(config: Path, run, tmp_path: Path, which) -> None:
    path = run[0] / "iter_4.pth"
    cfg = prepare_test(
        str(config),
        checkpoint=str(path),
        work_dir=str(tmp_path),
        weights=None if which == "averaged" else which,
    )
    cfg.experiment_name = f"ema_{which}"
    runner = RUNNERS.build(cfg)
    if which == "averaged":
        runner.load_or_resume()
    else:
        runner.test()
    key = "averaged" if which == "averaged" else "state_dict"
    weight = bare_model(runner.model).get_parameter(NAME)
    assert torch.equal(weight, checkpoint(path)[key][NAME])
    for metrics in tmp_path.rglob("metrics.json"):
        assert json.loads(metrics.read_text())["checkpoint"]["weights"] == which
    assert f"{which} weights" in runner.load_report.text()
    assert runner.load_report.checkpoint()["weights"] == which


def test_a_model_from_a_checkpoint_and_a_page_about_it(run) -> None:
    path = run[0] / "iter_4.pth"
    model, report = build_model_from_checkpoint(path)
    stored = checkpoint(path)
    assert torch.equal(model.get_parameter(NAME), stored["averaged"][NAME])
    assert report.weights == "averaged"
    whole = read_checkpoint(path)
    assert load_trained(model, whole, path, "raw").weights == "raw"
    assert torch.equal(model.get_parameter(NAME), stored["state_dict"][NAME])
    page = describe(open_weights(path))
    assert "weights: averaged ones above" in page
    assert "decay 0.7, warmup 3, steps 2" in page
    rows = {row.part: row.checksum for row in report.rows}
    assert rows["[SEG] projector"] in page
    assert rows["[SEG] projector"] not in describe(open_weights(path, "raw"))


def test_a_new_run_starts_from_the_average(config: Path, run, tmp_path: Path) -> None:
    path = run[0] / "iter_4.pth"
    runner = build(config, tmp_path, load_from=str(path), custom_hooks=None)
    runner.load_or_resume()
    weight = bare_model(runner.model).get_parameter(NAME)
    assert torch.equal(weight, checkpoint(path)["averaged"][NAME])


def test_a_checkpoint_without_an_average(run) -> None:
    stored = {k: v for k, v in checkpoint(run[0] / "iter_4.pth").items() if k != "averaged"}
    assert choose_weights(stored, "old.pth") == (stored["state_dict"], "raw")
    with pytest.raises(CheckpointError, match=r"old\.pth holds no averaged weights"):
        choose_weights(stored, "old.pth", "averaged")
    with pytest.raises(ConfigError, match="did you mean 'averaged'"):
        choose_weights(stored, "old.pth", "average")


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "hooks", [[], [{**EMA, "decay": 0.8}], [{**EMA, "warmup": 4}]], ids=["none", "decay", "warmup"]
)
def test_a_resumed_run_averages_as_before(config: Path, run, tmp_path: Path, hooks) -> None:
    with pytest.raises(CheckpointError, match="WeightEMAHook"):
        prepare_training(
            str(config),
            work_dir=str(tmp_path),
            resume=str(run[0] / "iter_2.pth"),
            cfg_options={"custom_hooks": hooks},
        )


def test_deepspeed_is_refused(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="together with --deepspeed") as caught:
        prepare_training(
            str(config), work_dir=str(tmp_path), deepspeed="deepspeed_zero2", distributed=True
        )
    assert "STRATEGY=fsdp2" in caught.value.fix


@pytest.mark.parametrize(
    "wrong", [{"decay": 1.0}, {"decay": 0}, {"decay": "0.9"}, {"warmup": 0}, {"warmup": 2.5}]
)
def test_values_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ema_settings({"custom_hooks": [{"type": "WeightEMAHook", **wrong}]})


def test_one_average_only() -> None:
    with pytest.raises(ConfigError, match="2 WeightEMAHooks"):
        ema_settings({"custom_hooks": [EMA, EMA]})
    assert ema_settings({"custom_hooks": None}) is None
    assert ema_settings({"custom_hooks": [{"type": "WeightEMAHook"}]}) == {
        "decay": 0.999,
        "warmup": 10,
    }


def test_the_plan_knows_it() -> None:
    assert averages({"custom_hooks": [EMA]})
    assert averages({"default_hooks": {"timer": None, "average": EMA}})
    assert not averages({"custom_hooks": [{"type": "MemoryHook"}]})
    assert not averages({})

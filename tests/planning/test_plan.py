"""A plan as a whole: strategies, optimisers, cards, verdict, and the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.true_size import train_whole_tables
from projects.sa2va.config import load_config
from projects.sa2va.config_rules import check_rules
from projects.sa2va.engine.advice import advise
from projects.sa2va.engine.dry_run import _recipe
from projects.sa2va.errors import ConfigError
from projects.sa2va.planning import Card, Request, make_plan
from projects.sa2va.planning.host import host_items
from projects.sa2va.planning.optimisers import state_bytes, step_bytes
from projects.sa2va.planning.phases import training_section
from projects.sa2va.planning.report import as_text
from projects.sa2va.planning.steps import Frames
from projects.sa2va.planning.strategies import Strategy, resolve_strategy, strategy_names
from tests.conftest import ROOT

DEMO = ROOT / "projects/sa2va/configs/sa2va_demo.py"


@pytest.fixture(scope="module")
def cfg():
    return load_config(DEMO, {"train_dataloader.batch_size": 1})


@pytest.fixture(scope="module")
def plan(cfg):
    return make_plan(cfg, Request(frame_size=64))


def test_the_items_sum_to_the_peak(plan):
    for section in plan.sections:
        assert section.peak == sum(item.size for item in section.items)
        assert section.peak == max(section.parts.values())
    assert {section.key for section in plan.sections} == {"training", "validation", "inference"}
    trained = sum(counts[1] for counts in plan.parameters.values())
    assert plan.section("training").group("trained weights") == 4 * trained
    assert plan.section("training").group("optimiser") == 8 * trained
    assert "fits:" in as_text(plan)


def test_a_whole_table_that_trains_is_named(cfg, plan):
    values = 1_087_235_072
    whole = replace(plan, held=replace(plan.held, tables=values, rows=35_840))
    biggest = advise(cfg, whole, Request()).biggest
    assert biggest.what.startswith("embed_tokens and lm_head are copied and trained whole: 16.2")
    assert "train_token_rows" in biggest.override


def test_whole_tables_are_counted_as_the_reference_trains_them(cfg, plan):
    whole = make_plan(cfg, Request(frame_size=64), train_whole_tables)
    rows, width = (cfg.model.mllm.config.text_config.get(k) for k in ("vocab_size", "hidden_size"))
    rows = plan.parameters["MLLM head"][0] // width if rows is None else rows
    assert whole.held.tables == 2 * rows * width
    more = whole.section("training").group("trained weights")
    assert more - plan.section("training").group("trained weights") == 4 * whole.held.tables
    assert whole.section("training").peak > plan.section("training").peak


@pytest.mark.parametrize(("strategy", "gpus"), [("none", 1), ("ddp", 2), ("fsdp2", 2)])
def test_averaged_weights_are_four_bytes_a_trained_value(cfg, plan, strategy, gpus):
    averaging = {**cfg.to_dict(), "custom_hooks": [{"type": "WeightEMAHook"}]}
    how = Strategy(strategy, gpus)
    trained = sum(counts[1] for counts in plan.parameters.values())
    expected = 4 * trained // (gpus if strategy == "fsdp2" else 1)
    for section, also in (
        (lambda c: training_section(c, plan.held, {}, Frames(), how), True),
        (lambda c: host_items(c, plan.held, how), False),
    ):
        with_it, without = section(averaging), section(cfg.to_dict())
        names = {item.name: item.size for item in with_it.items}
        size = next(size for name, size in names.items() if name.startswith("averaged weights"))
        assert size == (expected if also else 4 * trained)
        assert with_it.peak - without.peak == size


def test_zero_spreads_states(cfg, plan):
    four = make_plan(cfg, Request(gpus=4, strategy="zero2", frame_size=64))
    states = [i for i in four.section("training").items if i.name == "optimiser states"]
    alone = [i for i in plan.section("training").items if i.name == "optimiser states"]
    assert states[0].size == -(-alone[0].size // 4)
    assert any("buckets" in item.name for item in four.section("training").items)


@given(st.integers(1, 64), st.integers(0, 2**40))
def test_shares_add_up(gpus, size):
    share = Strategy("x", gpus).share(size)
    assert size <= share * gpus < size + gpus


def test_strategies_are_read(cfg):
    for name in strategy_names():
        assert resolve_strategy(cfg, name, 1 if name == "none" else 2).name == name
    offload = resolve_strategy(cfg, "zero3_offload", 2)
    assert (offload.stage, offload.offload_param, offload.buckets) == (3, True, 1)
    assert resolve_strategy(cfg, None, 2).name == "ddp"


@pytest.mark.parametrize("name, gpus", [("zero4", 2), ("none", 2), ("none", 0), (str(DEMO), 1)])
def test_what_is_no_strategy_is_an_error(cfg, name, gpus):
    with pytest.raises(ConfigError):
        resolve_strategy(cfg, name, gpus)


def test_states_are_those_of_torch():
    layer = nn.Linear(64, 32)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    real = sum(
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step"
    )
    assert state_bytes({"type": "AdamW"}, layer.parameters()) == real
    assert state_bytes({"type": "SGD"}, layer.parameters()) == 0
    assert state_bytes({"type": "AdamW8bit"}, [nn.Parameter(torch.empty(2**20))]) < 2.1 * 2**20


def test_a_fused_step_takes_nothing():
    named = [("seg_projector.0.weight", nn.Parameter(torch.empty(8, 8)))]
    assert step_bytes({"type": "AdamW"}, named, deepspeed=False) == 0
    assert step_bytes({"type": "AdamW"}, named, deepspeed=True) == 256
    assert step_bytes({"type": "AdamW", "foreach": True}, named, deepspeed=False) == 256


def test_a_card_says_what_it_leaves():
    assert Card(24).reported_gib == pytest.approx(23.68)
    assert Card(24, budget_gib=11.7).usable_gib == 11.7
    with pytest.raises(ConfigError, match="--memory-gib"):
        Card(0.2)


@pytest.mark.parametrize(
    "arguments, status",
    [
        (["--memory-gib", "24"], 0),
        (["--memory-gib", "0.6"], 1),
        (["--strategy", "zero9"], 2),
        (["--cfg-options", "model.mllm.config=None", "model.mllm.pretrained=nobody/knows-it"], 2),
    ],
)
def test_exit_status(arguments, status, plan, monkeypatch, tmp_path, no_network, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import preflight

    if status == 1:  # the others really plan, without network and weights
        monkeypatch.setattr(
            "projects.sa2va.planning.make_plan",
            lambda cfg, request: replace(plan, card=request.card),
        )
    out = tmp_path / "plan.json"
    given = [str(DEMO), "--frame-size", "64", "--json", str(out), *arguments]
    monkeypatch.setattr(sys, "argv", ["preflight.py", *given])
    if status == 2:
        with pytest.raises(SystemExit) as stopped:
            preflight.main()
        assert stopped.value.code == 2
        assert "what to do" in capsys.readouterr().err
        return
    assert preflight.main() == status
    assert json.loads(out.read_text())["fits"] is (status == 0)
    assert ("does not fit:" in capsys.readouterr().out) is (status == 1)


def test_a_loss_that_reads_skeletons_is_planned_and_tried_with_them(plan, tmp_path):
    options = {
        "train_dataloader.batch_size": 1,
        "model.mask_loss.skeleton_recall_weight": 1.0,
        "train_dataloader.dataset.skeletons": True,
    }
    cfg = load_config(DEMO, options)
    more = make_plan(cfg, Request(frame_size=64)).section("training")
    assert more.peak >= plan.section("training").peak
    tried = _recipe(cfg, Request(frame_size=64), 1, tmp_path)
    check_rules(tried, "dry_run.py")
    assert tried.train_dataloader.dataset.skeletons

"""The one order, a test run that is spread, and a test that starts itself again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.registry import RUNNERS
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from projects.sa2va.engine.start import prepare_test
from projects.sa2va.errors import ConfigError
from projects.sa2va.placement import Placement, choice, parse_precision, precision, prepare
from projects.sa2va.placement.costs import costs_of
from projects.sa2va.placement.launch import parallel_command, restart_in_parallel
from projects.sa2va.planning.section import GIB
from tests.models.test_merge import trained

CPU = Placement("cpu", devices=("cpu",))


def moves(
    monkeypatch: pytest.MonkeyPatch, precision: str, merge: bool, seen: Any
) -> list[tuple[nn.Module, Any]]:
    """What is moved, in order, and what ``seen`` makes of the model at that moment."""
    model = trained(autocast="bfloat16", mllm=dict(dtype="bfloat16"))
    found: list[tuple[nn.Module, Any]] = []
    monkeypatch.setattr(
        prepare, "move_frozen_first", lambda module, _device: found.append((module, seen(model)))
    )
    prepare.prepare_for_prediction(
        model, merge_lora=merge, precision=parse_precision(precision), placement=CPU
    )
    return found


def has_lora(model: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in model.named_parameters())


def test_a_plain_model_moves_first_and_is_merged_where_it_is(monkeypatch) -> None:
    found = moves(monkeypatch, "config", True, has_lora)
    assert [(type(module).__name__, lora) for module, lora in found] == [("Sa2VAModel", True)]


@pytest.mark.parametrize("emulated", [True, False])
def test_a_cpu_without_bfloat16_is_said_and_computes_quantized_layers_in_float32(
    emulated: bool, monkeypatch
) -> None:
    pytest.importorskip("torchao")
    said: list[str] = []
    for module in (prepare, precision):
        monkeypatch.setattr(module, "emulates", lambda dtype: emulated)
    monkeypatch.setattr(prepare, "print_log", lambda text, **more: said.append(text))
    model = trained(autocast="bfloat16", mllm=dict(dtype="bfloat16"))
    spec = parse_precision("llm=int8,vit=bf16,sam2=fp32")
    prepare.prepare_for_prediction(model, merge_lora=False, precision=spec, placement=CPU)
    assert model.part_dtypes["llm"] is (torch.float32 if emulated else torch.bfloat16)
    assert len(said) == emulated and all("--precision fp32" in text for text in said)


def test_a_baseline_is_told_what_it_can_do(monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(prepare, "emulates", lambda dtype: dtype is torch.bfloat16)
    monkeypatch.setattr(prepare, "print_log", lambda text, **more: said.append(text))
    for dtype in (torch.bfloat16, None):
        model = SimpleNamespace(prediction_parts=dict, compute_dtype=lambda part, d=dtype: d)
        prepare._warn_of_emulation(model)
    assert len(said) == 1 and "model.autocast=None" in said[0]


def test_what_is_quantized_moves_a_layer_at_a_time_and_the_rest_in_its_last_form(
    monkeypatch,
) -> None:
    pytest.importorskip("torchao")

    def is_last(model: Any) -> bool:
        layers = model.prediction_parts()["llm"].layers
        linears = [m for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)]
        return not has_lora(model) and all(
            is_traceable_wrapper_subclass(linear.weight) for linear in linears
        )

    found = moves(monkeypatch, "llm=int8", False, is_last)
    whole = [last for module, last in found if type(module).__name__ == "Sa2VAModel"]
    assert whole == [True]
    layers = [type(module).__name__ for module, _ in found[:-1]]
    assert layers and set(layers) == {"Qwen2DecoderLayer"}


def run_test(experiment: Path, out: Path, **more: Any) -> dict[str, Any]:
    """A test in this process, as tools/test.py makes it; returns metrics.json."""
    cfg = prepare_test(
        str(experiment), checkpoint=None, work_dir=str(out.parent / "w"), out=str(out), **more
    )
    cfg.experiment_name = out.name
    RUNNERS.build(cfg).test()
    return json.loads((out / "metrics.json").read_text())


def test_a_spread_test_scores_the_same(experiment: Path, tmp_path: Path) -> None:
    options = {"test_evaluator.save_probabilities": "npz", "test_evaluator.metric_set": "fast"}
    plain = run_test(experiment, tmp_path / "plain", cfg_options=options)
    assert plain["placement"]["kind"] == ("single" if torch.cuda.is_available() else "cpu")
    assert plain["precision"] == dict.fromkeys(("llm", "vit", "sam2"), "config")
    cfg = prepare_test(str(experiment), checkpoint=None, work_dir=str(tmp_path / "w"))
    costs = costs_of(cfg, parse_precision(None))
    if torch.cuda.is_available():
        pytest.skip("the plain run was on a card, whose rounding is another")
    # The head never runs and so waits first; it is not enough.
    head = next(unit.weights for unit in costs.units if unit.name == "head")
    little = (costs.single - head - 1) / GIB
    found = run_test(
        experiment,
        tmp_path / "spread",
        cfg_options=options,
        placement="sharded",
        memory_gib=little,
    )
    assert found["placement"]["kind"] == "sharded"
    assert found["placement"]["waiting"]["disk"] >= 2
    assert found["mean"] == plain["mean"]
    names = sorted(path.name for path in (tmp_path / "plain" / "probabilities").iterdir())
    assert names
    for name in names:
        one, other = (tmp_path / run / "probabilities" / name for run in ("plain", "spread"))
        assert one.read_bytes() == other.read_bytes()


def test_a_config_says_where_and_the_command_line_wins(experiment: Path, tmp_path: Path) -> None:
    options = {"test_cfg.placement": "cpu", "test_cfg.precision": "sam2=bf16"}
    arguments = dict(checkpoint=None, work_dir=str(tmp_path / "w"), cfg_options=options)
    cfg = prepare_test(str(experiment), **arguments)
    assert cfg.test_cfg.placement.kind == "cpu"
    assert cfg.test_cfg.precision == dict(llm="config", vit="config", sam2="bf16")
    cfg = prepare_test(
        str(experiment), **arguments, placement="data-parallel", gpus=1, precision="config"
    )
    assert cfg.test_cfg.placement.kind == "data-parallel"
    assert cfg.test_cfg.precision.sam2 == "config"
    with pytest.raises(ConfigError, match="did you mean 'memory_gib'"):
        prepare_test(
            str(experiment), checkpoint=None, cfg_options={"test_cfg.placement.memory_gb": 3}
        )


def test_a_process_of_a_launcher_has_its_own_card_only(
    experiment: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(choice.torch.cuda, "device_count", lambda: 0)
    arguments = dict(checkpoint=None, work_dir=str(tmp_path / "w"), distributed=True)
    for kind in ("auto", "sharded"):
        with pytest.raises(ConfigError, match=f"--placement {kind} in a process of a launcher"):
            prepare_test(str(experiment), **arguments, placement=kind)
    cfg = prepare_test(str(experiment), **arguments)
    assert (cfg.test_cfg.placement.kind, cfg.test_cfg.placement.gpus) == ("data-parallel", 2)


# ------------------------------------------------------------------------------------- starting


def test_the_launcher_gets_the_arguments_and_what_was_decided(monkeypatch) -> None:
    arguments = ["--out", "x y", "config.py", "--placement", "auto", "--gpus", "2"]
    command = parallel_command(arguments, "config.py", 2)
    assert command[0] == "bash" and Path(command[1]).is_file()
    assert command[2:5] == ["test", "config.py", "2"]
    assert command[5:] == [
        *("--out", "x y", "--placement", "auto", "--gpus", "2", "--placement", "data-parallel"),
    ]
    ran: dict[str, Any] = {}
    monkeypatch.setattr(
        os, "execvpe", lambda file, args, env: ran.update(file=file, args=args, env=env)
    )
    restart_in_parallel(arguments, "config.py", 2)
    assert ran["file"] == "bash" and ran["args"] == command
    assert ran["env"]["PYTHON"] == os.environ.get("PYTHON", sys.executable)

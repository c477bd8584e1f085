"""A full card is explained: what holds the memory, and what helps this config most."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from projects.sa2va.config import load_config
from projects.sa2va.engine import levers
from projects.sa2va.engine.levers import Batch, Held, Situation, helpful
from projects.sa2va.engine.memory import GIB, MemoryRecorder
from projects.sa2va.engine.out_of_memory import _as_typed, explain_out_of_memory, held_by_part
from projects.sa2va.engine.start import prepare_test
from projects.sa2va.errors import MemoryFullError, exit_on_user_error
from projects.sa2va.models import Sa2VAModel
from tests.conftest import ROOT

from .running import build
from .test_memory import Allocator

CONFIGS = ROOT / "projects/sa2va/configs"
CUDA_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23 GiB"
# Parts of the 8B model in bfloat16, roughly.
PARTS = {
    "LoRA": Held(int(0.6 * GIB), int(0.6 * GIB), int(1.2 * GIB), 160_000_000),
    "MLLM language model": Held(12 * GIB, 0, 0, 0),
    "MLLM head": Held(GIB, 0, 0, 0),
    "SAM2 mask decoder": Held(2**24, 2**24, 2**25, 4_000_000),
}


def full(*args, **kwargs):
    raise torch.OutOfMemoryError(CUDA_TEXT)


# ---------------------------------------------------------------------------------- whole runs


def test_a_training_step_that_does_not_fit(
    experiment: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    runner = build(experiment, tmp_path / "run", memory_budget_gib=2)
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == "MemoryHook")
    hook.recorder = MemoryRecorder(cuda := Allocator())
    cuda.take(3 * GIB)
    hook.recorder.mark("language")
    hook.before_train = lambda runner: None
    monkeypatch.setattr(Sa2VAModel, "loss", full)
    monkeypatch.setattr(levers, "_MIN_SAVING", 1)  # nothing in the tiny model is worth more
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        exit_on_user_error(runner.train)()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("MemoryFullError\n  found: the card's memory is full (training")
    assert "part: language): CUDA out of memory" in said
    assert "peak 3.00, of which activations and the like" in said
    assert "at most memory_budget_gib=2" in said
    for part in ("LoRA", "SAM2 image encoder", "MLLM language model", "all"):
        assert f"\n    {part} " in said
    assert said.count("--cfg-options") + said.count("DEEPSPEED=") == 3
    # The tiny config: two frames of a batch are most of what its peak shows.
    assert "--cfg-options train_dataloader.batch_size=1 optim_wrapper.accumulative_counts=2" in said


def test_a_test_that_does_not_fit(experiment: Path, tmp_path: Path, monkeypatch) -> None:
    from mmengine.registry import RUNNERS

    cfg = prepare_test(str(experiment), checkpoint=None, work_dir=str(tmp_path / "run"))
    cfg.experiment_name = "full"
    runner = RUNNERS.build(cfg)
    monkeypatch.setattr(Sa2VAModel, "predict", full)
    with pytest.raises(MemoryFullError) as caught:
        runner.test()
    assert "(testing" in caught.value.found
    assert "gradients" in caught.value.found
    assert "train_" not in caught.value.fix and "DEEPSPEED" not in caught.value.fix


def test_a_model_that_does_not_fit(experiment: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Sa2VAModel, "to", full)
    with pytest.raises(MemoryFullError, match="loading"):
        build(experiment, tmp_path / "run")


def test_other_errors_are_not_explained() -> None:
    with pytest.raises(RuntimeError, match="no such kernel"), explain_out_of_memory(None):
        raise RuntimeError("no such kernel")


# ----------------------------------------------------------------------------------- breakdown


class Small(torch.nn.Module):
    """One frozen and one trained weight, under the joint model's names."""

    def __init__(self) -> None:
        super().__init__()
        self.seg_projector = torch.nn.Linear(10, 10, bias=False)
        self.mllm = torch.nn.Linear(100, 1, bias=False).requires_grad_(False).bfloat16()


def test_the_breakdown_counts_bytes() -> None:
    model = Small()
    optimizer = torch.optim.AdamW([model.seg_projector.weight])
    wrapper = type("Wrapper", (), {"optimizer": optimizer})
    expected = {
        "MLLM language model": Held(200, 0, 0, 0),
        "[SEG] projector": Held(400, 400, 800, 100),
    }
    assert held_by_part(model, wrapper) == expected  # as it will be
    model.seg_projector(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    expected["[SEG] projector"].optimiser += 4  # the step's number
    assert held_by_part(model, wrapper) == expected
    assert held_by_part(model, None)["[SEG] projector"] == Held(400, 0, 0, 0)


# -------------------------------------------------------------------------------------- levers


def situation(stage: str = "training", overrides: dict | None = None, **more) -> Situation:
    cfg = load_config(CONFIGS / "sa2va_vessel_finetune.py", overrides)
    return Situation(cfg=cfg, stage=stage, **{"parts": PARTS, "batch": Batch(4, 300, 4), **more})


def overrides_of(s: Situation) -> list[str]:
    return [lever.override for lever in helpful(s)]


def test_the_best_comes_first() -> None:
    found = helpful(situation(overrides={"model.mllm.gradient_checkpointing": False}))
    assert [lever.saving for lever in found] == sorted([x.saving for x in found], reverse=True)
    names = [lever.override for lever in found]
    assert names.index("model.mllm.gradient_checkpointing=True") < names.index(
        "model.grounding.train_mask_decoder=False"
    )


IN_EFFECT = [
    ("model.mllm.gradient_checkpointing", False, True),
    ("processor.image_size", 1024, 512),
    ("train_dataloader.batch_size", 4, 1),
    ("model.mllm.lora.r", 64, 16),
    ("model.grounding.train_mask_decoder", True, False),
]


@pytest.mark.parametrize(("key", "wasteful", "frugal"), IN_EFFECT)
def test_what_is_in_effect_is_not_proposed(key: str, wasteful: object, frugal: object) -> None:
    before = overrides_of(situation(overrides={key: wasteful}))
    after = overrides_of(situation(overrides={key: frugal}))
    assert [text for text in before if text.startswith(f"{key}={frugal}")]
    assert not [text for text in after if text.startswith(f"{key}=")]


@pytest.mark.parametrize(
    ("processes", "limit", "expected"),
    [
        (1, 80, "deepspeed_zero2_offload"),
        (4, 80, "deepspeed_zero2"),
        (4, 16, "deepspeed_zero3"),
        (1, 16, "deepspeed_zero3_offload"),
    ],
)
def test_deepspeed_by_processes_and_room(processes: int, limit: int, expected: str) -> None:
    found = overrides_of(situation(world_size=processes, limit=limit * GIB))
    assert [t for t in found if t.startswith("DEEPSPEED")] == [f"DEEPSPEED={expected}"]


def test_deepspeed_that_runs_is_not_proposed_again() -> None:
    s = situation(world_size=4, limit=80 * GIB)
    s.cfg.strategy = {"config": {"zero_optimization": {"stage": 2}}}
    assert "DEEPSPEED=deepspeed_zero3" in overrides_of(s)
    s.cfg.strategy.config.zero_optimization.stage = 3
    assert not [text for text in overrides_of(s) if text.startswith("DEEPSPEED")]
    assert not [text for text in overrides_of(s) if "quantization" in text]


@pytest.mark.parametrize("kind", ["Sa2VAModel", "SegmentationBaseline"])
def test_the_average_is_a_lever_where_there_is_one(kind: str) -> None:
    hooks = {"custom_hooks": [{"type": "WeightEMAHook"}]}
    without, averaged = situation(world_size=4), situation(world_size=4, overrides=hooks)
    tested = situation("testing", overrides=hooks, parts={"LoRA": Held(GIB, 0, 0, 0)})
    for s in (without, averaged, tested):
        s.cfg.model.type = kind
    lever = next(x for x in helpful(averaged) if "WeightEMAHook" in x.override)
    assert lever.override == "remove WeightEMAHook from custom_hooks"
    assert _as_typed(lever.override) == lever.override  # no --cfg-options
    assert lever.saving == 4 * 164_000_000  # float32 of what PARTS train
    for s in (without, tested):
        assert not [text for text in overrides_of(s) if "WeightEMAHook" in text]
    # DeepSpeed refuses the hook, so it is no way out beside it.
    assert not [text for text in overrides_of(averaged) if "DEEPSPEED" in text]


def test_prediction_has_levers_of_its_own() -> None:
    overrides = {"test_dataloader.batch_size": 4, "val_dataloader.batch_size": 2}
    tested = situation(stage="testing", overrides=overrides, batch=Batch(4, 300, 20))
    tested.cfg.pop("train_cfg")
    found = overrides_of(tested)
    assert {"test_dataloader.batch_size=1", "model.max_phrases_per_pass=4"} <= set(found)
    assert not [text for text in found if "lora" in text or "train_" in text]
    validated = situation(stage="validation", overrides=overrides, batch=Batch(2, 300, 1))
    found = overrides_of(validated)
    assert "val_dataloader.batch_size=1" in found
    assert not [text for text in found if "phrases" in text or "checkpointing" in text]


def test_fewer_frames_keep_the_step_where_the_rules_allow() -> None:
    def batch_lever(max_iters: int) -> str:
        s = situation(
            overrides={"train_dataloader.batch_size": 5, "train_cfg.max_iters": max_iters}
        )
        return next(t for t in overrides_of(s) if "batch_size" in t)

    assert batch_lever(4000) == "train_dataloader.batch_size=1 optim_wrapper.accumulative_counts=20"
    assert batch_lever(4004) == "train_dataloader.batch_size=1"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.py")), ids=lambda path: path.stem)
def test_every_override_is_a_right_config(path: Path) -> None:
    """Whatever is proposed for a shipped config loads."""
    wasteful = {"train_dataloader.batch_size": 4, "test_dataloader.batch_size": 4}
    cfg = load_config(path, wasteful)
    proposed = set()
    for stage in ("training", "validation", "testing"):
        s = Situation(cfg=cfg, stage=stage, parts=PARTS, batch=Batch(4, 300, 20))
        proposed |= {lever.override for lever in helpful(s)}
    assert proposed
    for override in proposed:
        if override.startswith("DEEPSPEED="):
            assert (ROOT / f"configs/deepspeed/{override[10:]}.json").is_file()
            continue
        if override == "remove WeightEMAHook from custom_hooks":
            hooks = [hook for hook in cfg.custom_hooks if hook["type"] != "WeightEMAHook"]
            load_config(path, wasteful | {"custom_hooks": hooks})
            continue
        pairs = (pair.split("=", 1) for pair in override.split())
        load_config(path, wasteful | {key: _value(text) for key, text in pairs})


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text

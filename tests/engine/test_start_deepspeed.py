"""``--deepspeed``: what it takes over from the config, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from projects.sa2va.engine import resume as resuming
from projects.sa2va.engine.start import prepare_training
from projects.sa2va.errors import CheckpointError, ConfigError, SetupError

from .conftest import resume, save

pytestmark = pytest.mark.usefixtures("no_model")


def with_deepspeed(experiment: Path, run: Path, name: str = "deepspeed_zero2", **more):
    settings = {"distributed": True, **more}
    return prepare_training(str(experiment), work_dir=str(run), deepspeed=name, **settings)


def test_deepspeed_config_takes_over_what_the_config_says(experiment, tmp_path):
    options = {
        "optim_wrapper.accumulative_counts": 3,
        "train_cfg.max_iters": 6,
        "train_cfg.val_interval": 3,
        "default_hooks.checkpoint.interval": 3,
        "optim_wrapper.clip_grad.max_norm": 0.5,
        "optim_wrapper.paramwise_cfg": {"lr_mult": {"LoRA": 0.5}},
    }
    cfg = with_deepspeed(experiment, tmp_path / "run", cfg_options=options)
    assert cfg.runner_type == "Sa2VAFlexibleRunner"
    assert cfg.strategy.config.zero_optimization.stage == 2
    assert cfg.strategy.gradient_accumulation_steps == 3
    assert cfg.strategy.gradient_clipping == 0.5
    assert cfg.strategy.train_micro_batch_size_per_gpu == cfg.train_dataloader.batch_size == 2
    assert cfg.optim_wrapper.paramwise_cfg == {"lr_mult": {"LoRA": 0.5}}
    assert cfg.optim_wrapper.constructor == "PartwiseConstructor"


@pytest.mark.parametrize(("autocast", "enabled"), [("bfloat16", True), (None, False)])
def test_bf16_follows_the_model(experiment, tmp_path, autocast, enabled):
    options = {"model.autocast": autocast}
    cfg = with_deepspeed(experiment, tmp_path / "run", cfg_options=options)
    assert cfg.strategy.config.bf16.enabled is enabled


def test_bf16_that_is_set_stays(experiment, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}))
    cfg = with_deepspeed(experiment, tmp_path / "run", str(path))
    assert cfg.strategy.config.bf16.enabled is True
    assert cfg.strategy.config.zero_optimization.stage == 1


def test_deepspeed_without_a_launcher(experiment, tmp_path):
    with pytest.raises(SetupError, match="without a launcher") as caught:
        with_deepspeed(experiment, tmp_path / "run", distributed=False)
    assert "DEEPSPEED=deepspeed_zero2 bash tools/dist.sh train" in caught.value.fix


def test_unknown_deepspeed_name(experiment, tmp_path):
    with pytest.raises(ConfigError) as caught:
        with_deepspeed(experiment, tmp_path / "run", "deepspeed_zero_2")
    assert "did you mean 'deepspeed_zero2'" in caught.value.expected
    assert "deepspeed_zero3_offload" in caught.value.expected


@pytest.mark.parametrize("content", [b"{not json", b"[1, 2]", b'{"bf16": 1}', b"\xff\xfe{}"])
def test_deepspeed_file_that_cannot_be_read(experiment, tmp_path, content):
    (tmp_path / "own.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"own\.json"):
        with_deepspeed(experiment, tmp_path / "run", str(tmp_path / "own.json"))


def test_clipping_that_deepspeed_does_not_know(experiment, tmp_path):
    with pytest.raises(ConfigError, match=r"optim_wrapper\.clip_grad\.norm_type") as caught:
        with_deepspeed(
            experiment, tmp_path / "run", cfg_options={"optim_wrapper.clip_grad.norm_type": 1}
        )
    assert "max_norm alone" in caught.value.expected


def test_eight_bit_states_are_not_sharded(experiment, tmp_path):
    with pytest.raises(ConfigError, match="AdamW8bit' together with --deepspeed") as caught:
        with_deepspeed(
            experiment, tmp_path / "run", cfg_options={"optim_wrapper.optimizer.type": "AdamW8bit"}
        )
    assert "optim_wrapper.optimizer.type=AdamW" in caught.value.fix


def test_resume_under_deepspeed_what_was_written_without_it(experiment, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(resuming, "print_log", lambda text, **_: said.append(text))
    began = prepare_training(str(experiment), work_dir=str(tmp_path / "run"), seed=11)
    path = save(tmp_path / "run" / "iter_2.pth", seed=11, cfg=began.pretty_text)
    cfg = with_deepspeed(experiment, tmp_path / "run", resume=str(path))
    assert cfg.resume is True
    assert cfg.load_from == cfg.strategy.load_trained_from == str(path)
    assert cfg.randomness.seed == 11
    assert ["other strategy (DDP before, ZeRO-2 now)" in text for text in said] == [True]


def test_resume_without_deepspeed_what_was_written_with_it(experiment, tmp_path):
    began = with_deepspeed(experiment, tmp_path / "run", seed=11)
    path = save(tmp_path / "run" / "iter_2.pth", seed=11, cfg=began.pretty_text)
    cfg = resume(experiment, tmp_path / "run", str(path))
    assert (cfg.resume, cfg.get("strategy")) == (True, None)
    changed = {"optim_wrapper.clip_grad.max_norm": 0.25}
    with pytest.raises(CheckpointError, match=r"clip_grad\.max_norm = 0\.25"):
        resume(experiment, tmp_path / "run", str(path), cfg_options=changed)


def test_a_folder_of_shards_is_no_checkpoint_to_go_on_from(experiment, tmp_path):
    folder = tmp_path / "run" / "iter_2.pth"
    save(folder / "mp_rank_00_model_states.pt", training_state=False)
    with pytest.raises(CheckpointError, match="cannot be consolidated"):
        with_deepspeed(experiment, tmp_path / "run", resume=str(folder))

"""FSDP2: the losses and checkpoints of DDP, from shards; in two gloo processes, started once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import RUNNERS

from projects.sa2va.checkpoints import build_model_from_checkpoint, read_checkpoint
from projects.sa2va.engine.start import prepare_training
from projects.sa2va.errors import ConfigError, SetupError
from tests.tiny_experiment import write_experiment

from .running import build, in_two_processes

ITERS = 4
# Frozen weights in bfloat16 beside trained ones in float32, as at true size; heads of their own.
CONFIG: dict[str, Any] = dict(
    train_cfg=dict(max_iters=ITERS, val_interval=ITERS),
    optim_wrapper=dict(accumulative_counts=2),
    default_hooks=dict(checkpoint=dict(interval=2, save_total_limit=-1)),
    custom_hooks=[dict(type="WeightEMAHook", decay=0.5)],
    val_dataloader=dict(batch_size=1),
    model=dict(
        autocast="bfloat16",
        mask_loss=dict(num_points=64),
        mllm=dict(dtype="bfloat16", gradient_checkpointing=True, lora=dict(lora_dropout=0.1)),
        grounding=dict(dtype="bfloat16", train_image_encoder=False),
    ),
)
FRAMES = (8, 3, 1)  # three validation frames: one process has fewer


def _run(rank: int, config: Path) -> None:
    """One of two processes: DDP, FSDP2, and FSDP2 that goes on from DDP's checkpoint."""
    folder = config.parent
    resumed = str(folder / "ddp" / "iter_2.pth")
    for name, strategy, resume in (
        ("ddp", "ddp", None),
        ("fsdp2", "fsdp2", None),
        ("resumed", "fsdp2", resumed),
    ):
        cfg = prepare_training(
            str(config),
            work_dir=str(folder / name),
            strategy=strategy,
            resume=resume,
            distributed=True,
        )
        cfg.launcher, cfg.experiment_name = "pytorch", name
        runner = RUNNERS.build(cfg)
        runner.train()
        if rank == 0:
            parameters = list(runner.model.parameters())
            facts = {
                "all": sum(p.numel() for p in parameters),
                "here": sum(getattr(p, "_local_tensor", p).numel() for p in parameters),
                "views": getattr(runner.model, "gradient_as_bucket_view", None),
            }
            (folder / name / "facts.json").write_text(json.dumps(facts))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the interpreter


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the work dirs of the three runs."""
    folder = tmp_path_factory.mktemp("fsdp")
    config = write_experiment(folder, frames=FRAMES, **CONFIG)
    in_two_processes(_run, config)
    return folder


def _logged(work_dir: Path) -> tuple[dict[int, tuple[float, ...]], dict[str, float]]:
    """Losses and the gradient's norm by iteration, and the validation's scores."""
    newest = sorted(work_dir.glob("*/vis_data/scalars.json"))[-1]
    rows = [json.loads(line) for line in newest.read_text().splitlines()]
    keys = ("loss_mask", "loss_dice", "loss_language", "grad_norm")
    losses = {
        row["step"]: tuple(row.get(key, 0.0) for key in keys) for row in rows if "loss" in row
    }
    scores = next(row for row in rows if "vessel/accuracy" in row)
    return losses, {key: value for key, value in scores.items() if key.startswith("vessel/")}


def test_losses_and_scores_are_those_of_ddp(runs: Path) -> None:
    (ddp, scores), (fsdp, own) = _logged(runs / "ddp"), _logged(runs / "fsdp2")
    assert ddp.keys() == fsdp.keys() == set(range(1, ITERS + 1))
    for step, values in ddp.items():
        # The sum over two processes is the same in any order; only the norm is summed otherwise.
        assert fsdp[step] == pytest.approx(values, rel=1e-5), step
    assert own == pytest.approx(scores, abs=1e-5, nan_ok=True)


def test_checkpoints_are_those_of_ddp(runs: Path) -> None:
    ddp, fsdp = (read_checkpoint(runs / name / f"iter_{ITERS}.pth") for name in ("ddp", "fsdp2"))
    _assert_same(ddp["state_dict"], fsdp["state_dict"])
    _assert_same(ddp["averaged"], fsdp["averaged"])
    ours, theirs = fsdp["optimizer"], ddp["optimizer"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, values in theirs["state"].items():
        _assert_same(values, ours["state"][index])
    assert fsdp.keys() == ddp.keys()


def test_goes_on_from_ddp_as_if_uninterrupted(runs: Path) -> None:
    whole, rest = _logged(runs / "fsdp2")[0], _logged(runs / "resumed")[0]
    assert rest.keys() == {3, 4}
    for step, values in rest.items():
        assert values[:3] == pytest.approx(whole[step][:3], rel=1e-5), step
    one, two = (read_checkpoint(runs / n / f"iter_{ITERS}.pth") for n in ("fsdp2", "resumed"))
    for key in ("state_dict", "averaged"):
        _assert_same(one[key], two[key])
    assert not torch.equal(*(next(iter(one[key].values())) for key in ("state_dict", "averaged")))


def test_each_process_holds_its_share(runs: Path) -> None:
    facts = {
        name: json.loads((runs / name / "facts.json").read_text()) for name in ("ddp", "fsdp2")
    }
    assert facts["ddp"]["here"] == facts["ddp"]["all"] == facts["fsdp2"]["all"]
    # After a prediction too; biases with an odd length are not halves.
    assert facts["fsdp2"]["here"] == pytest.approx(facts["fsdp2"]["all"] / 2, rel=0.01)
    assert facts["ddp"]["views"] is True


def test_one_process_loads_weights_and_optimiser(runs: Path) -> None:
    path = runs / "fsdp2" / f"iter_{ITERS}.pth"
    stored = read_checkpoint(path)
    model, _ = build_model_from_checkpoint(path)
    _assert_same(model.trained_state_dict(), stored["averaged"], rtol=0, atol=0)
    runner = build(runs / "experiment.py", runs / "single")
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.resume(str(path))
    for index, values in runner.optimizer_state()["state"].items():
        _assert_same(values, stored["optimizer"]["state"][index], rtol=0, atol=0)


def _assert_same(one: dict, two: dict, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, two[name], rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.usefixtures("no_model")
class TestChoosing:
    """``--strategy``: what it sets and what it refuses."""

    @staticmethod
    def prepare(config: Path, run: Path, strategy: str | None = "fsdp2", **more: Any) -> Any:
        settings = {"distributed": True, **more}
        return prepare_training(str(config), work_dir=str(run), strategy=strategy, **settings)

    def test_runner(self, experiment, tmp_path):
        assert self.prepare(experiment, tmp_path).runner_type == "Sa2VAShardedRunner"
        assert self.prepare(experiment, tmp_path, "ddp").runner_type == "Sa2VARunner"
        dumped = {"runner_type": "Sa2VAShardedRunner"}
        again = self.prepare(experiment, tmp_path, None, cfg_options=dumped)
        assert again.runner_type == "Sa2VAShardedRunner"

    def test_without_a_launcher(self, experiment, tmp_path):
        with pytest.raises(SetupError, match="FSDP2 without a launcher"):
            self.prepare(experiment, tmp_path, distributed=False)

    def test_together_with_deepspeed(self, experiment, tmp_path):
        with pytest.raises(ConfigError, match="--strategy fsdp2 together with --deepspeed"):
            self.prepare(experiment, tmp_path, deepspeed="deepspeed_zero2")

    def test_quantized_weights(self, experiment, tmp_path):
        options = {"model.mllm.quantization": "nf4"}
        with pytest.raises(ConfigError, match=r"FSDP2 and model\.mllm\.quantization='nf4'"):
            self.prepare(experiment, tmp_path, cfg_options=options)

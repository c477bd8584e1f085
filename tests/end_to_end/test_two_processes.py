"""Training, testing and going on in two gloo processes: DDP, ZeRO-2, ZeRO-3 with offload."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from projects.sa2va.checkpoints import read_checkpoint

from .conftest import (
    FRAMES,
    HALF,
    MAX_ITERS,
    copy_as_interrupted,
    losses,
    scalars,
    test,
    train,
    train_two,
)

LAST = f"iter_{MAX_ITERS}.pth"


@pytest.fixture(scope="module")
def ddp(experiment: Path) -> Path:
    """Work dir of a run with plain DDP."""
    work_dir = experiment.parent / "ddp"
    train_two(experiment, work_dir)
    return work_dir


def test_one_process_equals_two_in_testing(experiment: Path, ddp: Path) -> None:
    one, two = experiment.parent / "one", experiment.parent / "two"
    alone = ("--cfg-options", "test_dataloader.batch_size=1")
    single = test(experiment, ddp / LAST, one, *alone)
    double = test(experiment, ddp / LAST, two, *alone, processes=2)
    assert double["counts"]["frames"] == FRAMES[2]
    assert single["per_frame"] == double["per_frame"]
    for key in ("mean", "patient_mean", "pooled", "per_patient", "undefined", "counts"):
        assert single[key] == double[key], key
    for path in (one / "probabilities").iterdir():
        assert path.read_bytes() == (two / "probabilities" / path.name).read_bytes()


def test_zero_2_trains_and_goes_on_under_zero_3_with_offload(experiment: Path, ddp: Path) -> None:
    work_dir = experiment.parent / "zero2"
    train_two(experiment, work_dir, "--deepspeed", "deepspeed_zero2")
    ours, plain = losses(work_dir), losses(ddp)
    assert ours.keys() == plain.keys() == set(range(1, MAX_ITERS + 1))
    for step, values in plain.items():
        assert ours[step] == pytest.approx(values, rel=2e-3), step
    assert [row["vessel/accuracy"] for row in scalars(work_dir) if "vessel/accuracy" in row]
    trained, expected = read_checkpoint(work_dir / LAST), read_checkpoint(ddp / LAST)
    assert trained["state_dict"].keys() == expected["state_dict"].keys()
    assert {tensor.dtype for tensor in trained["state_dict"].values()} == {torch.float32}
    state, other = trained["optimizer"]["state"], expected["optimizer"]["state"]
    assert {k: v["exp_avg"].shape for k, v in state.items()} == {
        k: v["exp_avg"].shape for k, v in other.items()
    }

    resumed = experiment.parent / "zero3"
    copy_as_interrupted(work_dir, resumed, HALF)
    log = train_two(experiment, resumed, "--deepspeed", "deepspeed_zero3_offload", "--resume")
    assert "Going on with other strategy (ZeRO-2 before, ZeRO-3 now)" in log
    for step, values in losses(resumed).items():
        assert step > HALF
        assert values == pytest.approx(ours[step], rel=1e-4), step
    assert len(losses(resumed)) == MAX_ITERS - HALF
    metrics = test(experiment, resumed / LAST, experiment.parent / "zero3_results")
    assert {row["part"] for row in metrics["weights"]["parts"]} >= {"LoRA", "SAM2 mask decoder"}
    assert metrics["counts"]["frames"] == FRAMES[2]


def test_ddp_goes_on_in_one_process_with_its_frames(experiment: Path, ddp: Path) -> None:
    alone = experiment.parent / "alone"
    copy_as_interrupted(ddp, alone, HALF)
    log = train(experiment, alone, "--resume", "--cfg-options", "train_dataloader.batch_size=4")
    assert "Going on with other processes (2 before, 1 now)" in log
    # The mask loss hardly depends on dropout in this short run, and on the frames it does.
    mask = {step: values[1] for step, values in losses(alone).items()}
    assert mask == pytest.approx({s: v[1] for s, v in losses(ddp).items() if s > HALF}, rel=1e-3)

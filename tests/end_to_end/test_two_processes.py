"""Training and testing in two gloo processes: DDP, ZeRO-2 and ZeRO-3 with offload."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from projects.sa2va.checkpoints import read_checkpoint

from .conftest import (
    FRAMES,
    MAX_ITERS,
    copy_as_interrupted,
    losses,
    run_tool,
    scalars,
    test,
    train_two,
)

pytestmark = pytest.mark.xdist_group("processes")
LAST = f"iter_{MAX_ITERS}.pth"


@pytest.fixture(scope="module")
def ddp(experiment: Path) -> Path:
    """Work dir of a run with plain DDP."""
    work_dir = experiment.parent / "ddp"
    train_two(experiment, work_dir, "")
    return work_dir


def test_one_process_equals_two_in_testing(experiment: Path, ddp: Path) -> None:
    one, two = experiment.parent / "one", experiment.parent / "two"
    single = test(experiment, ddp / LAST, one, "--cfg-options", "test_dataloader.batch_size=1")
    run_tool(
        "bash", "tools/dist.sh", "test", experiment, 2, "--checkpoint", ddp / LAST,
        "--work-dir", experiment.parent / "test_work", "--out", two,
        "--cfg-options", "test_dataloader.batch_size=1",
    )  # fmt: skip
    double = json.loads((two / "metrics.json").read_text())
    assert double["counts"]["frames"] == FRAMES[2]
    assert single["per_frame"] == double["per_frame"]
    for key in ("mean", "patient_mean", "pooled", "per_patient", "undefined", "counts"):
        assert single[key] == double[key], key
    for path in (one / "probabilities").iterdir():
        assert path.read_bytes() == (two / "probabilities" / path.name).read_bytes()


@pytest.mark.parametrize("zero", ["deepspeed_zero2", "deepspeed_zero3_offload"])
def test_zero_trains_resumes_and_is_tested(experiment: Path, ddp: Path, zero: str) -> None:
    work_dir = experiment.parent / zero
    train_two(experiment, work_dir, zero)
    ours, plain = losses(work_dir), losses(ddp)
    assert ours.keys() == plain.keys() == set(range(1, MAX_ITERS + 1))
    for step, values in plain.items():
        assert ours[step] == pytest.approx(values, rel=2e-3), (zero, step)
    assert [row["vessel/accuracy"] for row in scalars(work_dir) if "vessel/accuracy" in row]
    folder = read_checkpoint(work_dir / LAST)["state_dict"]
    expected = read_checkpoint(ddp / LAST)["state_dict"]
    assert folder.keys() == expected.keys()
    assert {tensor.dtype for tensor in folder.values()} == {torch.float32}
    if zero == "deepspeed_zero2":
        return  # resuming and testing from a folder is the same code, and 2 minutes, for both

    resumed = experiment.parent / f"{zero}_resumed"
    copy_as_interrupted(work_dir, resumed, 3)
    train_two(experiment, resumed, zero, "--resume")
    assert losses(resumed) == {step: row for step, row in ours.items() if step > 3}

    again = read_checkpoint(resumed / LAST)["state_dict"]
    for name, tensor in folder.items():
        assert torch.equal(tensor, again[name]), name
    metrics = test(experiment, work_dir / LAST, experiment.parent / f"{zero}_results")
    assert metrics["checkpoint"]["format"] == "DeepSpeed folder"
    assert {row["part"] for row in metrics["weights"]["parts"]} >= {"LoRA", "SAM2 mask decoder"}
    assert metrics["counts"]["frames"] == FRAMES[2]

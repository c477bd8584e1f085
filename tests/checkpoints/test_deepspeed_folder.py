"""DeepSpeed folders that are not whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from projects.sa2va.checkpoints import is_deepspeed_folder, read_checkpoint
from projects.sa2va.checkpoints.store import FORMAT
from projects.sa2va.errors import CheckpointError

SHARD = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The shards of two processes of ZeRO-2, one weight of two values."""
    folder = tmp_path / "iter_2.pth"
    folder.mkdir()
    states = {
        "module": {"w": torch.zeros(2)},
        "buffer_names": [],
        "param_shapes": [{"w": torch.Size([2])}],
        "shared_params": {},
        "ds_version": "0.19.8",
        "meta": {"format": FORMAT},
    }
    torch.save(states, folder / "mp_rank_00_model_states.pt")
    for rank in (0, 1):
        optimizer = {
            "zero_stage": 2,
            "partition_count": 2,
            "single_partition_of_fp32_groups": [torch.tensor([float(rank)])],
        }
        torch.save({"optimizer_state_dict": optimizer}, folder / SHARD.format(rank))
    return folder


def _error(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    return caught.value


def test_the_whole_folder_is_consolidated(folder):
    assert is_deepspeed_folder(folder)
    assert read_checkpoint(folder)["state_dict"]["w"].tolist() == [0.0, 1.0]


def test_a_shard_is_missing(folder):
    (folder / SHARD.format(1)).unlink()
    error = _error(folder)
    assert "cannot be consolidated" in error.found
    assert "one *optim_states.pt for each process" in error.expected


def test_all_shards_are_missing(folder):
    for path in folder.glob("*optim_states.pt"):
        path.unlink()
    assert "cannot be consolidated" in _error(folder).found


def test_a_shard_is_cut_short(folder):
    path = folder / SHARD.format(0)
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be consolidated" in _error(folder).found


def test_model_states_are_missing(folder):
    (folder / "mp_rank_00_model_states.pt").unlink()
    assert not is_deepspeed_folder(folder)
    assert "without DeepSpeed's *model_states.pt" in _error(folder).found


def test_of_another_program(folder):
    path = folder / "mp_rank_00_model_states.pt"
    states = torch.load(path, weights_only=True)
    del states["meta"]
    torch.save(states, path)
    assert "another program" in _error(folder).found


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "mp_rank_00_model_states.pt").write_bytes(b"")
    assert not is_deepspeed_folder(tmp_path / "mp_rank_00_model_states.pt")
    assert not is_deepspeed_folder(tmp_path / "none")

"""The reference's training under DeepSpeed: folders of shards, in DeepSpeed's own layout.

Written by hand as DeepSpeed 0.16 to 0.19 do (runtime/engine.py ``save_checkpoint``,
runtime/zero/stage_1_and_2.py and stage3.py ``state_dict``; read by utils/zero_to_fp32.py).
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from projects.sa2va.checkpoints import is_deepspeed_folder, load_trained, read_checkpoint
from projects.sa2va.checkpoints.inspection import describe, open_weights
from projects.sa2va.errors import CheckpointError
from projects.sa2va.models import Sa2VAModel

RANKS = 2
SHARD = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"
STATES = {2: "mp_rank_00_model_states.pt", 3: "zero_pp_rank_{}_mp_rank_00_model_states.pt"}


def _groups(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Two parameter groups, as weight decay makes them."""
    flat = {name: value.float() for name, value in state.items()}
    return [
        {name: value for name, value in flat.items() if value.ndim > 1},
        {name: value for name, value in flat.items() if value.ndim <= 1},
    ]


def _zero2(group: dict[str, Tensor]) -> list[Tensor]:
    """One vector of all, padded and cut."""
    flat = torch.cat([value.flatten() for value in group.values()])
    padding = -len(flat) % (2 * RANKS)
    return list(torch.cat([flat, torch.zeros(padding)]).chunk(RANKS))


def _zero3(group: dict[str, Tensor]) -> list[Tensor]:
    """Every parameter is padded and cut by itself."""
    pieces: list[list[Tensor]] = [[] for _ in range(RANKS)]
    for value in group.values():
        flat = value.flatten()
        flat = torch.cat([flat, torch.zeros(-len(flat) % RANKS)])
        for rank, piece in enumerate(flat.chunk(RANKS)):
            pieces[rank].append(piece)
    return [torch.cat(own) for own in pieces]


def write_folder(folder: Path, checkpoint: dict[str, Any], stage: int) -> Path:
    """Writes the reference's checkpoint as two processes under ZeRO would."""
    folder.mkdir()
    groups = _groups(checkpoint["state_dict"])
    client = {
        "meta": {**checkpoint["meta"], "cfg": "model = dict(llm_lora=dict(r=8, lora_alpha=16))"},
        "message_hub": {
            "log_scalars": {"train/loss": HistoryBuffer([1.5, 1.25], [1, 1])},
            "runtime_info": {"iter": 12192},
            "resumed_keys": {"train/loss": True},
        },
    }
    frozen = "mllm.model.vision_model.embeddings.class_embedding"
    states = {
        "module": {**checkpoint["state_dict"], "some.buffer": torch.ones(3)},
        "buffer_names": ["some.buffer", "not.in.the.state.dict"],
        "param_shapes": [{name: value.shape for name, value in g.items()} for g in groups],
        "frozen_param_shapes": {frozen: torch.Size([1, 1, 64])},
        "frozen_param_fragments": {frozen: torch.zeros(1, 1, 64)},
        "shared_params": {},
        "ds_version": "0.16.2",
        **client,
    }
    for rank in range(RANKS if stage == 3 else 1):
        torch.save(states, folder / STATES[stage].format(rank))
    pieces = [(_zero3 if stage == 3 else _zero2)(group) for group in groups]
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    for rank in range(RANKS):
        optimizer = {
            "zero_stage": stage,
            "partition_count": RANKS if stage == 3 else [RANKS, RANKS],
            key: [piece[rank].clone() for piece in pieces],
        }
        torch.save({"optimizer_state_dict": optimizer}, folder / SHARD.format(rank))
    return folder


@pytest.fixture(scope="module", params=[2, 3], ids=["zero2", "zero3"])
def shards(request, f7: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it only."""
    folder = tmp_path_factory.mktemp("deepspeed") / "iter_12192.pth"
    return write_folder(folder, f7, request.param)


@pytest.fixture
def own_shards(shards: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    folder = tmp_path / "iter_12192.pth"
    folder.mkdir()
    for file in shards.iterdir():
        os.link(file, folder / file.name)
    return folder


def test_is_consolidated(shards: Path, f7: dict[str, Any]) -> None:
    assert is_deepspeed_folder(shards)
    checkpoint = read_checkpoint(shards)
    assert checkpoint["layout"] == "reference-training"
    assert checkpoint["meta"]["iter"] == 12192
    expected = f7["state_dict"]
    assert checkpoint["state_dict"].keys() == expected.keys()
    for name, value in checkpoint["state_dict"].items():
        assert value.dtype is torch.float32
        assert torch.equal(value, expected[name].float()), name


def test_gives_the_model_of_the_file(shards: Path, base: Sa2VAModel, loaded: Sa2VAModel) -> None:
    model = copy.deepcopy(base)
    report = load_trained(model, read_checkpoint(shards), shards)
    expected = loaded.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.changed_frozen == loaded.changed_frozen
    assert report.iteration == 12192
    assert not any("does not say LoRA's alpha" in note for note in report.notes)


def test_another_alpha_is_seen(shards: Path, base: Sa2VAModel) -> None:
    checkpoint = read_checkpoint(shards)
    checkpoint["meta"]["cfg"] = checkpoint["meta"]["cfg"].replace("16", "64")
    with pytest.raises(CheckpointError, match="lora_alpha=64, the config has lora_alpha=16"):
        load_trained(copy.deepcopy(base), checkpoint, shards)


def test_inspection_of_it(shards: Path) -> None:
    text = describe(open_weights(shards))
    assert "a training checkpoint of the reference" in text
    assert "stored as: DeepSpeed folder" in text
    assert "LoRA: rank 8, alpha 16, 21 layers" in text
    assert "iter: 12192" in text


def test_a_shard_is_missing(own_shards: Path) -> None:
    (own_shards / SHARD.format(1)).unlink()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(own_shards)
    assert "cannot be consolidated" in caught.value.found
    assert "copy the whole folder" in caught.value.fix


def test_model_states_of_one_process_are_missing(own_shards: Path) -> None:
    first = sorted(own_shards.glob("*model_states.pt"))[0]
    first.unlink()
    if not is_deepspeed_folder(own_shards):
        with pytest.raises(CheckpointError, match="without DeepSpeed's"):
            read_checkpoint(own_shards)
        return
    # ZeRO-3: every process writes the same shapes, and the weights are in the other files.
    assert read_checkpoint(own_shards)["meta"]["iter"] == 12192


class RunsCode:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("which", ["model", "optim"])
def test_code_in_a_shard_does_not_run(own_shards: Path, tmp_path: Path, which: str) -> None:
    made = tmp_path / "made by the pickle"
    for file in list(own_shards.glob(f"*{which}_states.pt")):
        content = {"buffer_names": [], "optimizer_state_dict": {}, "extra": RunsCode(made)}
        file.unlink()
        torch.save(content, file)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(own_shards)
    assert "posix.mkdir" in caught.value.found
    assert "weights_only` set to `False`" not in str(caught.value)
    assert not made.exists()

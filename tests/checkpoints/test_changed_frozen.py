"""After a checkpoint of the reference that replaced frozen weights: training, saving, loading."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from projects.sa2va.checkpoints import check_resumable, load_trained, read_checkpoint
from projects.sa2va.engine.runner import Sa2VARunner
from projects.sa2va.engine.zero import _refuse_changed_frozen
from projects.sa2va.errors import CheckpointError
from projects.sa2va.models import Sa2VAModel, fingerprint
from projects.sa2va.models.parameters import frozen_tensors
from tests.models.conftest import total, train_batch

from .over_reference import weight

VIT = "mllm.model.vision_tower.encoder.layer.0.mlp.fc1.weight"


def one_step(model: Sa2VAModel) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    batch = train_batch(model.processor, counts=(1,))
    total(model(**batch, mode="loss")).backward()
    optimizer.step()


def test_goes_on_as_lora(loaded) -> None:
    model = copy.deepcopy(loaded)
    before = copy.deepcopy(model.state_dict())
    one_step(model)
    trained = set(model.trained_state_dict())
    after = model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved <= trained
    assert all(name in moved for name in trained if ".lora_" in name)
    assert len([n for n in moved if "trainable_tokens_delta" in n]) == 2
    assert not moved & set(model.changed_frozen)


def written(model: Sa2VAModel, folder: Path) -> Path:
    """A checkpoint as the runner writes it, without training state."""
    meta = {
        "format": "sa2va-vessel/1",
        "base_fingerprint": dict(model.base_fingerprint),
        "added_tokens": model.added_tokens(),
    }
    runner = object.__new__(Sa2VARunner)
    runner.model, runner._checkpoint_meta = model, lambda *_: meta
    runner.call_hook = lambda *_, **__: None
    runner.save_checkpoint(
        str(folder), "iter_1.pth", save_optimizer=False, save_param_scheduler=False
    )
    return folder / "iter_1.pth"


@pytest.fixture
def ours(loaded: Sa2VAModel, tmp_path: Path) -> tuple[Sa2VAModel, Path]:
    """A model that trained on from the reference's checkpoint, and its own checkpoint."""
    model = copy.deepcopy(loaded)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1e-3
    return model, written(model, tmp_path)


def test_checkpoint_of_ours_after_it_is_whole(ours, base) -> None:
    model, path = ours
    checkpoint = read_checkpoint(path)
    assert sorted(checkpoint["changed_frozen"]) == model.changed_frozen
    again = copy.deepcopy(base)
    runner = SimpleNamespace(model=again, logger=logging.getLogger("test"), _train_loop="some")
    Sa2VARunner.load_checkpoint(runner, str(path))
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    assert again.changed_frozen == model.changed_frozen
    assert again.base_fingerprint == model.base_fingerprint
    assert "14 frozen tensors replaced" in runner.load_report.text()
    # Once more into the same model: what it must carry on does not change.
    load_trained(again, checkpoint, path)
    assert again.changed_frozen == model.changed_frozen


@pytest.mark.parametrize("replaced", [False, True], ids=["base", "has_the_replaced_ones"])
def test_checkpoint_of_ours_is_refused_over_another_base(ours, base, replaced) -> None:
    _, path = ours
    other = copy.deepcopy(base)
    checkpoint = read_checkpoint(path)
    with torch.no_grad():
        weight(other, VIT).add_(0.5)
        for name, tensor in checkpoint["changed_frozen"].items() if replaced else ():
            other.get_parameter(name).copy_(tensor)
    other.base_fingerprint = fingerprint(frozen_tensors(other))
    with pytest.raises(CheckpointError, match="MLLM vision encoder differ"):
        load_trained(other, checkpoint, path)


def test_deepspeed_refuses_replaced_frozen_weights(loaded, base) -> None:
    _refuse_changed_frozen(base, "iter_1.pth")
    with pytest.raises(CheckpointError) as caught:
        _refuse_changed_frozen(loaded, "iter_1.pth")
    assert "iter_1.pth replaces 14 frozen tensors" in caught.value.found
    assert "--to native --lora keep" in caught.value.fix
    assert "model.pretrained=OUT load_from=OUT/adapter" in caught.value.fix


def test_the_references_run_cannot_be_resumed(f7) -> None:
    state = {**f7, "optimizer": {"state": {}, "param_groups": []}}
    with pytest.raises(CheckpointError) as caught:
        check_resumable(state, "iter_12192.pth")
    assert "another program (layout: reference-training)" in caught.value.found
    assert "load_from=iter_12192.pth" in caught.value.fix

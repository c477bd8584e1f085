"""What a checkpoint says of itself; the message hub in plain types."""

from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from projects.sa2va.checkpoints import (
    DATA_SPLITS_FILE,
    TRAINING_RECORD,
    pack_message_hub,
    provenance,
    unpack_message_hub,
    write_atomically,
)
from projects.sa2va.checkpoints.store import FORMAT


def test_provenance(trained, tmp_path):
    splits = {"train": {"frames": 2, "hash": "00ff"}}
    record = {TRAINING_RECORD: {"pixels": "00"}}
    stored = {"train": splits["train"] | record}
    (tmp_path / DATA_SPLITS_FILE).write_text(json.dumps(stored))
    meta = provenance(trained, tmp_path)
    assert meta["format"] == FORMAT
    assert meta[TRAINING_RECORD] == record[TRAINING_RECORD]
    assert meta["data_splits"] == splits
    assert meta["base_fingerprint"] == trained.base_fingerprint
    assert meta["added_tokens"]["[SEG]"] == trained.processor.seg_token_id
    assert meta["torch"] == str(torch.__version__)
    assert meta["git_commit"] is None or re.fullmatch(
        r"[0-9a-f]{40}(\+changes)?", meta["git_commit"]
    )
    write_atomically({"state_dict": {}, "meta": meta}, tmp_path / "a.pth")


def test_provenance_without_splits_and_without_git(trained, tmp_path, monkeypatch):
    def no_git(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    meta = provenance(trained, tmp_path)
    assert meta["data_splits"] is None
    assert meta["git_commit"] is None


def test_uncommitted_changes_are_marked(trained, tmp_path, monkeypatch):
    def git(command, **kwargs):
        text = "0" * 40 if "rev-parse" in command else " M file.py"
        return subprocess.CompletedProcess(command, 0, stdout=text + "\n")

    monkeypatch.setattr(subprocess, "run", git)
    assert provenance(trained, tmp_path)["git_commit"] == "0" * 40 + "+changes"


@pytest.fixture
def hub() -> MessageHub:
    hub = MessageHub("full")
    for step in range(5):
        hub.update_scalar("train/loss", 1.0 / (step + 1), count=2)
        hub.update_scalar("train/lr", np.float32(0.1), resumed=False)
    hub.update_info("iter", np.int64(5))
    hub.update_info("best_score", np.float32(0.5))
    hub.update_info("best_dice", np.float64(0.25))
    hub.update_info("improved", np.bool_(True))
    hub.update_info("flag", False)
    hub.update_info("best_ckpt", "best.pth")
    hub.update_info("keep_ckpt_ids", [np.int64(2), 4])
    hub.update_info("dataset_meta", {"frames": 3})
    return hub


def test_message_hub_round_trip_through_a_safe_file(hub, tmp_path):
    path = tmp_path / "hub.pth"
    write_atomically(pack_message_hub(hub), path)
    other = MessageHub("empty")
    unpack_message_hub(other, torch.load(path, weights_only=True))
    assert np.array_equal(other.get_scalar("train/loss").data, hub.get_scalar("train/loss").data)
    assert other.get_scalar("train/loss").mean(2) == hub.get_scalar("train/loss").mean(2)
    other.update_scalar("train/loss", 7.0)
    assert other.get_scalar("train/loss").current() == 7.0

    expected = {
        "iter": 5,
        "best_score": 0.5,
        "best_dice": 0.25,
        "improved": True,
        "flag": False,
        "best_ckpt": "best.pth",
        "keep_ckpt_ids": [2, 4],
    }
    found = {name: other.get_info(name) for name in expected}
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in expected.items()
    }
    # Written anew at every start, from the data set that is really there.
    assert "dataset_meta" not in other.runtime_info


def test_what_is_not_to_be_resumed_is_not(hub):
    other = MessageHub("empty2")
    unpack_message_hub(other, pack_message_hub(hub))
    assert "train/lr" not in other.log_scalars

"""The config of a checkpoint is read, not run."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from projects.sa2va.checkpoints import (
    build_model_from_checkpoint,
    read_stored_config,
    write_atomically,
)
from projects.sa2va.config import CONFIG_DIR, load_config
from projects.sa2va.errors import CheckpointError


@pytest.mark.parametrize("name", ["sa2va_demo", "sa2va_vessel_finetune"])
def test_reads_what_a_config_writes(name):
    cfg = load_config(CONFIG_DIR / f"{name}.py")
    assert read_stored_config(cfg.pretty_text, "x").to_dict() == cfg.to_dict()


def test_reads_every_kind_of_value():
    values = {
        "a": {"not an identifier": {1: -2.5, "b": None}, "c": [(1, 2), [True], {"d": "it's"}]},
        "e": 1e-05,
        "f": (),
        "g": {},
    }
    assert read_stored_config(Config(values).pretty_text, "x").to_dict() == values


@pytest.mark.parametrize(
    "line",
    [
        "a = __import__('os').mkdir({path!r})",
        "import os; os.mkdir({path!r})",
        "a = dict(b=[open({path!r}, 'w')])",
        "a = dict(**__import__('os').mkdir({path!r}))",
        "dict = __import__('os').mkdir\na = dict({path!r})",
        "a.b = 1",
        "a = [",
        "a = dict(1)",
        "custom_imports = dict(imports=['no_such_module_here'])",
    ],
)
def test_anything_else_is_refused_and_not_run(tmp_path, line):
    made = tmp_path / "made"
    with pytest.raises(CheckpointError, match=r"the config stored in x\.pth"):
        read_stored_config("ok = 1\n" + line.format(path=str(made)), "x.pth")
    assert not made.exists()


def test_checkpoint_with_code_in_its_config(payload, tmp_path):
    made, path = tmp_path / "made", tmp_path / "iter_3.pth"
    payload["meta"]["cfg"] += f"\nx = __import__('os').mkdir({str(made)!r})\n"
    write_atomically(payload, path)
    with pytest.raises(CheckpointError, match="the config stored in"):
        build_model_from_checkpoint(path)
    assert not made.exists()

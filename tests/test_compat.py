"""Shims: what is not seen anywhere else in the tests."""

from __future__ import annotations

import os
import shlex
import threading
from pathlib import Path

import pytest
from mmengine.config import Config, config
from torch.utils.file_baton import FileBaton
from yapf.yapflib import reformatter
from yapf.yapflib.yapf_api import FormatCode

from projects.sa2va import compat
from projects.sa2va.errors import SetupError

HOUR = 3600


def age(folder: Path, seconds: float) -> None:
    """Makes the folder and its files so old."""
    for path in (*folder.iterdir(), folder):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def wait_until_removed(baton: FileBaton) -> None:
    """Waits for a lock that is removed meanwhile; an error of the wait is raised here."""
    threading.Timer(0.3, os.remove, [baton.lock_file_path]).start()
    baton.wait()


@pytest.fixture
def baton(tmp_path) -> FileBaton:
    """Of a build whose first process was killed an hour ago."""
    folder = tmp_path / "two words" / "cpu_adam"
    folder.mkdir(parents=True)
    (folder / "build.ninja").touch()
    (folder / "lock").touch()
    age(folder, HOUR)
    return FileBaton(str(folder / "lock"))


def test_a_lock_that_was_left_is_named_instead_of_waited_for(baton):
    assert not baton.try_acquire()
    with pytest.raises(SetupError, match="for 60 min") as caught:
        baton.wait()
    assert shlex.split(caught.value.fix) == ["rm", baton.lock_file_path]
    assert Path(baton.lock_file_path).exists(), "it may be somebody else's after all"


def test_it_waits_while_a_process_holds_the_lock(baton):
    with open(baton.lock_file_path):
        wait_until_removed(baton)


def test_it_waits_while_another_machine_writes_into_the_folder(baton):
    (Path(baton.lock_file_path).parent / "cpu_adam.o").touch()
    wait_until_removed(baton)


def test_a_compiler_that_dies_while_it_is_waited_for_is_noticed(baton, monkeypatch):
    monkeypatch.setattr(compat, "_LIVE_S", 0.5)
    (Path(baton.lock_file_path).parent / "cpu_adam.o").touch()
    with pytest.raises(SetupError, match="for 0 min"):
        baton.wait()


def test_a_config_is_formatted_once_and_as_before():
    cfg = Config({"model": {"layers": [{"type": "a"}], "size": (3, 4)}, "lr": 0.1})
    text = cfg.pretty_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "FormatCode", FormatCode)  # yapf's own
        assert cfg.pretty_text == text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reformatter, "Reformat", lambda *_: pytest.fail("formatted again"))
        assert cfg.pretty_text == text
    cfg.lr = 0.2
    assert "lr = 0.2" in cfg.pretty_text

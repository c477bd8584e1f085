"""A folder that one process holds at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from projects.sa2va.errors import ConfigError, SetupError
from projects.sa2va.locks import locked

IN_USE = ConfigError(found="held", expected="one at a time", fix="wait")


def test_a_folder_is_made_held_and_let_go(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with locked(folder, "--out", IN_USE), pytest.raises(ConfigError) as caught:
        locked(folder, "--out", IN_USE).__enter__()
    assert caught.value is IN_USE
    with locked(folder, "--out", IN_USE):
        pass


def test_a_process_that_inherits_the_lock_holds_it(tmp_path: Path) -> None:
    wait = [sys.executable, "-S", "-c", "input()"]
    with locked(tmp_path, "--out", IN_USE) as lock:
        child = subprocess.Popen(wait, stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(ConfigError):
        locked(tmp_path, "--out", IN_USE).__enter__()
    child.communicate(b"\n")
    with locked(tmp_path, "--out", IN_USE):
        pass


def test_a_disk_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    said: list[str] = []
    monkeypatch.setattr("projects.sa2va.locks.print_log", lambda text, **_: said.append(text))
    with locked(tmp_path, "--out", IN_USE):
        assert len(said) == 1 and "start one run at a time" in said[0]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="--work-dir"):
        locked(tmp_path / "file", "--work-dir", IN_USE).__enter__()

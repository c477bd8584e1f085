"""A folder that is written again is never lost, whenever the process is killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from xtuner.engine import DeepSpeedStrategy

from projects.sa2va.engine import folders
from projects.sa2va.engine.folders import put_back, remove_half_written, replace_folder
from projects.sa2va.engine.start import prepare_training
from projects.sa2va.engine.zero import Sa2VADeepSpeedStrategy
from projects.sa2va.errors import CheckpointError


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def folder(path: Path, text: str) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "shard.pt").write_text(text)
    return path


def text_of(path: Path) -> str:
    return (path / "inner" / "shard.pt").read_text()


def test_the_new_folder_takes_the_place_of_the_old(tmp_path: Path) -> None:
    target = folder(tmp_path / "iter_3.pth", "old")
    folder(tmp_path / ".iter_3.pth.old.tmp", "older, of a run that was killed")
    replace_folder(folder(tmp_path / ".iter_3.pth.tmp", "new"), target)
    assert text_of(target) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["iter_3.pth"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_at_any_rename_one_of_the_two_is_found(tmp_path, monkeypatch, renames) -> None:
    target = folder(tmp_path / "iter_3.pth", "old")
    new = folder(tmp_path / ".iter_3.pth.tmp", "new")
    done, rename = [], os.rename

    def killed(source, destination):
        if len(done) == renames:
            raise Killed
        done.append(source)
        rename(source, destination)

    monkeypatch.setattr(os, "rename", killed)
    if renames < 2:
        with pytest.raises(Killed):
            replace_folder(new, target)
    else:
        replace_folder(new, target)
    monkeypatch.undo()
    put_back(tmp_path)
    remove_half_written(tmp_path)
    assert text_of(target) == ("new" if renames == 2 else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["iter_3.pth"]


def test_what_stands_aside_of_a_whole_folder_is_not_put_back(tmp_path: Path) -> None:
    target = folder(tmp_path / "iter_3.pth", "new")
    folder(tmp_path / ".iter_3.pth.old.tmp", "old")
    put_back(tmp_path)
    assert text_of(target) == "new"


def test_half_written_files_and_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / "iter_3.pth").write_bytes(b"whole")
    (tmp_path / ".iter_6.pth.123.tmp").write_bytes(b"half")
    folder(tmp_path / ".iter_6.pth.tmp", "half")
    remove_half_written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["iter_3.pth"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_start_puts_the_folder_back(experiment, tmp_path, monkeypatch, rank) -> None:
    monkeypatch.setenv("RANK", rank)
    run = tmp_path / "run"
    folder(run / ".iter_3.pth.old.tmp", "old")
    prepare_training(str(experiment), work_dir=str(run), distributed=True)
    assert text_of(run / "iter_3.pth") == "old"


# ------------------------------------------------------------------------- DeepSpeed's strategy


@pytest.fixture
def strategy(monkeypatch):
    """Our strategy over one that writes a shard and then does what ``then`` says."""

    def write(self, filename, **kwargs):
        folder(Path(filename), self.text)
        self.then()

    monkeypatch.setattr(DeepSpeedStrategy, "save_checkpoint", write)
    made = object.__new__(Sa2VADeepSpeedStrategy)
    made.text, made.then = "new", lambda: None
    return made


def test_a_folder_is_on_the_disk_before_it_is_renamed(strategy, tmp_path, monkeypatch) -> None:
    target = folder(tmp_path / "iter_3.pth", "old")
    events, fsync, rename = [], os.fsync, os.rename

    def synced(descriptor):
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def renamed(source, destination):
        events.append(("rename", Path(destination).name))
        rename(source, destination)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    strategy.save_checkpoint(str(target))
    assert text_of(target) == "new"
    assert events == [
        *[("sync", "shard.pt"), ("sync", "inner"), ("sync", ".iter_3.pth.tmp")],
        *[("rename", ".iter_3.pth.old.tmp"), ("rename", "iter_3.pth"), ("sync", tmp_path.name)],
    ]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("write failed")])
def test_a_full_disk_leaves_the_old_folder_and_no_half(strategy, tmp_path, error) -> None:
    target = folder(tmp_path / "iter_3.pth", "old")

    def fail():
        raise error

    strategy.then = fail
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        strategy.save_checkpoint(str(target))
    assert "--resume" in caught.value.fix
    assert text_of(target) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["iter_3.pth"]


def test_full_memory_is_not_a_full_disk(strategy, tmp_path) -> None:
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory")

    strategy.then = fail
    with pytest.raises(torch.OutOfMemoryError):
        strategy.save_checkpoint(str(tmp_path / "iter_3.pth"))


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    folders.remove(tmp_path / "iter_3.pth")

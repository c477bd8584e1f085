"""Writing atomically, and refusing to read what is no checkpoint of ours."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projects.sa2va.checkpoints import read_checkpoint, sha256_of, write_atomically
from projects.sa2va.checkpoints.store import FORMAT
from projects.sa2va.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

SMALL = {"state_dict": {"w": torch.arange(4.0)}, "meta": {"format": FORMAT, "iter": 1}}


class RunsCode:
    """Its pickle makes a folder when it is loaded with Python's own unpickler."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


# ------------------------------------------------------------------------------------- writing


def test_written_file_reads_back_and_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "iter_1.pth"
    write_atomically(SMALL, path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["w"], torch.arange(4.0))
    assert [p.name for p in path.parent.iterdir()] == ["iter_1.pth"]


def _disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _half_a_file(payload, file):
    file.write(b"half")
    _disk_full()


def _zip_writer_fails(payload, file):
    file.write(b"half")
    raise RuntimeError("PytorchStreamWriter failed writing file data/0")


@pytest.mark.parametrize(
    ("place", "failure"),
    [
        ("torch.save", _half_a_file),
        ("torch.save", _zip_writer_fails),
        ("os.fsync", _disk_full),
        ("os.replace", _disk_full),
    ],
)
def test_failure_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch, place, failure):
    path = tmp_path / "iter_1.pth"
    write_atomically(SMALL, path)
    before = path.read_bytes()
    monkeypatch.setattr(place, failure)
    with pytest.raises(CheckpointError, match=r"iter_1\.pth cannot be written") as caught:
        write_atomically({**SMALL, "more": torch.zeros(3)}, path)
    assert "free some space" in caught.value.fix
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["iter_1.pth"]


def test_interrupt_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "iter_1.pth"
    write_atomically(SMALL, path)
    before = path.read_bytes()

    def interrupted(payload, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(SMALL, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["iter_1.pth"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_atomically(SMALL, tmp_path / "run" / "iter_1.pth")
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize("unsafe", [Path("x"), RunsCode(Path("never")), st, lambda: None])
def test_payload_that_would_need_pickle_is_refused(tmp_path, unsafe):
    path = tmp_path / "iter_1.pth"
    write_atomically(SMALL, path)
    before = path.read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        write_atomically({**SMALL, "extra": unsafe}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["iter_1.pth"]


# ------------------------------------------------------------------------------------- reading


def _error(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    # torch's own text advises to load unsafely, which is not advice to hand on.
    assert "weights_only` set to `False`" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return caught.value


def test_missing_file_names_a_near_one(tmp_path):
    write_atomically(SMALL, tmp_path / "iter_200.pth")
    (tmp_path / "experiment.py").write_text("")
    error = _error(tmp_path / "iter_20.pth")
    assert "no checkpoint at" in error.found
    assert "did you mean 'iter_200.pth'" in error.found
    assert "did you mean" not in _error(tmp_path / "elsewhere" / "iter_200.pth").found


def test_truncated_anywhere(tmp_path):
    whole = tmp_path / "whole.pth"
    write_atomically(SMALL, whole)
    content, cut = whole.read_bytes(), tmp_path / "cut.pth"
    for length in range(0, len(content), 17):
        cut.write_bytes(content[:length])
        error = _error(cut)
        assert "damaged, cut short" in error.found
        assert "compare its size or sha256" in error.fix


def test_text_file(tmp_path):
    path = tmp_path / "iter_1.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "no file of torch" in _error(path).found


def test_zip_that_is_not_torchs(tmp_path):
    path = tmp_path / "iter_1.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "no file of torch" in _error(path).found


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=5),
    raw=st.binary(max_size=60),
)
def test_no_damage_escapes_as_another_exception(tmp_path, flips, raw):
    whole, path = tmp_path / "whole.pth", tmp_path / "damaged.pth"
    torch.save(SMALL, whole, _use_new_zipfile_serialization=len(flips) % 2 == 0)
    damaged = bytearray(whole.read_bytes())
    for place, value in flips:
        damaged[int(place * len(damaged))] = value
    for content in (bytes(damaged), raw):
        path.write_bytes(content)
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError:
            continue
        assert set(checkpoint) >= {"state_dict", "meta"}


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path, monkeypatch, new_format):
    # Without the switch for the whole process, which the next test is about.
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    made = tmp_path / "made by the pickle"
    path = tmp_path / "iter_1.pth"
    evil = {**SMALL, "extra": RunsCode(made)}
    torch.save(evil, path, _use_new_zipfile_serialization=new_format)
    error = _error(path)
    assert "would have to run posix.mkdir" in error.found
    assert not made.exists()
    # The pickle is what it should be: whoever loads it unsafely does run the code.
    pickle.loads(pickle.dumps(RunsCode(made)))
    assert made.is_dir()


def test_nor_where_a_library_asks_for_it(tmp_path):
    made, path = tmp_path / "made by the pickle", tmp_path / "iter_1.pth"
    torch.save(RunsCode(made), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert not made.exists()


def test_raw_pickle_does_not_run(tmp_path):
    made = tmp_path / "made by the pickle"
    (tmp_path / "iter_1.pth").write_bytes(pickle.dumps(RunsCode(made), protocol=2))
    assert "would have to run posix.mkdir" in _error(tmp_path / "iter_1.pth").found
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({f"layer.{i}.weight": torch.zeros(1) for i in range(500)}, "layer.4.weight and 495 more"),
        (torch.zeros(2), "it holds a Tensor"),
        ({"state_dict": {}, "meta": None}, "not a checkpoint"),
        ({"state_dict": [1], "meta": {"format": FORMAT}}, "not a checkpoint"),
        ({"state_dict": {}, "meta": {"epoch": 3}}, "meta.format=None"),
        ({"state_dict": {}, "meta": {"format": "sa2va-vessel/0"}}, "'sa2va-vessel/0'"),
    ],
)
def test_checkpoint_of_another_program(tmp_path, content, found):
    torch.save(content, tmp_path / "other.pth")
    error = _error(tmp_path / "other.pth")
    assert found in error.found
    assert "tools/train.py" in error.expected


def test_folder_without_a_checkpoint(tmp_path):
    (tmp_path / "iter_1.pth").mkdir()
    assert "a folder without DeepSpeed's" in _error(tmp_path / "iter_1.pth").found


# ---------------------------------------------------------------------------------------- hash


def test_sha256_of_file_and_folder(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "b").write_bytes(b"two")
    (folder / "sub" / "c").write_bytes(b"three")
    first = sha256_of(folder)
    assert first == sha256_of(folder)
    (folder / "sub" / "c").rename(folder / "sub" / "d")
    renamed = sha256_of(folder)
    (folder / "sub" / "d").write_bytes(b"3hree")
    assert len({first, renamed, sha256_of(folder)}) == 3

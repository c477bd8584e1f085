"""Torch files that hold more than tensors: what is let in, and what never runs."""

from __future__ import annotations

import builtins
import os
import pickle
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from projects.sa2va.errors import CheckpointError
from projects.sa2va.weights import safe_torch_load

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
RECONSTRUCT, SCALAR = np._core.multiarray._reconstruct, np._core.multiarray.scalar
F8 = (3, "<", None, None, None, -1, -1, 0)


class Calls:
    """Its pickle calls ``function(*args)``, then hands ``state`` to what that gives."""

    def __init__(self, function: Callable, *args: Any, state: Any = None) -> None:
        self.function, self.args, self.state = function, args, state

    def __reduce__(self) -> tuple:
        return (self.function, self.args, *([] if self.state is None else [self.state]))


class NotListed:
    """A class of somebody's code."""


def dtype(code: Any = "f8", state: tuple = F8) -> Calls:
    return Calls(np.dtype, code, False, True, state=state)


def array(kind: Any, content: Any, shape: tuple = (1,)) -> Calls:
    return Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, shape, kind, False, content))


def saved(path: Path, extra: Any, zipped: bool = True) -> Path:
    content = {"state_dict": {"w": torch.arange(4.0)}, "extra": extra}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def refusal(path: Path) -> CheckpointError:
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(CheckpointError, match="not a checkpoint") as caught:
        safe_torch_load(path)
    assert set(torch.serialization.get_safe_globals()) == before
    assert str(path) in caught.value.found
    return caught.value


def test_a_training_checkpoint_of_the_reference(reference: Path) -> None:
    before = set(torch.serialization.get_safe_globals())  # torch.distributed adds some itself
    assert HistoryBuffer not in before
    content = safe_torch_load(reference / "F7_checkpoint" / "iter_12192.pth", mmap=True)
    assert set(torch.serialization.get_safe_globals()) == before, "only while a file is read"
    assert len(content["state_dict"]) == 185
    loss = content["message_hub"]["log_scalars"]["train/loss"]
    assert type(loss) is HistoryBuffer
    history, counts = loss.data
    assert isinstance(history, np.ndarray) and history.dtype == np.float64
    assert history.shape == counts.shape == (12,) and counts.tolist() == [1] * 12
    assert (np.diff(history) < 0).all() and history[0] == pytest.approx(12.34573516)
    assert loss.current() == history[-1]


@FORMATS
@pytest.mark.parametrize(
    "numbers",
    [
        np.arange(3.0),
        np.arange(6, dtype=">f8").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.array([True, False]),
        np.zeros((0, 4), np.uint8),
        np.float16(0.5),
        np.int64(-7),
        np.array(2.5),
    ],
    ids=lambda value: f"{value.dtype.str}{list(value.shape)}",
)
def test_arrays_and_numbers_come_back_and_go_out_again(tmp_path, numbers, zipped: bool) -> None:
    content = safe_torch_load(saved(tmp_path / "a.pth", numbers, zipped))["extra"]
    assert content.dtype == numbers.dtype.newbyteorder("=") and np.array_equal(content, numbers)
    again = pickle.loads(pickle.dumps(content))
    assert type(again) is type(numbers), "no class of ours gets into other people's files"
    assert again.dtype == content.dtype and np.array_equal(again, numbers)


@FORMATS
def test_a_history_that_still_grows(tmp_path, zipped: bool) -> None:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    loaded = safe_torch_load(saved(tmp_path / "a.pth", history, zipped))["extra"]
    loaded.update(6.0)
    assert loaded.mean() == 3.0 and loaded.max() == 6.0
    assert {*loaded._statistics_methods} >= {"min", "max", "current", "mean"}


@FORMATS
@pytest.mark.parametrize(
    ("wanted", "evil"),
    [
        ("run posix.mkdir", lambda made: Calls(os.mkdir, str(made))),
        ("run posix.system", lambda made: Calls(os.system, f"mkdir {shlex.quote(str(made))}")),
        ("run eval", lambda made: Calls(eval, f"__import__('os').mkdir({str(made)!r})")),
        ("NotListed", lambda _: NotListed()),
        ("__init__", lambda _: Calls(getattr, HistoryBuffer, "__init__")),
        ("__globals__", lambda _: Calls(getattr, HistoryBuffer, "__globals__")),
        ("'update'", lambda _: Calls(getattr, HistoryBuffer, "update")),
        ("getattr(", lambda _: Calls(getattr, Calls(getattr, HistoryBuffer, "min"), "__globals__")),
        ("getattr(", lambda _: Calls(getattr, np.ndarray, "tofile")),
        ("getattr(", lambda _: Calls(getattr, {"a": 1}, "mean")),
        ("an array of object", lambda _: np.array([{"a": 1}, None], dtype=object)),
        ("an array of object", lambda _: dtype("O")),
        ("an array of [('f0', 'O')", lambda _: dtype("O,f8")),
        ("an array of list", lambda _: dtype([("a", "f8")])),
        ("an array of <U3", lambda _: np.array(["abc"])),
        ("an array of float64 that", lambda _: dtype(state=(*F8[:-1], 63))),
        ("an array of float64 that", lambda _: dtype(state=(*F8[:4], {"a": 1}, *F8[5:]))),
        ("an array of float64 that", lambda _: dtype(state=(*F8[:5], 800, 8, 0))),
        ("numpy.ndarray((1,), 'O'", lambda _: Calls(np.ndarray, (1,), "O", b"A" * 8)),
        ("an array of {}", lambda _: Calls(RECONSTRUCT, {}, (0,), b"b")),
        ("an array of str", lambda _: array("O", b"A" * 8)),
        ("run bytes(", lambda _: array(dtype(), Calls(bytes, 8))),
        ("from list", lambda _: array(dtype(), [1.0])),
        ("an array of str", lambda _: Calls(SCALAR, "O", b"A" * 8)),
    ],
)
def test_what_would_run_code_is_refused(tmp_path, monkeypatch, wanted, evil, zipped) -> None:
    # Without the switch for the whole process: safe_torch must not depend on it.
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    made = tmp_path / "made by the pickle"
    error = refusal(saved(tmp_path / "a.pth", evil(made), zipped))
    assert not made.exists()
    assert "would have to" in error.found and wanted in error.found
    assert "weights_only=False" in error.fix and "machine" in error.fix


@FORMATS
@pytest.mark.parametrize(
    "evil",
    [
        lambda: array(dtype(), b"A" * 7),
        lambda: array(dtype(), b"A" * 8, shape=(10**6,)),
        lambda: array(dtype(), b"A" * 8, shape=(-1,)),
        lambda: Calls(SCALAR, dtype(), b"A" * 7),
        lambda: dtype(state=(3,)),
        lambda: dtype("no such type"),
    ],
)
def test_numbers_that_do_not_fit_their_bytes(tmp_path, evil, zipped: bool) -> None:
    refusal(saved(tmp_path / "a.pth", evil(), zipped))


@FORMATS
def test_it_does_not_touch_numpys_own_types(tmp_path, zipped: bool) -> None:
    big = dtype(state=(3, ">", *F8[2:]))
    safe_torch_load(saved(tmp_path / "a.pth", array(big, np.array([2.0], ">f8").tobytes()), zipped))
    assert np.dtype("f8").isnative and np.frombuffer(np.float64(2).tobytes())[0] == 2


def test_the_advice_works(tmp_path, monkeypatch) -> None:
    """The command of the message, run where the code may run, gives a file that can be read."""
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.chdir(tmp_path)
    for key in ("state_dict", "model"):
        evil = {key: {"w": torch.arange(4.0)}, "extra": Calls(builtins.len, "abc")}
        torch.save(evil, "FILE")
        command = re.search(r'python -c "(.*)"', refusal(Path("FILE")).fix)
        exec(command[1], {})
        assert torch.equal(safe_torch_load("SAFE.pth")["state_dict"]["w"], torch.arange(4.0))


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"PK\x03\x04", b"<html>", b"\0" * 100])
@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_no_file_of_torch(tmp_path, content: bytes, mmap: bool) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth.*damaged, cut short or no file of torch"):
        safe_torch_load(path, mmap=mmap)


def test_a_missing_file(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        safe_torch_load(tmp_path / "a.pth")


def test_other_peoples_allow_list_stays(tmp_path) -> None:
    with torch.serialization.safe_globals([NotListed]):
        loaded = safe_torch_load(saved(tmp_path / "a.pth", NotListed()))
        assert NotListed in torch.serialization.get_safe_globals()
    assert type(loaded["extra"]) is NotListed


@FORMATS
def test_mapped_and_read_are_the_same(tmp_path, zipped: bool) -> None:
    path = saved(tmp_path / "a.pth", 1, zipped)
    for mmap in (True, False):
        loaded = safe_torch_load(path, mmap=mmap)["state_dict"]["w"]
        assert torch.equal(loaded, torch.arange(4.0))

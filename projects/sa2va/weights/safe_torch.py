"""Reading torch files without running anything of them.

``torch.load(weights_only=True)`` refuses every class but tensors and plain types. Training
checkpoints of mmengine also hold their loss curves (``HistoryBuffer`` and its numpy arrays); those
are let in here, by an exact list, and only while a file is read. A file never gets hold of numpy's
own constructors: ``ndarray(shape, 'O', buffer=...)`` and ``dtype.__setstate__`` turn bytes of the
file into pointers to Python objects.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from projects.sa2va.errors import CheckpointError

_STATISTICS = ("min", "max", "current", "mean")


class _Refused(Exception):
    """What a file wanted to do, and may not."""


def _statistics_method(owner: Any, name: str) -> Any:
    """Stands in for ``builtins.getattr``, which HistoryBuffer's pickle uses for four methods.

    The real one would hand out any attribute of any object of the file.
    """
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise _Refused(f"run getattr({owner!r}, {name!r})")
    return getattr(owner, name)


class _NumberDtype:
    """Stands in for ``numpy.dtype``: numbers and booleans only, no arrays of objects."""

    def __init__(self, code: str, *flags: Any) -> None:
        dtype = np.dtype(code) if isinstance(code, str) else None
        if dtype is None or dtype.kind not in "biuf":
            raise _Refused(f"make an array of {dtype or type(code).__name__}")
        self.dtype = dtype

    def __setstate__(self, state: tuple) -> None:
        # Version, byte order, then what only structured and foreign types have.
        if state[1] not in ("<", ">", "|") or state[2:] != (None, None, None, -1, -1, 0):
            raise _Refused(f"make an array of {self.dtype} that is none: {state!r:.99}")
        self.dtype = self.dtype.newbyteorder(state[1])


class _NumberArray(np.ndarray):
    """Stands in for ``numpy.ndarray``: made by :func:`_empty_array` and its pickled state only."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _NumberArray:
        raise _Refused(f"run numpy.ndarray{args!r:.99}")

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, is_fortran, content = state
        _check_numbers(dtype, content)
        super().__setstate__((version, shape, dtype.dtype, bool(is_fortran), content))

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()  # written again, it is a plain array


def _empty_array(kind: type, *args: Any) -> _NumberArray:
    """Stands in for ``numpy.core.multiarray._reconstruct``: what it gives is filled afterwards."""
    if kind is not _NumberArray:
        raise _Refused(f"make an array of {kind!r}")
    return np.empty(0).view(_NumberArray)


def _number(dtype: _NumberDtype, content: bytes) -> np.generic:
    """Stands in for ``numpy.core.multiarray.scalar``."""
    _check_numbers(dtype, content)
    return np.frombuffer(content, dtype.dtype, count=1)[0]


def _no_bytes(*args: Any) -> bytes:
    """Stands in for ``bytes``, which is how pickle writes the content of an empty array."""
    if args:
        raise _Refused(f"run bytes{args!r:.99}")
    return b""


def _check_numbers(dtype: Any, content: Any) -> None:
    if not isinstance(dtype, _NumberDtype) or not isinstance(content, bytes):
        raise _Refused(f"make an array of {type(dtype).__name__} from {type(content).__name__}")


# (what is given to the file, under which name the file asks for it)
_ALLOWED = [
    HistoryBuffer,
    (_statistics_method, "builtins.getattr"),
    (_NumberDtype, "numpy.dtype"),
    (_NumberArray, "numpy.ndarray"),
    # numpy 2 and numpy 1 name the same function differently.
    (_empty_array, "numpy._core.multiarray._reconstruct"),
    (_empty_array, "numpy.core.multiarray._reconstruct"),
    (_number, "numpy._core.multiarray.scalar"),
    (_number, "numpy.core.multiarray.scalar"),
    (_no_bytes, "builtins.bytes"),
]


def mmengine_objects() -> Any:
    """A context in which torch.load lets in the objects that training checkpoints hold."""
    return torch.serialization.safe_globals(_ALLOWED)


def safe_torch_load(path: str | Path, *, mmap: bool = False) -> Any:
    """Reads a file of ``torch.save`` onto the CPU; nothing of it is executed.

    Args:
        path: the file.
        mmap: map the tensors into memory instead of reading them, where the file allows it.

    Raises:
        CheckpointError: the file would have to run code, is damaged, or is no file of torch.
    """
    path = Path(path)
    try:
        with mmengine_objects():
            if path.suffix == ".safetensors":  # by this name torch would not read a torch file
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            if mmap and zipfile.is_zipfile(path):  # older files cannot be mapped
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged files end in whatever the unpickler stumbles over: IndexError, struct.error,
        # UnicodeDecodeError, OSError (a zip cut short), AssertionError, ...
        raise _refusal(path, error) from error


def refused_code(error: Exception) -> str | None:
    """What a file that torch refused would have run, without torch's advice to load it unsafely."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    return code[1] if code else None


def _refusal(path: Path, error: Exception) -> CheckpointError:
    code = refused_code(error)
    if code or isinstance(error, _Refused):
        wanted = f"run {code}" if code else str(error)
        return CheckpointError(
            found=f"{path} is not a checkpoint that can be read safely: it would have to {wanted}",
            expected="tensors, plain Python types and mmengine's HistoryBuffer; checkpoints are "
            "read with weights_only=True",
            fix="if you trust whoever made it, take the tensors out on a machine where its code "
            "may run:\n    python -c \"import torch; c = torch.load('FILE', map_location='cpu', "
            "weights_only=False); c = c.get('state_dict', c.get('model', c)); "
            "torch.save({'state_dict': c, 'meta': {}}, 'SAFE.pth')\"",
        )
    if isinstance(error, (PermissionError, FileNotFoundError)):
        reason = str(error)
    else:
        reason = f"it is damaged, cut short or no file of torch ({type(error).__name__})"
    return CheckpointError(
        found=f"{path} is not a checkpoint that can be read safely: {reason}",
        expected="a whole file of torch.save, read with weights_only=True",
        fix="check that the file is whole (compare its size or sha256) and give the right one",
    )

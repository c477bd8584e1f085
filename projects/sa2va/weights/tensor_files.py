"""Named tensors in files of any kind, read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from projects.sa2va.errors import CheckpointError, listing

from .safe_torch import safe_torch_load

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER = 100_000_000  # of safetensors, in bytes
# In this order: an index names its shards, and safetensors are read without any pickle.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_NAMES = ("model.safetensors", "pytorch_model.bin")
_SINGLE = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of a file or a folder by name; a tensor is read when it is asked for.

    Args:
        path: a .safetensors file, a file of torch.save (a state dict, or a dict that holds one
            under ``model`` or ``state_dict``), or a folder with one of these or with shards and
            their index.

    Attributes:
        path: as given.
        entries: name to :class:`Entry`.
        extra: what a torch file holds beside its tensors (``meta`` and the like).

    Raises:
        CheckpointError: nothing there, a damaged file, or an index and shards that disagree.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.entries: dict[str, Entry] = {}
        self.extra: dict[str, Any] = {}
        self._handles: dict[Path, Any] = {}
        index = None
        if self.path.is_dir():
            index = next((i for name in _INDEXES if (i := self.path / name).exists()), None)
        if index is not None:
            self._read_shards(index)
        else:
            self._open(_single_file(self.path) if self.path.is_dir() else self.path)

    def _read_shards(self, index: Path) -> None:
        try:
            where: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(where.values()))
            absent = [shard for shard in shards if not (index.parent / shard).is_file()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                found=f"{index} cannot be read: {error!r}",
                expected="the index of sharded weights, with weight_map",
                fix="download the folder again",
            ) from error
        if absent:
            raise CheckpointError(
                found=f"{index} names {listing(absent)}, which {_is_or_are(absent)} not there",
                expected=f"all {len(shards)} shards beside their index",
                fix="download the missing shards, or the folder again",
            )
        for shard in shards:
            self._open(index.parent / shard)
        lost = sorted(
            n for n, s in where.items() if n not in self or self.entries[n].file.name != s
        )
        unnamed = sorted(self.entries.keys() - where.keys())
        if lost or unnamed:
            raise CheckpointError(
                found=f"{index} and its shards disagree: "
                + "; ".join(
                    f"{len(names)} {what}: {listing(names, 5)}"
                    for what, names in (("not where it says", lost), ("not in it", unnamed))
                    if names
                ),
                expected="the shards that were written together with the index",
                fix="download the folder again, all files of one revision",
            )

    def _open(self, file: Path) -> None:
        if is_safetensors(file):
            self._open_safetensors(file)
        else:
            self._open_torch(file)

    def _open_safetensors(self, file: Path) -> None:
        try:
            handle = safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                found=f"{file} is damaged or cut short: {error}",
                expected="a whole safetensors file",
                fix="download or copy the file again (compare its size or sha256)",
            ) from error
        self._handles[file] = handle
        for name in handle.keys():  # noqa: SIM118 (it is no mapping)
            piece = handle.get_slice(name)
            if piece.get_dtype() not in _DTYPES:
                raise CheckpointError(
                    found=f"{name} in {file} is stored as {piece.get_dtype()}",
                    expected=f"one of {', '.join(_DTYPES)}: quantized weights are not read",
                    fix="give the weights as published, in bfloat16, float16 or float32",
                )
            self._add(name, Entry(file, tuple(piece.get_shape()), _DTYPES[piece.get_dtype()]))

    def _open_torch(self, file: Path) -> None:
        content = safe_torch_load(file, mmap=True)
        tensors = content
        if isinstance(content, dict):
            for key in ("state_dict", "model"):
                if isinstance(content.get(key), dict):
                    tensors = content[key]
                    self.extra = {k: v for k, v in content.items() if k != key}
                    break
        wrong = (
            [type(content).__name__]
            if not isinstance(tensors, dict)
            else sorted({type(v).__name__ for v in tensors.values() if not torch.is_tensor(v)})
        )
        if wrong:
            raise CheckpointError(
                found=f"{file} holds {listing(wrong, 5)} where weights were expected",
                expected="a state dict (name to tensor), by itself or under 'model' or "
                "'state_dict'",
                fix="give the file with the weights",
            )
        self._handles[file] = tensors
        for name, tensor in tensors.items():
            self._add(str(name), Entry(file, tuple(tensor.shape), tensor.dtype))

    def _add(self, name: str, entry: Entry) -> None:
        if name in self.entries:
            raise CheckpointError(
                found=f"{name} is in {self.entries[name].file} and again in {entry.file}",
                expected="each tensor once",
                fix="download the folder again, all files of one revision",
            )
        self.entries[name] = entry

    def __getitem__(self, name: str) -> Tensor:
        file = self.entries[name].file
        handle = self._handles[file]
        return handle[name] if isinstance(handle, dict) else handle.get_tensor(name)

    def lazily(self, name: str) -> Any:
        """The tensor, or a slice of safetensors that is read when it is indexed."""
        handle = self._handles[self.entries[name].file]
        return handle[name] if isinstance(handle, dict) else handle.get_slice(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return list(self._handles)


def has_tensors(path: Path) -> bool:
    """Whether a file or folder may hold weights, and all shards that an index names."""
    if path.is_file():
        return True
    for name in _INDEXES:
        if (path / name).exists():
            try:
                index = json.loads((path / name).read_text(encoding="utf-8"))
                return all((path / shard).exists() for shard in set(index["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return False  # a damaged index: the hub may have a whole one
    return any(file.suffix in _SINGLE for file in path.iterdir())


def _single_file(folder: Path) -> Path:
    for suffix in _SINGLE:
        found = sorted(folder.glob(f"*{suffix}"))
        # Trainers leave others beside it (training_args.bin).
        named = [file for file in found if file.name in _NAMES]
        if len(named or found) == 1:
            return (named or found)[0]
        if found:
            raise CheckpointError(
                found=f"{len(found)} {suffix} files and no index in {folder}: "
                + listing([file.name for file in found], 5),
                expected="one file of weights, or shards with their index "
                f"({_INDEXES[0]} or {_INDEXES[1]})",
                fix="add the index, or give the file itself",
            )
    raise CheckpointError(
        found=f"no weights in {folder} (it holds "
        f"{listing(sorted(p.name for p in folder.iterdir()), 5) or 'nothing'})",
        expected="a .safetensors, .bin, .pt or .pth file, or shards with their index",
        fix="download the folder again, or give another one",
    )


def is_safetensors(file: Path) -> bool:
    """By content: eight bytes of header length, then JSON; torch's files are zips or pickles."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise CheckpointError(
            found=f"{file} cannot be read: {error.strerror}",
            expected="a file of weights",
            fix="give a .safetensors or .pt file, or the folder of a model",
        ) from error
    # The length, not the first bytes, tells them apart: a header may be 0x..80 bytes long, and
    # pickles begin with 80; a pickle's or zip's first eight bytes make no such length.
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER


def _is_or_are(items: list[str]) -> str:
    return "is" if len(items) == 1 else "are"

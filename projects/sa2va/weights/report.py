"""What was loaded from where, part by part, to the last tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from projects.sa2va.columns import columns

from .parts import by_part


@dataclass
class PartRow:
    """One part of the model.

    Attributes:
        part: its name (see ``models/parameters.py``).
        source: file or folder, or how it was initialised.
        tensors: tensors of this part in the source.
        loaded: those that went into the model.
        ignored: reason to number of those that did not.
        dtype: dtypes in the source.
        checksum: of all tensors of the part under our names; equal for equal weights in any
            layout. See :func:`checksum`.
    """

    part: str
    source: str
    tensors: int
    loaded: int
    ignored: dict[str, int] = field(default_factory=dict)
    dtype: str = ""
    checksum: str = ""


@dataclass
class LoadReport:
    """All parts of a model.

    Attributes:
        rows: parts in the order of loading; a part that a checkpoint replaces has a row for its
            base and one for the checkpoint.
        notes: what else a reader should know (tables copied whole, rows grown, ...).
        source: the checkpoint, if one was loaded.
        format: what it is.
        sha256: hash of the file (of the sorted files of a folder).
        iteration: training iteration it was written at.
        weights: which of the checkpoint's were taken, ``averaged`` or ``raw``.
    """

    rows: list[PartRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: str = ""
    format: str = ""
    sha256: str = ""
    iteration: int | None = None
    weights: str = ""

    def text(self) -> str:
        """A table for the log."""
        head = ("part", "tensors", "loaded", "dtype", "checksum", "source")
        rows = [
            (r.part, str(r.tensors), str(r.loaded), r.dtype, r.checksum, r.source)
            for r in self.rows
        ]
        first, *lines = columns([head, *rows], right=(1, 2))
        text = []
        if self.source:
            text.append(
                f"Loaded {self.source} ({self.format}, {self.weights} weights, iteration "
                f"{self.iteration}, sha256 {self.sha256[:16]}); nothing missing, nothing left over"
            )
        text.append(first)
        for row, line in zip(self.rows, lines, strict=True):
            text.append(line)
            text += [f"  not loaded: {count} ({reason})" for reason, count in row.ignored.items()]
        return "\n".join([*text, *(f"note: {note}" for note in self.notes)])

    def checkpoint(self) -> dict[str, Any] | None:
        """Which checkpoint was loaded, for metrics.json; None for the model as it is built."""
        keys = ("source", "format", "sha256", "iteration", "weights")
        return {key: getattr(self, key) for key in keys} if self.source else None

    def as_dict(self) -> dict[str, Any]:
        """Parts and notes in plain types, for metrics.json."""
        return {"parts": [asdict(row) for row in self.rows], "notes": self.notes}


def dtype_names(dtypes: Iterable[torch.dtype]) -> str:
    """``bfloat16+float32`` and the like."""
    return "+".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))


def checksum(names: Iterable[str], get: Callable[[str], Tensor], threads: int = 8) -> str:
    """Hashes every byte of the named tensors, with names, shapes and dtypes.

    Args:
        names: our names (see ``tables.py``); their order does not matter.
        get: gives the tensor of a name.
        threads: tensors hashed at the same time.

    Returns:
        16 hexadecimal digits of SHA-256.
    """

    def one(name: str) -> bytes:
        tensor = get(name).detach().cpu().contiguous()
        digest = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
        return digest.digest()

    with ThreadPoolExecutor(threads) as pool:
        return hashlib.sha256(b"".join(pool.map(one, sorted(names)))).hexdigest()[:16]


def tensor_rows(tensors: Mapping[str, Tensor], source: str) -> list[PartRow]:
    """Report rows of tensors (under our names) that were all loaded."""
    return [
        PartRow(
            part=part,
            source=source,
            tensors=len(names),
            loaded=len(names),
            dtype=dtype_names(tensors[name].dtype for name in names),
            checksum=checksum(names, tensors.__getitem__),
        )
        for part, names in by_part(tensors).items()
    ]

"""What a checkpoint says of itself, and the training state in plain types."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from projects.sa2va.models import SegmentationModel
from projects.sa2va.versions import installed_version

from .store import FORMAT

DATA_SPLITS_FILE = "data_splits.json"
TRAINING_RECORD = "training_record"
"""Key in that file's training split, and in a checkpoint's meta data: what tells its frames."""
_LIBRARIES = ("torch", "transformers", "peft", "mmengine", "numpy", "scikit-image", "scipy")
_SCALARS = (str, int, float, np.bool_, np.integer, np.floating)


def provenance(model: SegmentationModel, work_dir: str | Path) -> dict[str, Any]:
    """Provenance of a checkpoint: format, base weights, added tokens, splits, commit, versions."""
    path = Path(work_dir) / DATA_SPLITS_FILE
    splits = json.loads(path.read_text()) if path.is_file() else None
    # Apart, so that whoever prints the splits does not print 80 bytes a frame.
    record = (splits or {}).get("train", {}).pop(TRAINING_RECORD, None)
    return {
        "format": FORMAT,
        "model": model.kind,
        "base_fingerprint": dict(model.base_fingerprint),
        "added_tokens": model.added_tokens(),
        "data_splits": splits,
        TRAINING_RECORD: record,
        "git_commit": _git_commit(),
        "torch": str(torch.__version__),
    }


def software() -> dict[str, str | None]:
    """What a test ran on, for metrics.json: commit of this code, versions of what computes."""
    versions = {name: installed_version(name) for name in _LIBRARIES}
    return {"git_commit": _git_commit(), "python": platform.python_version(), **versions}


def _git_commit() -> str | None:
    """Commit of the code, with ``+changes`` when the tree is not clean; None outside git."""
    here = Path(__file__).resolve().parent
    try:
        commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        head, changes = (
            subprocess.run(
                ["git", *command], cwd=here, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changes else "")


def pack_message_hub(hub: MessageHub) -> dict[str, Any]:
    """State of the message hub as tensors and plain types (mmengine's own needs pickle)."""
    state = hub.state_dict()
    scalars = {
        key: {
            "values": torch.tensor(np.asarray(buffer.data[0], dtype=np.float64)),
            "counts": torch.tensor(np.asarray(buffer.data[1], dtype=np.float64)),
        }
        for key, buffer in state["log_scalars"].items()
    }
    info = {
        key: _plain(value)
        for key, value in state["runtime_info"].items()
        if isinstance(value, _SCALARS)
        or (isinstance(value, list) and all(isinstance(item, _SCALARS) for item in value))
    }
    kept = {key: flag for key, flag in state["resumed_keys"].items() if key in {**scalars, **info}}
    return {"scalars": scalars, "runtime_info": info, "resumed_keys": kept}


def _plain(value: Any) -> Any:
    """The same value without numpy's scalars and subclasses of float and str."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    kind = next(kind for kind in (bool, int, float, str) if isinstance(value, kind))
    return kind(value)


def unpack_message_hub(hub: MessageHub, packed: dict[str, Any]) -> None:
    """Restores what :func:`pack_message_hub` packed."""
    buffers = {
        key: HistoryBuffer(value["values"].tolist(), value["counts"].tolist())
        for key, value in packed["scalars"].items()
    }
    hub.load_state_dict(
        {
            "log_scalars": buffers,
            "runtime_info": packed["runtime_info"],
            "resumed_keys": packed["resumed_keys"],
        }
    )

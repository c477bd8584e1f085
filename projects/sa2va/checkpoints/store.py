"""Reading and writing our own checkpoints: atomic, safe to load, strict.

A checkpoint is one file (or, under DeepSpeed, one folder) with ``state_dict`` (what was trained,
under the model's own names), ``meta`` (provenance; see ``provenance.py``) and, for resuming,
``optimizer``, ``param_schedulers`` and ``message_hub``. It holds tensors and plain Python types
only, so that it loads with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS

from projects.sa2va.errors import CheckpointError, listing, suggest
from projects.sa2va.models import Sa2VAModel

from .deepspeed_folder import is_deepspeed_folder, read_deepspeed_folder
from .stored_config import read_stored_config

FORMAT = "sa2va-vessel/1"


@dataclass
class LoadReport:
    """What was loaded from where.

    Attributes:
        source: file or folder.
        format: kind of checkpoint.
        sha256: hash of the file (of the sorted files of a folder).
        iteration: training iteration it was written at.
        tensors: number of tensors loaded, by part.
    """

    source: str
    format: str
    sha256: str
    iteration: int
    tensors: dict[str, int]

    def text(self) -> str:
        """One screen for the log."""
        parts = "\n".join(f"  {part:<22} {n:>5} tensors" for part, n in self.tensors.items())
        return (
            f"Loaded {self.source} ({self.format}, iteration {self.iteration}, sha256 "
            f"{self.sha256[:16]}); nothing missing, nothing left over:\n{parts}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for metrics.json."""
        return asdict(self)


def write_atomically(payload: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes a checkpoint so that ``path`` is either the old file or the whole new one.

    Raises:
        CheckpointError: the file cannot be written (disk full, no permission); an older file of
            that name is untouched.
        TypeError: the payload holds something else than tensors and plain types.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(temporary)
        if unsafe:
            raise TypeError(f"a checkpoint must load with weights_only=True, but holds {unsafe}")
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            found=f"{path} cannot be written: {error}",
            expected="a folder with room for the checkpoint; earlier checkpoints are untouched",
            fix="free some space or choose another --work-dir, then go on with --resume",
        ) from error
    finally:
        # Also after Ctrl-C and after a payload that cannot be saved: half a checkpoint is no use.
        with contextlib.suppress(OSError):
            temporary.unlink()


def sha256_of(path: str | os.PathLike) -> str:
    """Hash of a file, or of the names and contents of a folder's files."""
    path = Path(path)
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a checkpoint of ours, file or DeepSpeed folder, onto the CPU.

    Raises:
        CheckpointError: no such file; not a checkpoint; a checkpoint of something else.
    """
    path = Path(path)
    if not path.exists():
        near = [p.name for p in path.parent.glob("*") if p.suffix == ".pth" or p.is_dir()]
        raise CheckpointError(
            found=f"no checkpoint at {path}" + suggest(path.name, near),
            expected="a file written by tools/train.py (iter_*.pth, best_*.pth)",
            fix="give the right --checkpoint; training writes them into its --work-dir, and "
            "last_checkpoint there names the newest",
        )
    if path.is_dir():
        if not is_deepspeed_folder(path):
            raise _not_a_checkpoint(path, "a folder without DeepSpeed's *model_states.pt files")
        checkpoint = read_deepspeed_folder(path)
    else:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # Damaged files end in whatever the unpickler stumbles over: IndexError, struct.error,
            # UnicodeDecodeError, OSError (a zip cut short), AssertionError, ...
            raise _not_a_checkpoint(path, _reason(error)) from error
    if not isinstance(checkpoint, dict):
        raise _not_a_checkpoint(path, f"it holds a {type(checkpoint).__name__}")
    if not isinstance(checkpoint.get("state_dict"), dict) or not isinstance(
        checkpoint.get("meta"), dict
    ):
        raise _not_a_checkpoint(
            path, f"it holds {listing(checkpoint, 5)}, and not state_dict and meta"
        )
    found = checkpoint["meta"].get("format")
    if found != FORMAT:
        raise CheckpointError(
            found=f"{path} is a checkpoint of another program or version (meta.format={found!r})",
            expected=f"meta.format={FORMAT!r}, as tools/train.py writes",
            fix="give a checkpoint that tools/train.py wrote",
        )
    return checkpoint


def _reason(error: Exception) -> str:
    """What torch found, in one line, without its advice to load unsafely."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return f"it would have to run {code[1]}"
    if isinstance(error, PermissionError):
        return str(error)
    return f"it is damaged, cut short or no file of torch ({type(error).__name__})"


def _not_a_checkpoint(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        found=f"{path} is not a checkpoint that can be read safely: {reason}",
        expected="a file written by tools/train.py; checkpoints are read with weights_only=True",
        fix="check that the file is whole (compare its size or sha256) and give the right one",
    )


def load_trained(
    model: Sa2VAModel, checkpoint: dict[str, Any], path: str | os.PathLike
) -> LoadReport:
    """Puts the trained weights of ``checkpoint`` into ``model``, strictly.

    Raises:
        CheckpointError: another architecture, other trained parts, or other frozen base weights
            or added tokens than the checkpoint was trained with.
    """
    meta = checkpoint["meta"]
    counts = model.load_trained_state_dict(checkpoint["state_dict"], str(path))
    other = [
        part
        for part, value in meta["base_fingerprint"].items()
        if model.base_fingerprint.get(part) != value
    ]
    if other:
        raise CheckpointError(
            found=f"{path} was trained over other frozen weights: {', '.join(other)} differ",
            expected="the base weights of training: " + _describe_base(meta),
            fix="set model.mllm.pretrained and model.grounding.pretrained (or the seeds of random "
            "weights) as in training; meta.cfg of the checkpoint holds that config",
        )
    tokens = added_tokens(model)
    if meta["added_tokens"] != tokens:
        raise CheckpointError(
            found=f"{path} was trained with added tokens {meta['added_tokens']}, the model "
            f"has {tokens}",
            expected="the tokenizer of training: the same names with the same ids",
            fix="set processor.tokenizer and processor.added_tokens as in training",
        )
    return LoadReport(
        source=str(path),
        format="DeepSpeed folder" if Path(path).is_dir() else "checkpoint file",
        sha256=sha256_of(path),
        iteration=int(meta["iter"]),
        tensors=counts,
    )


def added_tokens(model: Sa2VAModel) -> dict[str, int]:
    """Names and ids of the tokens that were added to the base tokenizer."""
    ids = model.processor.added_token_ids
    names = model.processor.tokenizer.convert_ids_to_tokens(ids)
    return dict(zip(names, ids, strict=True))


def check_resumable(checkpoint: dict[str, Any], path: str | os.PathLike, world_size: int) -> None:
    """Raises CheckpointError when a run could not be continued exactly from ``checkpoint``.

    Args:
        checkpoint: what :func:`read_checkpoint` gave for a file.
        path: where it came from, for messages.
        world_size: number of processes of this run.
    """
    missing = [key for key in ("optimizer", "message_hub") if key not in checkpoint]
    start_anew = f"to begin a new run from these weights: --cfg-options load_from={path}"
    if missing:
        raise CheckpointError(
            found=f"{path} holds no {' and no '.join(missing)}",
            expected="a checkpoint with training state (iter_*.pth of a run without --deepspeed)",
            fix=f"resume from the iter_*.pth that last_checkpoint names; {start_anew}",
        )
    written_by = checkpoint["meta"]["world_size"]
    if written_by != world_size:
        raise CheckpointError(
            found=f"{path} was written by {written_by} processes, this run has {world_size}",
            expected="the same number of processes: the order of frames depends on it",
            fix=f"start with {written_by} processes; {start_anew}",
        )


def _describe_base(meta: dict[str, Any]) -> str:
    return ", ".join(f"{part} {value}" for part, value in meta["base_fingerprint"].items())


def build_model_from_checkpoint(path: str | os.PathLike) -> tuple[Sa2VAModel, LoadReport]:
    """Builds the model from the config stored in a checkpoint of ours, and loads it.

    Pretrained base weights are read again from where that config says. The config is read as data
    and never executed.

    Raises:
        CheckpointError: as :func:`read_checkpoint`, :func:`read_stored_config` and
            :func:`load_trained`.
    """
    checkpoint = read_checkpoint(path)
    config = read_stored_config(checkpoint["meta"]["cfg"], str(path))
    model = MODELS.build(config.model)
    return model.eval(), load_trained(model, checkpoint, path)

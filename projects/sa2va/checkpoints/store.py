"""Reading and writing our own checkpoints: atomic, safe to load, strict.

A checkpoint is one file (or, under DeepSpeed, one folder) with ``state_dict`` (what was trained,
under the model's own names), ``meta`` (provenance; see ``provenance.py``) and, for resuming,
``optimizer``, ``param_schedulers`` and ``message_hub``. ``averaged`` holds the same names as
``state_dict`` where the run averaged its weights (``engine/ema.py``; ``meta.averaged`` says how).
``changed_frozen`` is there where a checkpoint of the reference replaced frozen weights of the base
(whole embedding tables). It holds tensors and plain Python types only, so that it loads with
``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from mmengine.registry import MODELS
from torch import Tensor

from projects.sa2va.errors import CheckpointError, ConfigError, listing, suggest
from projects.sa2va.files import write_atomic
from projects.sa2va.models import Sa2VAModel, SegmentationModel, fingerprint
from projects.sa2va.models.parameters import frozen_tensors
from projects.sa2va.models.pretrained import PROJECTOR_FOLDER
from projects.sa2va.models.trained import change_frozen
from projects.sa2va.weights import LoadReport, PartRow, TensorFiles, safe_torch_load
from projects.sa2va.weights.layouts import LAYOUTS, Layout, recognise
from projects.sa2va.weights.report import tensor_rows
from projects.sa2va.weights.tables import OUR_TRAINING
from projects.sa2va.weights.tensor_files import is_safetensors

from .deepspeed_folder import is_deepspeed_folder, read_deepspeed_folder
from .foreign import load_foreign, read_adapter
from .lora_scale import check_scale
from .stored_config import read_stored_config

FORMAT = "sa2va-vessel/1"
AVERAGED, RAW = "averaged", "raw"
"""Which weights of a checkpoint are meant: their average over training, or the last step's."""


def write_atomically(payload: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes a checkpoint so that ``path`` is either the old file or the whole new one.

    Raises:
        CheckpointError: the file cannot be written (disk full, no permission); an older file of
            that name is untouched.
        TypeError: the payload holds something else than tensors and plain types.
    """
    path = Path(path)

    def write(file: IO[bytes]) -> None:
        torch.save(payload, file)
        file.flush()
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file.name)
        if unsafe:
            raise TypeError(f"a checkpoint must load with weights_only=True, but holds {unsafe}")

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, write)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            found=f"{path} cannot be written: {error}",
            expected="a folder with room for the checkpoint; earlier checkpoints are untouched",
            fix="free some space or choose another --work-dir, then go on with --resume",
        ) from error


def sync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` durable: a rename is not, until its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def read_checkpoint(path: str | os.PathLike, *, mmap: bool = False) -> dict[str, Any]:
    """Reads a training checkpoint onto the CPU: of ours or of the reference, file or folder.

    Args:
        path: the file or folder.
        mmap: leave the tensors of a file on the disk, for who only looks at names and meta data.

    Returns:
        ``state_dict`` and ``meta``, and ``layout``: name of the layout (``weights/layouts.py``)
        of the state dict: ``trainable`` (ours), ``reference-training`` or ``adapter``.

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
    if is_deepspeed_folder(path):
        checkpoint = read_deepspeed_folder(path)
    elif path.is_dir() or is_safetensors(path):
        return _read_folder(path)
    else:
        checkpoint = safe_torch_load(path, mmap=mmap)
    if not isinstance(checkpoint, dict):
        raise _not_a_checkpoint(path, f"it holds a {type(checkpoint).__name__}")
    state = checkpoint.get("state_dict", checkpoint.get("model"))
    if not isinstance(state, dict) or not isinstance(checkpoint.get("meta", {}), dict):
        raise _not_a_checkpoint(
            path, f"it holds {listing(checkpoint, 5)}, and not state_dict and meta"
        )
    other = [str(name) for name, value in state.items() if not torch.is_tensor(value)]
    if other:
        raise _not_a_checkpoint(path, f"no tensors among its weights: {listing(other, 5)}")
    checkpoint.setdefault("meta", {})
    found = checkpoint["meta"].get("format")
    if found == FORMAT:
        return {**checkpoint, "layout": "trainable"}
    try:
        layout = recognise([str(name) for name in state], path)
    except CheckpointError:
        layout = None
    if layout is not None and layout.name == "reference-training":
        return {**checkpoint, "state_dict": state, "layout": layout.name}
    if layout is not None and layout.name != "trainable":
        raise _base_weights(path, layout)
    raise CheckpointError(
        found=f"{path} is a checkpoint of another program or version (meta.format={found!r})",
        expected=f"meta.format={FORMAT!r}, as tools/train.py writes, or the names of the "
        "reference's training checkpoints",
        fix="give a checkpoint that tools/train.py wrote, or that the reference's training wrote",
    )


def _read_folder(path: Path) -> dict[str, Any]:
    """An adapter folder; any other folder of weights is an error that says what it is."""
    if path.is_dir() and (any(path.glob("*_states.pt")) or not any(path.iterdir())):
        raise _not_a_checkpoint(path, "a folder without DeepSpeed's *model_states.pt files")
    files = TensorFiles(path)
    layout = recognise(files.keys(), path)
    if layout.name != "adapter":
        raise _base_weights(path, layout)
    return read_adapter(path)


def _base_weights(path: Path, layout: Layout) -> CheckpointError:
    if layout.name == "sa2va" or (path / PROJECTOR_FOLDER).is_dir():
        key = "model.pretrained (and model.mllm.pretrained=None, model.grounding.pretrained=None)"
    else:
        part = "mllm" if layout.name.startswith("internvl") else "grounding"
        key = f"model.{part}.pretrained"
    return CheckpointError(
        found=f"{path} holds base weights: {layout.what}",
        expected="a training checkpoint, which goes on top of base weights",
        fix=f"name it in {key}; tools/test.py without --checkpoint scores the model as it is built",
    )


def _not_a_checkpoint(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        found=f"{path} is not a checkpoint that can be read safely: {reason}",
        expected="a file written by tools/train.py; checkpoints are read with weights_only=True",
        fix="check that the file is whole (compare its size or sha256) and give the right one",
    )


def choose_weights(
    checkpoint: Mapping[str, Any], path: str | os.PathLike, weights: str | None = None
) -> tuple[Mapping[str, Tensor], str]:
    """The state dict that is meant, and what it is: ``averaged`` or ``raw``.

    Args:
        checkpoint: what :func:`read_checkpoint` gave.
        path: where it came from, for messages.
        weights: ``averaged`` or ``raw``; None is the average where the checkpoint has one.

    Raises:
        ConfigError: ``weights`` is neither.
        CheckpointError: the average is asked for and there is none.
    """
    if weights not in (None, AVERAGED, RAW):
        raise ConfigError(
            found=f"weights={weights!r}",
            expected=f"{AVERAGED!r} or {RAW!r}" + suggest(str(weights), (AVERAGED, RAW)),
            fix=f"correct --weights (test_cfg.weights), or leave it out: {AVERAGED!r} where the "
            "checkpoint has an average",
        )
    average = checkpoint.get(AVERAGED)
    if weights == AVERAGED and average is None:
        raise CheckpointError(
            found=f"{path} holds no averaged weights",
            expected="a checkpoint of a run with WeightEMAHook in custom_hooks",
            fix=f"leave --weights out, or --weights {RAW}",
        )
    if average is None or weights == RAW:
        return checkpoint["state_dict"], RAW
    return average, AVERAGED


def load_trained(
    model: SegmentationModel,
    checkpoint: dict[str, Any],
    path: str | os.PathLike,
    weights: str | None = None,
) -> LoadReport:
    """Puts the trained weights of ``checkpoint`` into ``model``, strictly.

    Args:
        model: built over the base weights of that training.
        checkpoint: what :func:`read_checkpoint` gave.
        path: where it came from.
        weights: see :func:`choose_weights`; a run that goes on takes the raw ones.

    Returns:
        The report of all parts: base weights, and what the checkpoint replaced.

    Raises:
        CheckpointError: another architecture, other trained parts, another scale of LoRA, or other
            frozen base weights or added tokens than the checkpoint was trained with.
    """
    check_kind(model.kind, checkpoint["meta"], path)
    report = model.load_report()
    report.source, report.iteration = str(path), checkpoint["meta"].get("iter")
    state, report.weights = choose_weights(checkpoint, path, weights)
    checkpoint = {**checkpoint, "state_dict": state}
    if checkpoint["layout"] == "trainable":
        report.format = "DeepSpeed folder" if Path(path).is_dir() else "checkpoint file"
        report.rows += _load_ours(model, checkpoint, path)
    else:
        rows, notes = load_foreign(model, checkpoint, path)
        report.format = next(x.what for x in LAYOUTS if x.name == checkpoint["layout"])
        report.rows += rows
        report.notes += notes
    # After the shapes: of another rank, another scale is the smaller news.
    report.notes += check_scale(model, checkpoint, str(path))
    if model.changed_frozen:
        model.base_fingerprint = fingerprint(frozen_tensors(model))
        report.notes.append(
            f"{len(model.changed_frozen)} frozen tensors replaced by the checkpoint's: "
            + listing(model.changed_frozen, 5)
        )
    # After frozen weights were replaced: the fingerprint in a checkpoint is of what it was with.
    if checkpoint["layout"] == "trainable" or "base_fingerprint" in checkpoint["meta"]:
        _check_base(model, checkpoint["meta"], path)
    report.sha256 = sha256_of(path)
    return report


def check_kind(kind: str, meta: dict[str, Any], path: str | os.PathLike) -> None:
    """Raises CheckpointError when a checkpoint is of another class of model.

    Args:
        kind: ``model.type`` of the config.
        meta: of the checkpoint; without ``model`` it is a Sa2VA's.
        path: where it came from, for messages.
    """
    found = meta.get("model", Sa2VAModel.__name__)
    if found != kind:
        raise CheckpointError(
            found=f"{path} is a checkpoint of a {found}, and model.type={kind!r}",
            expected=f"a checkpoint of a {kind}",
            fix="give the config that it was trained with (meta.cfg of the checkpoint holds it), "
            "or a checkpoint of this config",
        )


def _load_ours(
    model: SegmentationModel, checkpoint: dict[str, Any], path: str | os.PathLike
) -> list[PartRow]:
    meta, state = checkpoint["meta"], checkpoint["state_dict"]
    changed = checkpoint.get("changed_frozen", {})
    model.load_trained_state_dict(state, str(path))
    if changed:
        now = change_frozen(model, changed, str(path))
        model.changed_frozen = sorted({*model.changed_frozen, *now})
    tokens = model.added_tokens()
    if meta["added_tokens"] != tokens:
        raise CheckpointError(
            found=f"{path} was trained with added tokens {meta['added_tokens']}, the model "
            f"has {tokens}",
            expected="the tokenizer of training: the same names with the same ids",
            fix="set processor.tokenizer and processor.added_tokens as in training",
        )
    renamed = OUR_TRAINING.to_ours([*state, *changed]).by_target()
    tensors = {name: {**state, **changed}[p.sources[0]] for name, p in renamed.items()}
    return tensor_rows(tensors, str(path))


def _check_base(model: SegmentationModel, meta: dict[str, Any], path: str | os.PathLike) -> None:
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


def changed_frozen_state(model: SegmentationModel) -> dict[str, Tensor]:
    """Frozen weights that are not the base's any more, on the CPU, for a checkpoint."""
    own = model.state_dict(keep_vars=True)
    return {name: own[name].detach().cpu().clone() for name in model.changed_frozen}


def check_resumable(checkpoint: dict[str, Any], path: str | os.PathLike) -> None:
    """Raises CheckpointError when a run could not be continued from ``checkpoint``.

    Args:
        checkpoint: what :func:`read_checkpoint` gave.
        path: where it came from, for messages.
    """
    missing = [key for key in ("optimizer", "message_hub") if key not in checkpoint]
    start_anew = f"to begin a new run from these weights: --cfg-options load_from={path}"
    if checkpoint["layout"] != "trainable":
        raise CheckpointError(
            found=f"{path} was written by another program (layout: {checkpoint['layout']})",
            expected="a checkpoint of tools/train.py: an optimiser's state fits no other model",
            fix=start_anew,
        )
    if missing:
        raise CheckpointError(
            found=f"{path} holds no {' and no '.join(missing)}",
            expected="a checkpoint with training state (iter_*.pth)",
            fix=f"resume from the iter_*.pth that last_checkpoint names; {start_anew}",
        )


def _describe_base(meta: dict[str, Any]) -> str:
    return ", ".join(f"{part} {value}" for part, value in meta["base_fingerprint"].items())


def build_model_from_checkpoint(path: str | os.PathLike) -> tuple[SegmentationModel, LoadReport]:
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

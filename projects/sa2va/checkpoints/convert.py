"""From any checkpoint or whole model that this project reads to a model, ready for export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS

from projects.sa2va.config import load_config
from projects.sa2va.errors import CheckpointError, ConfigError, listing
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.pretrained import Sa2VAWeights
from projects.sa2va.weights import LoadReport
from projects.sa2va.weights.layouts import open_source
from projects.sa2va.weights.parts import MEMORY
from projects.sa2va.weights.published_configs import tile_sizes

from .deepspeed_folder import is_deepspeed_folder
from .export import (
    check_out,
    export_adapter,
    export_native,
    export_notes,
    export_sa2va,
)
from .lora_scale import LORA_SCALE, scale_of
from .provenance import provenance
from .store import (
    AVERAGED,
    FORMAT,
    changed_frozen_state,
    check_kind,
    load_trained,
    read_checkpoint,
    sha256_of,
    write_atomically,
)
from .stored_config import read_stored_config

TARGETS = ("sa2va", "native", "adapter", "trainable")


def load_any(
    path: Path, config: str | None, options: dict[str, Any] | None, dtype: torch.dtype
) -> tuple[Sa2VAModel, LoadReport, dict[str, Any]]:
    """Builds the model that ``path`` is, or belongs to.

    Args:
        path: training checkpoint (file, DeepSpeed folder, adapter folder) or whole Sa2VA folder.
        config: config file of the model; needed for checkpoints that do not hold one of ours.
        options: overrides of the config.
        dtype: dtype in which a whole folder is loaded; a checkpoint's config has its own.

    Returns:
        The model, the report of what was loaded, and the ``meta`` of the checkpoint.

    Raises:
        UserError: as ``read_checkpoint``, ``load_config`` and the model.
    """
    if options and config is None:
        raise ConfigError(
            found=f"--cfg-options without --config ({listing(options)})",
            expected="a config file that the options change; the config inside a checkpoint, or of "
            "a whole model, is used as it is",
            fix="add --config CONFIG, or leave --cfg-options out",
        )
    if not path.exists() or path.is_file() or is_deepspeed_folder(path) or _is_adapter(path):
        checkpoint = read_checkpoint(path)
        meta = checkpoint["meta"]
        if config is not None:
            cfg = load_config(config, options)
            meta = {**meta, "cfg": cfg.pretty_text}
        elif checkpoint["layout"] == "trainable":
            cfg = read_stored_config(meta["cfg"], str(path))
        else:
            raise ConfigError(
                found=f"{path} without --config: it does not say which base it stands on",
                expected="the config of the model: base weights and LoRA's rank and alpha",
                fix="add --config CONFIG --cfg-options model.pretrained=<base of that training> "
                "model.mllm.lora.r=... model.mllm.lora.lora_alpha=...",
            )
        check_kind(Sa2VAModel.__name__, meta, path)
        model = MODELS.build(cfg.model).eval()
        return model, load_trained(model, checkpoint, path), meta
    if config is not None:
        raise ConfigError(
            found=f"--config beside {path}, which is a whole model",
            expected="no config: the folder has its own",
            fix="leave --config out; to start training from it set model.pretrained",
        )
    model = whole_model(path, dtype)
    return model, model.load_report(), {}


def whole_model(path: Path, dtype: torch.dtype) -> Sa2VAModel:
    """Builds a whole Sa2VA as its folder has it, nothing added, in the dtype of its export.

    Raises:
        UserError: not a whole Sa2VA, or damaged.
    """
    mllm = open_source(Sa2VAWeights(str(path)).folder)
    name = str(dtype).removeprefix("torch.")
    model = Sa2VAModel(
        pretrained=str(path),
        autocast=None,
        processor={"tokenizer": {"type": "pretrained", "path": str(path)}, **_tiles(mllm.config)},
        mllm={
            "type": "InternVLAdapter",
            "dtype": name,
            "train_token_rows": False,
            "train_projector": False,
        },
        grounding={"type": "Sam2Adapter", "dtype": name, "train_mask_decoder": False},
    )
    return model.eval()


def _tiles(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of the processor that the published config knows."""
    vision = config["vision_config"]
    ratio = config.get("downsample_ratio", 0.5)
    size, _, tokens = tile_sizes(vision["image_size"], vision["patch_size"], ratio)
    names = {
        "min_tiles": "min_dynamic_patch",
        "max_tiles": "max_dynamic_patch",
        "use_thumbnail": "use_thumbnail",
    }
    own = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
    return {"tile_size": size, "tokens_per_tile": tokens, **own}


def _is_adapter(path: Path) -> bool:
    # Recognised by its tensors like all else; peft's own file only says that it is worth a look.
    return (path / "adapter_config.json").is_file()


def convert(
    path: Path,
    out: Path,
    to: str,
    *,
    config: str | None = None,
    options: dict[str, Any] | None = None,
    lora: str = "merge",
    dtype: Any = None,
) -> tuple[LoadReport, list[str]]:
    """Converts ``path`` into ``out``; see tools/convert.py.

    Returns:
        The report of what was read, and notes on what was written.

    Raises:
        UserError: before anything is read if ``out`` exists; else as :func:`load_any`.
    """
    check_out(out)
    model, report, meta = load_any(path, config, options, dtype or torch.bfloat16)
    notes = export_notes(model, dtype, lora) if to in ("sa2va", "native") else []
    wide = [row.part for row in report.rows if "float32" in row.dtype]
    if not report.source and dtype is torch.bfloat16 and wide:
        notes.append(
            f"stored in float32 and written in bfloat16: {listing(wide, 12)} (--dtype float32 "
            "keeps it)"
        )
    if to in ("adapter", "trainable") and not report.source:
        raise CheckpointError(
            found=f"{path} is a whole model: it does not say what was trained",
            expected="a training checkpoint",
            fix="use --to sa2va or --to native; to train it further set model.pretrained",
        )
    stored = {
        "source": path.name,
        "source_sha256": report.sha256 or sha256_of(path),
        "iteration": report.iteration,
        "weights": report.weights,
        "parts": {row.part: row.checksum for row in report.rows if row.part != MEMORY},
        "notes": report.notes + notes,
        "lora": lora if to in ("sa2va", "native") else "kept",
        "written": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    if to == "adapter" or lora == "keep":
        stored["base_fingerprint"] = dict(model.base_fingerprint)
    if to == "sa2va":
        export_sa2va(model, out, stored, dtype, lora)
    elif to == "native":
        export_native(model, out, stored, dtype, lora)
    elif to == "adapter":
        export_adapter(model, out, stored)
    else:
        _export_trainable(model, out, meta, stored)
    return report, notes


def _export_trainable(
    model: Sa2VAModel, out: Path, meta: dict[str, Any], stored: dict[str, Any]
) -> None:
    kept = {key: meta[key] for key in ("iter", "epoch", "seed", "cfg") if key in meta}
    payload: dict[str, Any] = {
        "meta": {
            "iter": 0,
            "epoch": 0,
            "world_size": 1,
            **provenance(model, out.parent),
            **{
                key: value
                for key, value in meta.items()
                if meta.get("format") == FORMAT and key != AVERAGED  # one set of weights now
            },
            **kept,
            "base_fingerprint": dict(model.base_fingerprint),
            LORA_SCALE: scale_of(model),
            "converted": stored,
        },
        "state_dict": model.trained_state_dict(),
    }
    if model.changed_frozen:
        payload["changed_frozen"] = changed_frozen_state(model)
    write_atomically(payload, out)

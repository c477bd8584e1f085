"""Which checkpoint a run goes on from, and whether it is still the same experiment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from projects.sa2va.checkpoints import (
    check_resumable,
    check_shards,
    is_deepspeed_folder,
    read_checkpoint,
    read_deepspeed_meta,
    read_stored_config,
)
from projects.sa2va.config import flatten
from projects.sa2va.errors import CheckpointError, listing

# What decides the losses of a run. Everything else (validation, logging, folders) may change.
_SECTIONS = ("model", "train_dataloader", "optim_wrapper", "param_scheduler", "strategy")
# Within them: how fast, where from, and how predictions are made. The base weights are compared
# by their fingerprint, the frames and labels by their hash.
_FREE_KEYS = {
    "answer_mode",
    "attn_implementation",
    "data_root",
    "gradient_checkpointing",
    "init_device",
    "load_trained_from",
    "max_new_tokens",
    "max_phrases_per_pass",
    "num_workers",
    "path",
    "persistent_workers",
    "pin_memory",
    "prefetch_factor",
    "pretrained",
}


def set_resume(cfg: Config, resume: str, seed: int | None) -> dict[str, Any] | None:
    """Points ``cfg`` at the checkpoint to go on from.

    Args:
        cfg: resolved config of the run.
        resume: checkpoint, or ``auto`` for the newest of the work dir.
        seed: ``--seed``, if it was given.

    Returns:
        Meta data of the checkpoint; None where ``auto`` finds none, for a fresh start.

    Raises:
        CheckpointError: no such checkpoint, or one that this run cannot continue exactly.
    """
    found = find_newest_checkpoint(cfg.work_dir) if resume == "auto" else resume
    if found is None:
        print_log(f"Nothing to resume in {cfg.work_dir}: starting afresh", logger="current")
        return None
    path, zero = Path(found), cfg.get("strategy") is not None
    if path.exists() and is_deepspeed_folder(path) != zero:
        raise CheckpointError(
            found=f"{path} was written with{'out' if zero else ''} --deepspeed",
            expected="to resume in the way it was trained",
            fix=f"resume with{'out' if zero else ''} --deepspeed, or {_start_anew(path)}",
        )
    world_size = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))
    if zero and path.exists():
        check_shards(path, world_size)
        meta = read_deepspeed_meta(path)
    else:
        checkpoint = read_checkpoint(path)
        check_resumable(checkpoint, path, world_size)
        meta = checkpoint["meta"]
    if seed is not None and seed != meta["seed"]:
        raise CheckpointError(
            found=f"--seed {seed} and --resume from a run with seed {meta['seed']}",
            expected="the seed of the run that goes on",
            fix=f"leave --seed out, or {_start_anew(path)}",
        )
    cfg.randomness.seed = meta["seed"]
    cfg.resume, cfg.load_from = True, str(path)
    return meta


def find_newest_checkpoint(work_dir: str) -> str | None:
    """The checkpoint that ``last_checkpoint`` names, or None when there is none yet.

    Raises:
        CheckpointError: it names a checkpoint that is gone.
    """
    pointer = Path(work_dir) / "last_checkpoint"
    if not pointer.is_file():
        return None
    path = Path(pointer.read_text().strip())
    # A work dir may have been moved since.
    path = path if path.exists() else Path(work_dir) / path.name
    if not path.name or not path.exists():
        raise CheckpointError(
            found=f"{pointer} names '{path.name}', which is not there",
            expected="the newest checkpoint in the work dir",
            fix="give --resume <checkpoint>, or delete last_checkpoint to start afresh",
        )
    return str(path)


def check_same_experiment(cfg: Config, meta: dict[str, Any], path: str) -> None:
    """Raises CheckpointError when the config would train on otherwise than it began.

    Optimiser and schedule are restored from the checkpoint, so a changed learning rate would be
    ignored; a changed batch size would move the place in the data.
    """
    stored = read_stored_config(meta["cfg"], path)
    before, now = (
        {
            key: value
            for section in _SECTIONS
            for key, value in flatten({section: config.get(section)}).items()
            if key.split(".")[-1] not in _FREE_KEYS
        }
        for config in (stored.to_dict(), cfg.to_dict())
    )
    changed = [
        f"{key} = {now.get(key)!r} (was {before.get(key)!r})"
        for key in sorted(before.keys() | now.keys())
        if _listed(before.get(key)) != _listed(now.get(key))
    ]
    if changed:
        raise CheckpointError(
            found=f"a config that differs from the one {path} was trained with: {listing(changed)}",
            expected="the same model, data, batch size, optimiser and schedule: a resumed run is "
            "the uninterrupted one",
            fix=f"take the changes back, or {_start_anew(path)}",
        )


def check_same_data(train_hash: str, meta: dict[str, Any], path: str) -> None:
    """Raises CheckpointError when the training frames or labels are others than at the start."""
    stored = (meta.get("data_splits") or {}).get("train", {}).get("hash")
    if stored is not None and stored != train_hash:
        raise CheckpointError(
            found=f"training frames or labels that differ from those of {path}",
            expected=f"the data of the run that goes on (split hash {stored[:16]}, "
            f"not {train_hash[:16]})",
            fix=f"restore the data, or {_start_anew(path)}",
        )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _start_anew(path: str | Path) -> str:
    return f"begin a new run from these weights with --cfg-options load_from={path}"

"""Which checkpoint a run goes on from, and whether it is still the same experiment."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from projects.sa2va.checkpoints import (
    InitFrom,
    check_resumable,
    read_checkpoint,
    read_stored_config,
)
from projects.sa2va.config import flatten
from projects.sa2va.errors import CheckpointError, listing

from .ema import ema_settings

# What decides the losses of a run. Everything else (validation, logging, folders) may change.
_SECTIONS = ("model", "train_dataloader", "optim_wrapper", "param_scheduler")
# Within them: how fast, where from, and how predictions are made. The base weights are compared
# by their fingerprint, the frames and labels by their hash.
_FREE_KEYS = {
    "answer_mode",
    "attn_implementation",
    "data_root",
    "gradient_checkpointing",
    "init_device",
    "max_new_tokens",
    "max_phrases_per_pass",
    "num_workers",
    "path",
    "persistent_workers",
    "pin_memory",
    "prefetch_factor",
    "presence_threshold",
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
    path = Path(found)
    checkpoint = read_checkpoint(path, mmap=True)
    check_resumable(checkpoint, path)
    meta = checkpoint["meta"]
    if seed is not None and seed != meta["seed"]:
        raise CheckpointError(
            found=f"--seed {seed} and --resume from a run with seed {meta['seed']}",
            expected="the seed of the run that goes on",
            fix=f"leave --seed out, or {_start_anew(path)}",
        )
    cfg.randomness.seed = meta["seed"]
    cfg.resume, cfg.load_from = True, str(path)
    if cfg.get("strategy") is not None:
        cfg.strategy.load_trained_from = str(path)
        cfg.strategy.goes_on = True
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
    ignored; another number of frames an iteration would move the place in the data. The strategy
    (DDP, FSDP2, DeepSpeed's stages) may change, and so may the number of processes, where the batch
    of a process changes with it.
    """
    world_size = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))
    stored = read_stored_config(meta["cfg"], path)
    _check_frames(cfg, world_size, stored, meta["world_size"], path)
    before, now = _recipe(stored), _recipe(cfg)
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
    others = {
        "processes": (meta["world_size"], world_size),
        "strategy": (_strategy(stored), _strategy(cfg)),
    }
    for what, (was, now_is) in others.items():
        if was != now_is:
            print_log(
                f"Going on with other {what} ({was} before, {now_is} now): the same frames a step, "
                "but dropout, sampled points and rounding are others",
                logger="current",
                level=logging.WARNING,
            )


def _check_frames(cfg: Config, processes: int, stored: Config, before: int, path: str) -> None:
    """The frames of an iteration are those of the run that goes on, whoever has which of them."""
    was = before * stored.train_dataloader.batch_size
    if processes * cfg.train_dataloader.batch_size == was:
        return
    if was % processes == 0:
        fix = f"set train_dataloader.batch_size={was // processes}"
    else:
        fix = f"start as many processes as before ({before})"
    raise CheckpointError(
        found=f"train_dataloader.batch_size={cfg.train_dataloader.batch_size} in each of "
        f"{processes} process(es), and {path}, which was trained with "
        f"{stored.train_dataloader.batch_size} in each of {before}",
        expected=f"{was} frames an iteration: order of frames, schedule and iterations count on it",
        fix=f"{fix}, or {_start_anew(path)}",
    )


def _recipe(config: Config) -> dict[str, Any]:
    """What must be equal, by key with dots, in the words of a config without DeepSpeed."""
    plain = config.to_dict()
    strategy, wrapper = plain.get("strategy") or {}, dict(plain.get("optim_wrapper") or {})
    if "gradient_accumulation_steps" in strategy:
        wrapper["accumulative_counts"] = strategy["gradient_accumulation_steps"]
        wrapper["clip_grad"] = {"max_norm": strategy["gradient_clipping"]}
    wrapper.setdefault("accumulative_counts", 1)
    wrapper["clip_grad"] = wrapper.get("clip_grad") or {"max_norm": 0.0}
    wrapper.pop("type", None)
    plain["optim_wrapper"] = {key: value for key, value in wrapper.items() if value is not None}
    flat = {
        key: value
        for section in _SECTIONS
        for key, value in flatten({section: plain.get(section)}).items()
        if key.split(".")[-1] not in _FREE_KEYS
    }
    flat.pop("train_dataloader.batch_size", None)  # see _check_frames
    flat |= flatten({"WeightEMAHook": ema_settings(config)})
    # Where its checkpoint lies now, or whether it still does, is nothing to a run that goes on.
    init = InitFrom.from_config(plain.get("init_from"))
    flat["init_from.parts"] = None if init is None else init.parts
    return flat


def _strategy(config: Config) -> str:
    """Name of a config's strategy, for messages."""
    strategy = config.get("strategy")
    if strategy is None:
        return "FSDP2" if config.get("runner_type") == "Sa2VAShardedRunner" else "DDP"
    stage = strategy.get("config", {}).get("zero_optimization", {}).get("stage")
    return strategy["type"] if stage is None else f"ZeRO-{stage}"


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

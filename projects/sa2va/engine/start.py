"""What happens before a run: config, folders, data and checkpoint are checked, in this order.

Nothing expensive (weights, cards, process groups) is touched until all of it is right.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from projects.sa2va.checkpoints import (
    DATA_SPLITS_FILE,
    check_resumable,
    check_shards,
    is_deepspeed_folder,
    read_checkpoint,
    read_deepspeed_meta,
)
from projects.sa2va.config import load_config
from projects.sa2va.datasets.integrity import check_dataset, check_splits, split_hash
from projects.sa2va.errors import CheckpointError, ConfigError, SetupError, listing, suggest

ROOT = Path(__file__).resolve().parents[3]
DEEPSPEED_CONFIGS = ROOT / "configs" / "deepspeed"


def prepare_training(
    config: str,
    *,
    work_dir: str | None = None,
    deepspeed: str | None = None,
    resume: str | None = None,
    seed: int | None = None,
    cfg_options: dict[str, Any] | None = None,
    distributed: bool = False,
) -> Config:
    """Returns the resolved config of a training run, everything checked.

    Args:
        config: config file.
        work_dir: output folder; default ``work_dirs/<config name>``.
        deepspeed: name of a file in configs/deepspeed, or a JSON file.
        resume: checkpoint, or ``auto`` for the newest of the work dir (a fresh start if none).
        seed: random seed in place of the config's.
        cfg_options: overrides.
        distributed: whether a launcher starts several processes.

    Raises:
        UserError: whatever is wrong, before any long work.
    """
    cfg = load_config(config, cfg_options)
    cfg.work_dir = prepare_work_dir(work_dir or cfg.get("work_dir"), config)
    _set_backend(cfg)
    if seed is not None:
        cfg.randomness.seed = seed
    if deepspeed is not None:
        _use_deepspeed(cfg, deepspeed, distributed)
    if resume is not None:
        _set_resume(cfg, resume)
    if not cfg.get("resume") and cfg.get("load_from"):
        read_checkpoint(cfg.load_from)
    # Augmentation and the order of frames follow the run's seed; weights have seeds of their own.
    if cfg.get("train_dataloader"):
        cfg.train_dataloader.dataset.setdefault("seed", cfg.randomness.seed or 0)
    if _is_first_process():
        check_data(cfg, ("train", "val", "test"), cfg.work_dir)
        _remove_half_written(Path(cfg.work_dir))
    return cfg


def _remove_half_written(work_dir: Path) -> None:
    """Removes what a killed run left of a checkpoint that it was writing."""
    for path in work_dir.glob(".*.pth.*tmp"):
        print_log(f"Removing {path}, a checkpoint that was never finished", logger="current")
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def prepare_test(
    config: str,
    *,
    checkpoint: str | None,
    work_dir: str | None = None,
    out: str | None = None,
    show_dir: str | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Config:
    """Returns the resolved config of a test run, everything checked.

    Args:
        config: config file.
        checkpoint: file or DeepSpeed folder; None scores the model as it is built.
        work_dir: output folder; default ``work_dirs/<config name>``.
        out: folder of the results.
        show_dir: folder of the pictures.
        cfg_options: overrides.

    Raises:
        UserError: whatever is wrong, before any long work.
    """
    cfg = load_config(config, cfg_options)
    cfg.work_dir = prepare_work_dir(work_dir or cfg.get("work_dir"), config)
    _set_backend(cfg)
    cfg.load_from = checkpoint
    cfg.resume = False
    if checkpoint is not None:
        read_checkpoint(checkpoint)
    if out is not None:
        cfg.test_cfg.out_dir = prepare_work_dir(out, config)
    if show_dir is not None:
        cfg.test_evaluator.show_dir = prepare_work_dir(show_dir, config)
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
        cfg.pop(key, None)
    for key in ("val_dataloader", "val_cfg", "val_evaluator"):
        cfg.pop(key, None)
    if _is_first_process():
        check_data(cfg, ("test",), None)
    return cfg


def prepare_work_dir(work_dir: str | None, config: str) -> str:
    """Creates the output folder and proves that a file can be written there.

    Raises:
        SetupError: it cannot.
    """
    path = Path(work_dir or Path("work_dirs") / Path(config).stem)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SetupError(
            found=f"{path} cannot be written: {error}",
            expected="a folder that this user can write to",
            fix="give another --work-dir, or mend the permissions",
        ) from error
    return str(path)


def check_data(cfg: Config, splits: tuple[str, ...], work_dir: str | None) -> None:
    """Reads every frame and annotation of the splits once; stores the splits' hashes.

    Raises:
        DataError: broken files, bad annotations, or splits that share an image or a patient.
    """
    datasets = {
        split: DATASETS.build(cfg[f"{split}_dataloader"]["dataset"])
        for split in splits
        if cfg.get(f"{split}_dataloader")
    }
    warnings = [
        f"{split}: {warning}"
        for split, dataset in datasets.items()
        for warning in check_dataset(dataset).warnings
    ]
    for warning in [*warnings, *check_splits(datasets)]:
        print_log(warning, logger="current", level=logging.WARNING)
    if work_dir is not None:
        summary = {
            split: {"frames": len(dataset), "hash": split_hash(dataset)}
            for split, dataset in datasets.items()
        }
        path = Path(work_dir) / DATA_SPLITS_FILE
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(summary, indent=1))
        os.replace(temporary, path)


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
    if not path.exists():
        raise CheckpointError(
            found=f"{pointer} names {path.name}, which is not there",
            expected="the newest checkpoint in the work dir",
            fix="give --resume <checkpoint>, or delete last_checkpoint to start afresh",
        )
    return str(path)


def _set_resume(cfg: Config, resume: str) -> None:
    path = find_newest_checkpoint(cfg.work_dir) if resume == "auto" else resume
    if path is None:
        print_log(f"Nothing to resume in {cfg.work_dir}: starting afresh", logger="current")
        return
    zero = cfg.get("strategy") is not None
    if Path(path).exists() and is_deepspeed_folder(Path(path)) != zero:
        raise CheckpointError(
            found=f"{path} was written with{'out' if zero else ''} --deepspeed",
            expected="to resume in the way it was trained",
            fix=f"resume with{'out' if zero else ''} --deepspeed, or begin a new run from these "
            f"weights with --cfg-options load_from={path}",
        )
    world_size = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))
    if zero and Path(path).exists():
        check_shards(Path(path), world_size)
        meta = read_deepspeed_meta(Path(path))
    else:
        checkpoint = read_checkpoint(path)
        check_resumable(checkpoint, path, world_size)
        meta = checkpoint["meta"]
    if meta.get("seed") is not None:
        cfg.randomness.seed = meta["seed"]
    cfg.resume, cfg.load_from = True, path


def _use_deepspeed(cfg: Config, deepspeed: str, distributed: bool) -> None:
    """Swaps in the DeepSpeed runner, strategy and optimiser wrapper."""
    if not distributed:
        raise SetupError(
            found="--deepspeed without a launcher",
            expected="DeepSpeed's processes started by torchrun, also for one card",
            fix=f"DEEPSPEED={deepspeed} bash tools/dist.sh train <config> <number of cards>",
        )
    names = {path.stem: path for path in DEEPSPEED_CONFIGS.glob("*.json")}
    path = names.get(deepspeed, Path(deepspeed))
    if not path.is_file():
        raise ConfigError(
            found=f"--deepspeed {deepspeed}",
            expected="one of " + ", ".join(sorted(names)) + ", or a JSON file"
            f"{suggest(deepspeed, names)}",
            fix="correct the name",
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        bf16 = settings.get("bf16", {}).get("enabled")
    except (ValueError, AttributeError) as error:  # no UTF-8, no JSON; no groups of keys
        raise ConfigError(
            found=f"{path} is no DeepSpeed configuration: {error}",
            expected="JSON: an object whose bf16 is an object",
            fix="start from one of configs/deepspeed",
        ) from error
    if bf16 == "auto":
        settings["bf16"]["enabled"] = cfg.model.get("autocast") == "bfloat16"
    wrapper = cfg.optim_wrapper
    max_norm = (wrapper.get("clip_grad") or {}).get("max_norm", 0.0)
    other = sorted(set(wrapper.get("clip_grad") or {}) - {"max_norm"})
    if other:
        raise ConfigError(
            found=f"optim_wrapper.clip_grad.{listing(other)} together with --deepspeed",
            expected="max_norm alone: DeepSpeed clips by the 2-norm",
            fix="remove the other keys, or train without --deepspeed",
        )
    cfg.strategy = {
        "type": "Sa2VADeepSpeedStrategy",
        "config": settings,
        "gradient_accumulation_steps": wrapper.get("accumulative_counts", 1),
        "train_micro_batch_size_per_gpu": cfg.train_dataloader.batch_size,
        "gradient_clipping": float(max_norm),
        "exclude_frozen_parameters": True,
        "load_trained_from": cfg.get("load_from"),
    }
    cfg.runner_type = "Sa2VAFlexibleRunner"
    cfg.optim_wrapper = {
        "type": "DeepSpeedOptimWrapper",
        "optimizer": wrapper.optimizer,
        "constructor": wrapper.get("constructor", "PartwiseConstructor"),
        "paramwise_cfg": wrapper.get("paramwise_cfg"),
    }


def _set_backend(cfg: Config) -> None:
    if cfg.env_cfg.dist_cfg.get("backend", "auto") == "auto":
        cfg.env_cfg.dist_cfg.backend = "nccl" if torch.cuda.is_available() else "gloo"


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def finish() -> None:
    """Ends a process of a distributed run in order.

    torch 2.13's gloo threads, and DeepSpeed's, are now and then still running when the interpreter
    tears down, which aborts a run that did all its work ("terminate called without an active
    exception"). Every file is written and flushed by now, so the process leaves directly.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

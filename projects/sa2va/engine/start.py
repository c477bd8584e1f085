"""What happens before a run: config, folders, data and checkpoint are checked, in this order.

Nothing expensive (weights, cards, process groups) is touched until all of it is right.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from projects.sa2va.checkpoints import (
    DATA_SPLITS_FILE,
    RAW,
    InitFrom,
    check_kind,
    choose_weights,
    read_checkpoint,
    read_initial,
)
from projects.sa2va.config import load_config
from projects.sa2va.errors import ConfigError, SetupError, listing, suggest
from projects.sa2va.evaluation.metrics import choose_metrics
from projects.sa2va.files import make_writable, write_atomic
from projects.sa2va.models.segmentation import nothing_to_train, predicts_no_masks
from projects.sa2va.placement import Placement, choose_placement, parse_precision

from .data_check import check_test_data, check_training_data
from .ema import check_ema
from .evaluation_setup import choose_split, choose_threshold
from .folders import remove_half_written
from .fsdp import choose_strategy
from .optim import refuse_sharded
from .resume import check_same_data, check_same_experiment, set_resume
from .tensorboard import drop_tensorboard, set_tensorboard

ROOT = Path(__file__).resolve().parents[3]
DEEPSPEED_CONFIGS = ROOT / "configs" / "deepspeed"


def prepare_training(
    config: str,
    *,
    work_dir: str | None = None,
    deepspeed: str | None = None,
    strategy: str | None = None,
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
        strategy: ``ddp`` or ``fsdp2``; None is what the config says, DDP where it says nothing.
        resume: checkpoint, or ``auto`` for the newest of the work dir (a fresh start if none).
        seed: random seed in place of the config's.
        cfg_options: overrides.
        distributed: whether a launcher starts several processes.

    Raises:
        UserError: whatever is wrong, before any long work.
    """
    cfg = load_config(config, cfg_options)
    _check_trains(cfg, config)
    set_tensorboard(cfg)
    cfg.work_dir = prepare_work_dir(work_dir or cfg.get("work_dir"), config)
    _set_backend(cfg)
    if seed is not None:
        cfg.randomness.seed = seed
    choose_strategy(cfg, strategy, deepspeed, distributed)
    if deepspeed is not None:
        _use_deepspeed(cfg, deepspeed, distributed)
    check_ema(cfg)
    cfg.resume = False  # a dumped config of a resumed run says True
    meta = set_resume(cfg, resume, seed) if resume is not None else None
    if meta is None:
        loaded, source = starting_point(cfg)
    else:
        loaded, source = meta, cfg.load_from
        check_kind(cfg.model.type, meta, source)
    # Augmentation and the order of frames follow the run's seed; weights have seeds of their own.
    if cfg.get("train_dataloader"):
        cfg.train_dataloader.dataset.setdefault("seed", cfg.randomness.seed or 0)
    if meta is not None:
        check_same_experiment(cfg, meta, cfg.load_from)
    if _is_first_process():
        splits = check_training_data(cfg, loaded, source)
        if meta is not None:
            check_same_data(splits["train"]["hash"], meta, cfg.load_from)
        text = json.dumps(splits, indent=1).encode()
        write_atomic(Path(cfg.work_dir) / DATA_SPLITS_FILE, lambda file: file.write(text))
        remove_half_written(Path(cfg.work_dir))
    return cfg


def starting_point(cfg: Config) -> tuple[dict[str, Any] | None, str | None]:
    """Meta data and path of the checkpoint that a new run starts from; None and None without one.

    Raises:
        ConfigError: ``load_from`` and ``init_from`` at once, or an ``init_from`` that cannot be.
        CheckpointError: it cannot be read, is of another model, or lacks a part.
    """
    init, source = InitFrom.from_config(cfg.get("init_from")), cfg.get("load_from")
    if init is not None:
        _only_one_start(cfg, init)
        return read_initial(init, mmap=True)["meta"], init.checkpoint
    if not source:
        return None, None
    meta = read_checkpoint(source, mmap=True)["meta"]
    check_kind(cfg.model.type, meta, source)
    return meta, source


def prepare_test(
    config: str,
    *,
    checkpoint: str | None,
    work_dir: str | None = None,
    out: str | None = None,
    show_dir: str | None = None,
    metrics: str | list[str] | None = None,
    split: str | None = None,
    threshold: str | None = None,
    placement: str | None = None,
    gpus: int | None = None,
    memory_gib: float | None = None,
    precision: str | None = None,
    weights: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    distributed: bool = False,
) -> Config:
    """Returns the resolved config of a test run, everything checked.

    Args:
        config: config file.
        checkpoint: file or DeepSpeed folder; None scores the model as it is built.
        work_dir: output folder; default ``work_dirs/<config name>``.
        out: folder of the results.
        show_dir: folder of the pictures.
        metrics: ``all``, ``fast`` or names, in place of the config's.
        split: ``test`` or ``val``; see :func:`.evaluation_setup.choose_split`.
        threshold: see :func:`.evaluation_setup.choose_threshold`.
        placement, gpus, memory_gib: see :func:`projects.sa2va.placement.choose_placement`; None is
            what ``test_cfg.placement`` says, and one card where it says nothing.
        precision: see :func:`projects.sa2va.placement.parse_precision`.
        weights: ``averaged`` or ``raw`` ones of the checkpoint; None is what ``test_cfg.weights``
            says, and the average, where there is one, where it says nothing.
        cfg_options: overrides.
        distributed: whether a launcher starts several processes.

    Raises:
        UserError: whatever is wrong, before any long work.
    """
    cfg = load_config(config, cfg_options)
    cfg.work_dir = prepare_work_dir(work_dir or cfg.get("work_dir"), config)
    _set_backend(cfg)
    cfg.load_from = checkpoint
    cfg.resume = False
    drop_tensorboard(cfg)
    # A config dumped by a DeepSpeed run: testing needs neither its runner nor its strategy.
    cfg.runner_type = "Sa2VARunner"
    cfg.pop("strategy", None)
    cfg.init_from = None  # a checkpoint has what was taken from it; without one it is another model
    if not MODELS.get(cfg.model.type).predicts_masks:
        raise predicts_no_masks(cfg.model.type)
    cfg.test_cfg = cfg.get("test_cfg") or {"type": "Sa2VATestLoop"}
    cfg.test_cfg.weights = weights or cfg.test_cfg.get("weights")
    meta, tested = None, RAW
    if checkpoint is not None:
        read = read_checkpoint(checkpoint, mmap=True)
        meta = read["meta"]
        check_kind(cfg.model.type, meta, str(checkpoint))
        tested = choose_weights(read, checkpoint, cfg.test_cfg.weights)[1]
    elif cfg.test_cfg.weights is not None:
        raise ConfigError(
            found=f"--weights {cfg.test_cfg.weights} (test_cfg.weights) with --checkpoint none",
            expected="a checkpoint, which holds them",
            fix="leave --weights out, or give a checkpoint",
        )
    if out is not None:
        cfg.test_cfg.out_dir = str(make_writable(out, "--out"))
    if show_dir is not None:
        cfg.test_evaluator.show_dir = str(make_writable(show_dir, "--show-dir"))
    if metrics is not None:
        choose_metrics(metrics)  # refused now, not after the model is loaded
        cfg.test_evaluator.metric_set = metrics
    held_out = choose_split(cfg, split)
    chosen = choose_threshold(cfg, threshold, checkpoint, cfg_options, tested)
    training = (cfg.get("train_dataloader") or {}).get("dataset")
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
        cfg.pop(key, None)
    for key in ("val_dataloader", "val_cfg", "val_evaluator"):
        cfg.pop(key, None)
    if _is_first_process():
        others = {"train": training, "test": held_out}
        cfg.test_cfg.test_split = check_test_data(cfg, others, meta, checkpoint, chosen)
    _choose_place(cfg, placement, gpus, memory_gib, precision, distributed)
    return cfg


def _choose_place(
    cfg: Config,
    kind: str | None,
    gpus: int | None,
    memory_gib: float | None,
    precision: str | None,
    distributed: bool,
) -> None:
    """Decides ``test_cfg.placement`` and ``test_cfg.precision``, and fits ``model`` to them."""
    asked = Placement.from_config(cfg.test_cfg.get("placement"))
    kind = kind or asked.kind
    if distributed and kind == "single":
        kind = "data-parallel"
    if distributed and kind in ("auto", "sharded"):
        raise ConfigError(
            found=f"--placement {kind} in a process of a launcher",
            expected="one process: it decides over all cards",
            fix="start tools/test.py without a launcher, or leave --placement out",
        )
    chosen = parse_precision(cfg.test_cfg.get("precision") if precision is None else precision)
    chosen.before_build(cfg)
    if distributed:
        gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    place = choose_placement(
        cfg,
        kind,
        gpus=asked.gpus if gpus is None else gpus,
        memory_gib=asked.memory_gib if memory_gib is None else memory_gib,
        precision=chosen,
    )
    cfg.test_cfg.placement, cfg.test_cfg.precision = place.as_config(), chosen.as_dict()


def _only_one_start(cfg: Config, init: InitFrom) -> None:
    if cfg.get("load_from"):
        raise ConfigError(
            found=f"load_from={cfg.load_from} together with init_from.checkpoint={init.checkpoint}",
            expected="one of them: load_from takes all that was trained, init_from parts of it",
            fix="set load_from=None, or init_from=None",
        )


def _check_trains(cfg: Config, config: str) -> None:
    """Refuses a model without parameters, and a config without a schedule."""
    if not MODELS.get(cfg.model.type).is_trainable:
        raise nothing_to_train(cfg.model.type)
    needed = ("train_dataloader", "train_cfg", "optim_wrapper")
    missing = [key for key in needed if not cfg.get(key)]
    if missing:
        raise ConfigError(
            found=f"{config} without {listing(missing)}",
            expected="training frames, number of iterations and optimiser",
            fix="add a file of configs/_base_/schedules (and of configs/_base_/datasets) to _base_",
        )


def prepare_work_dir(work_dir: str | None, config: str) -> str:
    """Creates the output folder and proves that a file can be written there.

    Raises:
        SetupError: it cannot.
    """
    path = work_dir or Path("work_dirs") / Path(config).stem
    return str(make_writable(path, "--work-dir"))


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
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage == 3 and cfg.model.get("mllm", {}).get("quantization"):
        raise ConfigError(
            found=f"{path.stem} (ZeRO-3) and model.mllm.quantization="
            f"{cfg.model.mllm.quantization!r}",
            expected="weights in their own precision: ZeRO-3 cannot shard 4-bit ones",
            fix="set model.mllm.quantization=None, or train without ZeRO-3: 4-bit weights fit one "
            "card",
        )
    if bf16 == "auto":
        settings["bf16"]["enabled"] = cfg.model.get("autocast") == "bfloat16"
    wrapper = cfg.optim_wrapper
    refuse_sharded(wrapper.optimizer, f"--deepspeed {deepspeed}")
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
        "init_from": cfg.get("init_from"),
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


def finish(status: int = 0) -> None:
    """Ends a process of a distributed run in order, and any process whose ``status`` is not 0.

    torch 2.13's gloo threads, and DeepSpeed's, are now and then still running when the interpreter
    tears down, which aborts a run that did all its work ("terminate called without an active
    exception"). Every file is written and flushed by now, so the process leaves directly.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if status:
        raise SystemExit(status)

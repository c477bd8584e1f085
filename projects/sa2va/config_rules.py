"""Rules of a config that its keys alone do not show: what the parts of a run need of one another.

mmengine would run most of what is refused here, and give something else than the config says: a
resumed run that is not the interrupted one, an endless validation, a switch that nothing reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import CheckpointHook, EMAHook

from .config_schema import find_type
from .datasets.base import VesselDataset
from .errors import ConfigError
from .evaluation import VesselMetric

_SPLITS = ("train", "val", "test")
# The only loop of a split that works, and what mmengine takes where the config names none.
_LOOPS = {
    "train": ("Sa2VATrainLoop", "IterBasedTrainLoop"),
    "val": ("Sa2VAValLoop", "ValLoop"),
    "test": ("Sa2VATestLoop", "TestLoop"),
}
_SAMPLERS = {"train": "EpochSampler", "val": "ExactSampler", "test": "ExactSampler"}
_OPTIM_WRAPPERS = ("OptimWrapper", "DeepSpeedOptimWrapper")
_POSITION = ("start_batch", "batch_size")
_DEFAULT_VAL_INTERVAL = 1000  # of mmengine's IterBasedTrainLoop


def check_rules(cfg: Mapping, source: str) -> None:
    """Rules between keys, and of values that only some parts can work with.

    A rule speaks about what the config holds: one without data loaders or evaluators is no error.

    Args:
        cfg: a config whose keys are known (:class:`~projects.sa2va.config_check.Checker`).
        source: the config's file, named in every message.

    Raises:
        ConfigError: a checkpoint would fall between two optimiser steps, from where resuming is
            not exact; a loop, sampler, collate function, data set, hook, optimiser wrapper or
            dtype that this project does not work with; an evaluator that would write elsewhere,
            or count twice.
    """
    _Rules(cfg, source).check()


class _Rules:
    """The rules over one config; arguments as :func:`check_rules`."""

    def __init__(self, cfg: Mapping, source: str) -> None:
        self.cfg, self.source = cfg, source

    def check(self) -> None:
        self._check_memory_budget()
        self._check_near_duplicates()
        self._check_loops()
        for split in _SPLITS:
            self._check_loader(split)
        self._check_model_and_optimiser()
        for path, hook in self._hooks():
            self._check_hook(path, hook)
        self._check_windows()
        for split in ("val", "test"):
            self._check_evaluator(split)

    # ------------------------------------------------------------------------------ the parts

    def _check_memory_budget(self) -> None:
        budget = self.cfg.get("memory_budget_gib")
        number = isinstance(budget, int | float) and not isinstance(budget, bool)
        if budget is not None and not (number and 0 < budget < float("inf")):
            raise self._error(
                found=f"memory_budget_gib={budget!r}",
                expected="GiB of a card that one process may take, more than 0, or None for all",
                fix="memory_budget_gib=23.5, or None",
            )

    def _check_near_duplicates(self) -> None:
        allowed = self.cfg.get("allow_near_duplicates", ())
        named = isinstance(allowed, list | tuple) and all(isinstance(n, str) for n in allowed)
        if not isinstance(allowed, bool) and not named:
            raise self._error(
                found=f"allow_near_duplicates={allowed!r}",
                expected="a list of frames ('test/<frame>'), or True for all of them",
                fix="allow_near_duplicates=['test/<frame>'], as the message names them",
            )

    def _check_loops(self) -> None:
        for split, (name, default) in _LOOPS.items():
            loop = self._group(self.cfg, f"{split}_cfg")
            if loop is not None:
                self._check_type(
                    loop,
                    f"{split}_cfg",
                    ("LOOPS",),
                    (name,),
                    default=default,
                    why="the samplers, the resuming and the evaluator are made for it",
                )

    def _check_loader(self, split: str) -> None:
        path = f"{split}_dataloader"
        loader = self._group(self.cfg, path)
        if loader is None:
            return
        if loader.get("batch_sampler") is not None:
            raise self._error(
                found=f"{path}.batch_sampler",
                expected=f"batches of {path}.batch_size frames, drawn by {path}.sampler",
                fix=f"remove {path}.batch_sampler",
            )
        sampler = self._group(loader, "sampler", path) or {}
        self._check_type(
            sampler,
            f"{path}.sampler",
            ("DATA_SAMPLERS",),
            (_SAMPLERS[split],),
            default="an error",
            why="resuming is exact with it"
            if split == "train"
            else "every frame must be counted exactly once",
        )
        for key in _POSITION:
            if key in sampler:
                raise self._error(
                    found=f"{path}.sampler.{key}={sampler[key]!r}",
                    expected="a sampler without a position: the train loop sets it, from the "
                    "iteration that a run is resumed at",
                    fix=f"remove {path}.sampler.{key}",
                )
        self._check_type(
            self._group(loader, "collate_fn", path) or {},
            f"{path}.collate_fn",
            ("FUNCTIONS",),
            ("sa2va_collate",),
            default="pseudo_collate",
            why="it makes the batches that the model reads",
        )
        self._check_workers(loader, path)
        self._check_dataset(self._group(loader, "dataset", path) or {}, f"{path}.dataset")

    def _check_workers(self, loader: Mapping, path: str) -> None:
        """torch refuses these keys without workers, in words that name no key of a config."""
        idle = [key for key in ("persistent_workers", "prefetch_factor") if loader.get(key)]
        if idle and not loader.get("num_workers"):
            off = {"persistent_workers": False, "prefetch_factor": None}
            raise self._error(
                found=f"{path}.num_workers={loader.get('num_workers', 0)!r} with "
                + " and ".join(f"{key}={loader[key]!r}" for key in idle),
                expected="data workers, which these keys are about",
                fix=", ".join(f"{path}.{key}={off[key]}" for key in idle)
                + f"; or {path}.num_workers=1 or more",
            )

    def _check_dataset(self, dataset: Mapping, path: str) -> None:
        found = find_type(dataset.get("type"), ("DATASETS",))
        owner = found[0] if found else None
        if not (isinstance(owner, type) and issubclass(owner, VesselDataset)):
            raise self._error(
                found=f"{path}.type={dataset.get('type')!r}",
                expected="one data set that is a VesselDataset (projects/sa2va/datasets/base.py): "
                "frames are drawn, named and split by patients by what it knows of them; wrappers "
                "such as ConcatDataset and RepeatDataset hide that",
                fix=f"set {path}.type to a VesselDataset; put the frames of several data sets into "
                "one annotation file; train longer with train_cfg.max_iters",
            )

    def _check_model_and_optimiser(self) -> None:
        model = self._group(self.cfg, "model") or {}
        autocast = model.get("autocast")
        if autocast is not None and autocast != "bfloat16":
            raise self._error(
                found=f"model.autocast={autocast!r}",
                expected="'bfloat16' or None: there is no loss scaling, without which float16 "
                "loses small gradients",
                fix="model.autocast='bfloat16', or None for arithmetic in the weights' own dtype",
            )
        wrapper = self._group(self.cfg, "optim_wrapper")
        if wrapper is not None:
            self._check_type(
                wrapper,
                "optim_wrapper",
                ("OPTIM_WRAPPERS",),
                _OPTIM_WRAPPERS,
                default="OptimWrapper",
                why="mixed precision is model.autocast, and --deepspeed puts in its own wrapper",
            )

        self._check_skeletons(model)

    def _check_skeletons(self, model: Mapping) -> None:
        """The skeletons of the training data and the loss that reads them come together."""
        dataset = self._group(self._group(self.cfg, "train_dataloader") or {}, "dataset")
        if dataset is None:
            return
        weight = (model.get("mask_loss") or {}).get("skeleton_recall_weight", 0.0)
        made = bool(dataset.get("skeletons", False))
        if made != bool(weight):
            raise self._error(
                found=f"train_dataloader.dataset.skeletons={made} and "
                f"model.mask_loss.skeleton_recall_weight={weight!r}",
                expected="both or neither: data workers make the skeletons that this loss reads",
                fix=f"set train_dataloader.dataset.skeletons={bool(weight)}, or "
                f"model.mask_loss.skeleton_recall_weight={'0.0' if weight else '1.0'}",
            )

    def _check_hook(self, path: str, hook: Mapping) -> None:
        if "max_keep_ckpts" in hook:
            limit = hook["max_keep_ckpts"]
            raise self._error(
                found=f"{path}.max_keep_ckpts={limit!r}",
                expected=f"{path}.save_total_limit: it replaces max_keep_ckpts, which deletes a "
                "checkpoint before the next one is written",
                fix=f"{path}.type='Sa2VACheckpointHook' and {path}.save_total_limit={limit!r}",
            )
        if "save_total_limit" in hook:
            self._whole(f"{path}.save_total_limit", hook["save_total_limit"])
        if _is_hook(hook, EMAHook):
            raise self._error(
                found=f"{path}: {hook.get('type')}",
                expected="WeightEMAHook: the averaged weights of mmengine's EMAHook would not be "
                "part of the checkpoints, and frozen weights would be held twice",
                fix=f"remove {path}, and put dict(type='WeightEMAHook', decay=0.999) into "
                "custom_hooks",
            )

    def _check_evaluator(self, split: str) -> None:
        path = f"{split}_evaluator"
        ours = [(where, node) for where, node in _metrics(self.cfg.get(path), path)]
        ours = [(where, node) for where, node in ours if _is_vessel_metric(node)]
        for where, node in ours:
            if node.get("out_dir") is not None:
                raise self._error(
                    found=f"{where}.out_dir={node['out_dir']!r}",
                    expected="no folder in the config: tools/test.py chooses it"
                    if split == "test"
                    else "no folder: validation during training writes no files",
                    fix=f"remove {where}.out_dir; tools/test.py CONFIG --checkpoint FILE "
                    "--out FOLDER writes the results there",
                )
        if len(ours) > 1:
            raise self._error(
                found=f"{len(ours)} VesselMetrics in {path}: " + ", ".join(w for w, _ in ours),
                expected="one: a second one would write over the files of the first",
                fix=f"keep one of them in {path}; test again for another threshold",
            )

    # --------------------------------------------------------------- windows of accumulation

    def _check_windows(self) -> None:
        """What is saved, and the end, must fall on an optimiser step."""
        wrapper = self._group(self.cfg, "optim_wrapper") or {}
        strategy = self._group(self.cfg, "strategy") or {}
        # A config that a DeepSpeed run dumped has the number in its strategy.
        paths = {
            "optim_wrapper.accumulative_counts": wrapper.get("accumulative_counts"),
            "strategy.gradient_accumulation_steps": strategy.get("gradient_accumulation_steps"),
        }
        for path, counts in paths.items():
            if counts is not None:
                self._whole(path, counts, least=1)
                self._check_window(path, counts)

    def _check_window(self, path: str, counts: int) -> None:
        name = path.rsplit(".", 1)[-1]
        train = self._group(self.cfg, "train_cfg") or {}
        best = False
        for where, hook in self._hooks():
            if not (where == "default_hooks.checkpoint" or _is_hook(hook, CheckpointHook)):
                continue
            best = best or hook.get("save_best") is not None
            if not hook.get("by_epoch", True):
                self._multiple(
                    f"{where}.interval",
                    hook.get("interval", -1),
                    (path, counts),
                    f"an interval that is a multiple of {name}: gradients that are only half "
                    "summed up are not saved, so resuming would not be exact",
                )
        if train.get("max_iters") is not None:
            self._multiple(
                "train_cfg.max_iters",
                train["max_iters"],
                (path, counts),
                f"a number of iterations that is a multiple of {name}: the last ones would not "
                "make up a whole optimiser step",
            )
        # Without a validation there is no new best.
        if not best or not train or self._group(self.cfg, "val_cfg") is None:
            return
        intervals = {"val_interval": train.get("val_interval", _DEFAULT_VAL_INTERVAL)}
        for index, (_, interval) in enumerate(train.get("dynamic_intervals") or ()):
            intervals[f"dynamic_intervals.{index}.1"] = interval
        for key, interval in intervals.items():
            self._multiple(
                f"train_cfg.{key}",
                interval,
                (path, counts),
                f"an interval of validation that is a multiple of {name}, because of save_best: a "
                "new best saves the training state again, and gradients that are only half "
                "summed up are not saved, so resuming would not be exact",
            )

    # -------------------------------------------------------------------------------- helpers

    def _multiple(self, path: str, value: Any, counts: tuple[str, int], expected: str) -> None:
        """Refuses a positive ``value`` that is no multiple; -1 and 0 switch an interval off."""
        self._whole(path, value)
        if value > 0 and value % counts[1]:
            raise self._error(
                found=f"{path}={value} with {counts[0]}={counts[1]}",
                expected=expected,
                fix=f"{path}={counts[1] * -(-int(value) // counts[1])}",
            )

    def _whole(self, path: str, value: Any, least: int | None = None) -> None:
        is_whole = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_whole or value != value // 1 or (least is not None and value < least):
            raise self._error(
                found=f"{path}={value!r}",
                expected="a whole number" + ("" if least is None else f" of {least} or more"),
                fix=f"correct {path}",
            )

    def _check_type(
        self,
        node: Mapping,
        path: str,
        registries: tuple[str, ...],
        names: tuple[str, ...],
        *,
        default: str,
        why: str,
    ) -> None:
        """Refuses a ``type`` that is none of ``names``; ``default`` is what stands for no type."""
        found = find_type(node.get("type", default), registries)
        allowed = [find_type(name, registries) for name in names]
        if found is None or found[0] not in [owner for owner, _ in filter(None, allowed)]:
            missing = f"{path} has no type, which means {default}"
            raise self._error(
                found=f"{path}.type={node['type']!r}" if "type" in node else missing,
                expected=f"type={names[0]!r}: {why}",
                fix=f"set {path}.type={names[0]!r}",
            )

    def _group(self, parent: Mapping, key: str, path: str = "") -> Mapping | None:
        """The dict under ``key``, None where there is none."""
        node = parent.get(key)
        if node is not None and not isinstance(node, Mapping):
            path = f"{path}.{key}" if path else key
            raise self._error(
                found=f"{path} is a {type(node).__name__}",
                expected="one group of keys, dict(...)",
                fix=f"write {key}=dict(...)",
            )
        return node

    def _hooks(self) -> Iterator[tuple[str, Mapping]]:
        """All hooks with their path; None switches one off."""
        for name in self._group(self.cfg, "default_hooks") or {}:
            hook = self._group(self.cfg["default_hooks"], name, "default_hooks")
            if hook is not None:
                yield f"default_hooks.{name}", hook
        for index, hook in enumerate(self.cfg.get("custom_hooks") or ()):
            if isinstance(hook, Mapping):
                yield f"custom_hooks.{index}", hook

    def _error(self, found: str, expected: str, fix: str) -> ConfigError:
        return ConfigError(f"{self.source}: {found}", expected, fix)


def _is_hook(hook: Mapping, kind: type) -> bool:
    found = find_type(hook.get("type"), ("HOOKS",))
    return found is not None and isinstance(found[0], type) and issubclass(found[0], kind)


def _is_vessel_metric(node: Mapping) -> bool:
    found = find_type(node.get("type"), ("METRICS",))
    return found is not None and isinstance(found[0], type) and issubclass(found[0], VesselMetric)


def _metrics(node: Any, path: str) -> Iterator[tuple[str, Mapping]]:
    """The metric dicts of an evaluator: one, a list, or an Evaluator with ``metrics``."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _metrics(item, f"{path}.{index}")
    elif isinstance(node, Mapping):
        if "metrics" in node:
            yield from _metrics(node["metrics"], f"{path}.metrics")
        else:
            yield path, node

"""Rules between the parts of a config: what would run, but not as the config says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import HOOKS

from projects.sa2va.config_processors import check_processors
from projects.sa2va.config_rules import check_rules
from projects.sa2va.errors import ConfigError


@HOOKS.register_module()
class OwnEMAHook(EMAHook):
    pass


@HOOKS.register_module()
class OwnCheckpointHook(CheckpointHook):
    pass


def loader(sampler: str) -> dict:
    return {
        "batch_size": 1,
        "sampler": {"type": sampler},
        "collate_fn": {"type": "sa2va_collate"},
        "dataset": {"type": "FolderVesselDataset"},
    }


def right() -> dict:
    """A config that keeps every rule."""
    return {
        "model": {"type": "Sa2VAModel", "autocast": "bfloat16"},
        "train_dataloader": loader("EpochSampler"),
        "val_dataloader": loader("ExactSampler"),
        "test_dataloader": loader("ExactSampler"),
        "train_cfg": {"type": "Sa2VATrainLoop", "max_iters": 40, "val_interval": 8},
        "val_cfg": {"type": "Sa2VAValLoop"},
        "test_cfg": {"type": "Sa2VATestLoop", "out_dir": "of a dumped config"},
        "val_evaluator": {"type": "VesselMetric", "threshold": 0.5},
        "test_evaluator": {"type": "VesselMetric", "threshold": 0.5, "out_dir": None},
        "optim_wrapper": {"type": "OptimWrapper", "accumulative_counts": 4},
        "default_hooks": {
            "timer": None,
            "checkpoint": {
                "type": "CheckpointHook",
                "by_epoch": False,
                "interval": 8,
                "save_best": "vessel/dice",
            },
        },
        "custom_hooks": [{"type": "EmptyCacheHook"}],
    }


def put(*changes: tuple[str, Any]) -> dict:
    """The right config with some keys set, by their path; None for a value removes the key."""
    tree = copy.deepcopy(right())
    for path, value in changes:
        *parents, last = path.split(".")
        node = tree
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if value is None:
            del node[last]
        else:
            node[int(last) if isinstance(node, list) else last] = value
    return tree


def error(tree: dict) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_rules(tree, "run.py")
    assert caught.value.found.startswith("run.py: ")
    assert caught.value.expected and caught.value.fix
    return caught.value


def test_a_right_config_passes():
    check_rules(right(), "run.py")


@pytest.mark.parametrize("key", sorted(right()))
def test_rules_are_about_what_is_there(key):
    check_rules(put((key, None)), "run.py")
    check_rules({**right(), key: None}, "run.py")
    check_rules({key: right()[key]}, "run.py")


# ------------------------------------------------------------------- windows of accumulation


@pytest.mark.parametrize(
    ("counts", "interval", "by_epoch", "wrong"),
    [(4, 8, False, False), (4, 6, False, True), (4, 6, True, False), (1, 7, False, False)],
)
def test_checkpoints_fall_on_optimiser_steps(counts, interval, by_epoch, wrong):
    cfg = {
        "optim_wrapper": {"accumulative_counts": counts},
        "default_hooks": {"checkpoint": {"interval": interval, "by_epoch": by_epoch}},
    }
    if wrong:
        assert error(cfg).fix == "default_hooks.checkpoint.interval=8"
    else:
        check_rules(cfg, "run.py")


WINDOWS = [
    ("train_cfg.val_interval", 6, 8),
    ("train_cfg.max_iters", 41, 44),
    ("default_hooks.checkpoint.interval", 2, 4),
]


@pytest.mark.parametrize(("path", "value", "fix"), WINDOWS)
def test_what_saves_falls_on_optimiser_steps(path, value, fix):
    wrong = error(put((path, value)))
    assert wrong.found == f"run.py: {path}={value} with optim_wrapper.accumulative_counts=4"
    assert wrong.fix == f"{path}={fix}"
    check_rules(put((path, fix)), "run.py")
    check_rules(put((path, value), ("optim_wrapper.accumulative_counts", None)), "run.py")
    check_rules(put((path, value), ("optim_wrapper.accumulative_counts", 1)), "run.py")


@pytest.mark.parametrize(("path", "value", "fix"), WINDOWS)
def test_the_same_for_what_a_deepspeed_run_dumped(path, value, fix):
    dumped = [
        ("optim_wrapper", {"type": "DeepSpeedOptimWrapper"}),
        ("strategy", {"type": "Sa2VADeepSpeedStrategy", "gradient_accumulation_steps": 4}),
    ]
    check_rules(put(*dumped), "run.py")
    wrong = error(put(*dumped, (path, value)))
    assert "with strategy.gradient_accumulation_steps=4" in wrong.found
    assert wrong.fix == f"{path}={fix}"


def test_validation_may_fall_anywhere_without_save_best():
    check_rules(
        put(("train_cfg.val_interval", 6), ("default_hooks.checkpoint.save_best", None)), "run.py"
    )
    check_rules(put(("train_cfg.val_interval", 6), ("val_cfg", None)), "run.py")


@pytest.mark.parametrize("where", ["default_hooks.checkpoint", "custom_hooks.0"])
def test_the_old_name_of_the_limit_names_the_new_one(where):
    hook = {"type": "CheckpointHook", "by_epoch": False, "max_keep_ckpts": 3}
    caught = error(put((where, hook)))
    assert f"{where}.max_keep_ckpts=3" in caught.found
    assert f"{where}.save_total_limit=3" in caught.fix
    assert "Sa2VACheckpointHook" in caught.fix
    ours = {"type": "Sa2VACheckpointHook", "by_epoch": False, "save_total_limit": 3}
    check_rules(put((where, ours)), "run.py")
    assert "save_total_limit=2.5" in error(put((where, {**ours, "save_total_limit": 2.5}))).found


def test_a_checkpoint_hook_anywhere_counts():
    best = {"type": "OwnCheckpointHook", "save_best": "vessel/dice", "interval": 40}
    changes = [("default_hooks.checkpoint", None), ("custom_hooks", [best])]
    check_rules(put(*changes), "run.py")
    assert "val_interval=6" in error(put(*changes, ("train_cfg.val_interval", 6))).found
    best |= {"by_epoch": False, "interval": 6}
    assert "custom_hooks.0.interval=6" in error(put(*changes)).found


def test_intervals_of_validation_that_one_does_not_see():
    assert (
        "val_interval=1000"
        in error(
            put(
                ("optim_wrapper.accumulative_counts", 3),
                ("default_hooks.checkpoint.interval", 3),
                ("train_cfg", {"type": "Sa2VATrainLoop", "max_iters": 42}),
            )
        ).found
    )
    dynamic = ("train_cfg.dynamic_intervals", [(16, 4), (32, 2)])
    assert error(put(dynamic)).fix == "train_cfg.dynamic_intervals.1.1=4"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optim_wrapper.accumulative_counts", 0),
        ("optim_wrapper.accumulative_counts", True),
        ("optim_wrapper.accumulative_counts", "4"),
        ("train_cfg.max_iters", "40"),
        ("train_cfg.val_interval", 0.5),
        ("default_hooks.checkpoint.interval", float("inf")),
    ],
)
def test_counts_are_whole_numbers(path, value):
    wrong = error(put((path, value)))
    assert f"{path}={value!r}" in wrong.found and "a whole number" in wrong.expected


# ---------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("kind", ["EMAHook", "mmengine.EMAHook", "OwnEMAHook"])
@pytest.mark.parametrize("path", ["custom_hooks.0", "default_hooks.visualization"])
def test_no_averaged_weights_but_ours(path, kind):
    wrong = error(put((path, {"type": kind})))
    assert f"{path}: {kind}" in wrong.found
    assert wrong.expected.startswith("WeightEMAHook") and wrong.fix.startswith(f"remove {path},")


@pytest.mark.parametrize(
    ("path", "kinds", "right"),
    [
        ("train_cfg", ["IterBasedTrainLoop", "Sa2VAValLoop", "unknown"], "Sa2VATrainLoop"),
        ("val_cfg", ["ValLoop", "Sa2VATestLoop"], "Sa2VAValLoop"),
        ("test_cfg", ["TestLoop", "Sa2VAValLoop"], "Sa2VATestLoop"),
        ("train_dataloader.sampler", ["InfiniteSampler", "ExactSampler"], "EpochSampler"),
        ("val_dataloader.sampler", ["DefaultSampler", "EpochSampler"], "ExactSampler"),
        ("test_dataloader.sampler", ["DefaultSampler", "EpochSampler"], "ExactSampler"),
        ("train_dataloader.collate_fn", ["pseudo_collate", "default_collate"], "sa2va_collate"),
        ("test_dataloader.collate_fn", ["pseudo_collate"], "sa2va_collate"),
        ("optim_wrapper", ["AmpOptimWrapper", "ApexOptimWrapper"], "OptimWrapper"),
    ],
)
def test_the_only_type_that_works(path, kinds, right):
    for kind in kinds:
        wrong = error(put((f"{path}.type", kind)))
        assert wrong.found == f"run.py: {path}.type={kind!r}"
        assert f"type={right!r}" in wrong.expected and wrong.fix == f"set {path}.type={right!r}"


def test_types_by_their_dotted_path():
    loop = "projects.sa2va.engine.loops.Sa2VATrainLoop"
    dataset = "projects.sa2va.datasets.folder.FolderVesselDataset"
    wrapper = "mmengine.optim.optimizer.optimizer_wrapper.OptimWrapper"
    check_rules(
        put(
            ("train_cfg.type", loop),
            ("train_dataloader.dataset.type", dataset),
            ("optim_wrapper.type", wrapper),
        ),
        "run.py",
    )


@pytest.mark.parametrize(
    ("path", "default"),
    [
        ("train_cfg.type", "IterBasedTrainLoop"),
        ("val_cfg.type", "ValLoop"),
        ("test_cfg.type", "TestLoop"),
        ("val_dataloader.collate_fn", "pseudo_collate"),
    ],
)
def test_what_mmengine_takes_where_nothing_is_said(path, default):
    assert f"has no type, which means {default}" in error(put((path, None))).found


def test_the_default_optimiser_wrapper_is_right():
    check_rules(put(("optim_wrapper.type", None)), "run.py")


@pytest.mark.parametrize("key", ["start_batch", "batch_size"])
def test_the_loop_positions_the_sampler(key):
    wrong = error(put((f"train_dataloader.sampler.{key}", 2)))
    assert wrong.found == f"run.py: train_dataloader.sampler.{key}=2"
    assert "the train loop" in wrong.expected


def test_no_batch_sampler():
    sampler = ("train_dataloader.batch_sampler", {"type": "BatchSampler"})
    assert error(put(sampler)).fix == "remove train_dataloader.batch_sampler"


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("kind", ["ConcatDataset", "RepeatDataset", "torch.utils.data.Subset"])
def test_data_sets_are_ours(split, kind):
    path = f"{split}_dataloader.dataset"
    wrong = error(put((path, {"type": kind, "datasets": [{"type": "FolderVesselDataset"}]})))
    assert wrong.found == f"run.py: {path}.type={kind!r}"
    assert "VesselDataset" in wrong.expected and "one annotation file" in wrong.fix


@pytest.mark.parametrize(
    "path",
    ["model", "train_cfg", "test_dataloader", "train_dataloader.dataset", "default_hooks.timer"],
)
def test_one_group_and_no_list(path):
    assert f"{path} is a list" in error(put((path, [{"type": "FolderVesselDataset"}]))).found


@pytest.mark.parametrize("autocast", ["float16", "float32", True])
def test_autocast_without_loss_scaling(autocast):
    wrong = error(put(("model.autocast", autocast)))
    assert wrong.found == f"run.py: model.autocast={autocast!r}"
    assert "'bfloat16' or None" in wrong.expected


def test_autocast_may_be_off():
    tree = right()
    tree["model"]["autocast"] = None
    check_rules(tree, "run.py")


# --------------------------------------------------------------------------------- evaluators


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("wrap", ["alone", "list", "evaluator"])
def test_the_folder_of_results_is_no_config_key(split, wrap):
    metric = {"type": "VesselMetric", "threshold": 0.5, "out_dir": "results"}
    node, path = {
        "alone": (metric, f"{split}_evaluator"),
        "list": ([metric], f"{split}_evaluator.0"),
        "evaluator": ({"type": "Evaluator", "metrics": [metric]}, f"{split}_evaluator.metrics.0"),
    }[wrap]
    wrong = error(put((f"{split}_evaluator", node)))
    assert wrong.found == f"run.py: {path}.out_dir='results'"
    assert f"remove {path}.out_dir" in wrong.fix and "tools/test.py" in wrong.fix
    assert "--out FOLDER" in wrong.fix


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("as_evaluator", [False, True])
def test_one_vessel_metric(split, as_evaluator):
    metrics = [{"type": "VesselMetric", "threshold": 0.5}, {"type": "DumpResults"}]

    def node() -> Any:
        return {"metrics": list(metrics)} if as_evaluator else list(metrics)

    check_rules(put((f"{split}_evaluator", node())), "run.py")
    metrics.append({"type": "VesselMetric", "threshold": 0.4})
    wrong = error(put((f"{split}_evaluator", node())))
    assert f"2 VesselMetrics in {split}_evaluator" in wrong.found and "one:" in wrong.expected


# --------------------------------------------------------------------------------- processors


def test_processors_may_differ_in_what_is_not_shared():
    top = {"image_size": 1024, "max_tiles": 1}
    check_processors(top, {"model.processor": {"image_size": 1024, "max_tiles": 6}}, "run.py")
    with pytest.raises(ConfigError, match=r"model\.processor\.image_size=512"):
        check_processors(top, {"model.processor": {"image_size": 512}}, "run.py")


def test_skeletons_and_the_loss_that_reads_them_come_together() -> None:
    made = ("train_dataloader.dataset.skeletons", True)
    read = ("model.mask_loss", {"type": "MaskLoss", "skeleton_recall_weight": 0.5})
    check_rules(put(made, read), "c.py")
    for alone in (made, read):
        with pytest.raises(ConfigError, match=r"dataset\.skeletons=.*skeleton_recall_weight="):
            check_rules(put(alone), "c.py")


@pytest.mark.parametrize(("key", "value"), [("persistent_workers", True), ("prefetch_factor", 2)])
def test_what_is_about_workers_needs_some(key: str, value: object) -> None:
    said = ("val_dataloader", {**right()["val_dataloader"], key: value})
    found = error(put(said))
    assert f"{key}={value!r}" in found.found and f"val_dataloader.{key}=" in found.fix
    check_rules(put(said, ("val_dataloader.num_workers", 1)), "run.py")

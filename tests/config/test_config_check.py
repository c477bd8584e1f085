"""The strict check: unknown keys at every level, unknown types, missing keys."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
from mmengine.registry import DATASETS, FUNCTIONS, MODELS
from torch import nn

from projects.sa2va.config_check import Checker
from projects.sa2va.config_schema import SLOTS_BY_NAME, find_type, schema_of
from projects.sa2va.datasets.patients import _KEYS as PATIENT_KEYS
from projects.sa2va.errors import ConfigError
from projects.sa2va.processing.tokenizer import _TYPES as TOKENIZER_KEYS


@dataclass
class Warp:
    rotate: float = 0.0
    zoom: float = 1.0


class CheckedBase(nn.Module):
    CONFIG_SCHEMAS = {"warp": Warp}  # noqa: RUF012

    def __init__(self, depth: int = 1, warp: dict | None = None) -> None:
        super().__init__()


@MODELS.register_module()
class CheckedModel(CheckedBase):
    CONFIG_SCHEMAS = {  # noqa: RUF012
        "lora": "peft.LoraConfig",
        "config": "transformers.InternVLConfig",
        "source": {"file": Warp, "hub": dict},
        "anything": None,
    }

    def __init__(self, part=None, lora=None, config=None, source=None, anything=None, **kwargs):
        super().__init__(**kwargs)


@MODELS.register_module()
class CheckedPart(nn.Module):
    def __init__(self, processor, width: int):
        super().__init__()


@DATASETS.register_module()
class CheckedFrames:
    def __init__(self, ann_file: str, transforms: list | None = None) -> None:
        pass


@FUNCTIONS.register_module()
def checked_collate(samples, pad: int = 0):
    return samples


FULL = {
    "work_dir": None,
    "model": {
        "type": "CheckedModel",
        "depth": 2,
        "warp": {"zoom": 2.0},
        "lora": {"r": 4, "lora_alpha": 8},
        "config": {"text_config": {"model_type": "qwen2", "hidden_size": 8}},
        "part": {"type": "CheckedPart", "width": 3},
        "anything": {"type": "of no registry", "goes": 1},
    },
    "train_dataloader": {
        "batch_size": 1,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "collate_fn": {"type": "checked_collate", "pad": 1},
        "dataset": {
            "type": "RepeatDataset",
            "times": 2,
            "dataset": {"type": "CheckedFrames", "ann_file": "x"},
        },
    },
    "train_cfg": {"by_epoch": False, "max_iters": 10},
    "val_cfg": {},
    "val_evaluator": [{"type": "DumpResults", "out_file_path": "x.pkl"}],
    "optim_wrapper": {
        "type": "AmpOptimWrapper",
        "dtype": "bfloat16",
        "accumulative_counts": 4,
        "optimizer": {"type": "AdamW", "lr": 1e-3, "betas": (0.9, 0.98)},
        "clip_grad": {"max_norm": 1.0},
        "paramwise_cfg": {"custom_keys": {"layer.0": {"lr_mult": 0.1}}},
    },
    "param_scheduler": [
        {"type": "LinearLR", "start_factor": 0.1, "convert_to_iter_based": True, "end": 2}
    ],
    "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 8, "by_epoch": False}},
    "custom_hooks": [{"type": "EMAHook", "priority": "LOW"}],
    "env_cfg": {"mp_cfg": {"mp_start_method": "fork"}, "dist_cfg": {"backend": "gloo"}},
    "log_processor": {"window_size": 5},
    "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
    "randomness": {"seed": 0, "deterministic": True},
    "compile": False,
}


def put(path: str, value: object) -> dict:
    """FULL with one key set."""
    tree = copy.deepcopy(FULL)
    *parents, last = path.split(".")
    node = tree
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[last] = value
    return tree


def drop(path: str) -> dict:
    """FULL without one key."""
    tree = put(path, None)
    node = tree
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    del node[last]
    return tree


def message(tree: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        Checker("run.py").check(tree)
    assert "run.py" in caught.value.found and caught.value.expected and caught.value.fix
    return str(caught.value)


def test_a_right_config_passes():
    Checker("run.py").check(FULL)


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("modle", "model"),
        ("train_dataloaders", "train_dataloader"),
        ("model.dpth", "depth"),  # of a base class, through **kwargs
        ("model.warp.zom", "zoom"),
        ("model.lora.lora_alpa", "lora_alpha"),
        ("model.config.txt_config", "text_config"),
        ("model.config.text_config.hiden_size", "hidden_size"),
        ("model.part.widht", "width"),
        ("train_dataloader.batchsize", "batch_size"),
        ("train_dataloader.collate_fn.pda", "pad"),
        ("train_dataloader.sampler.shufle", "shuffle"),
        ("train_dataloader.dataset.dataset.an_file", "ann_file"),
        ("train_cfg.max_iter", "max_iters"),
        ("val_evaluator.0.out_file", "out_file_path"),
        ("optim_wrapper.acumulative_counts", "accumulative_counts"),
        ("optim_wrapper.optimizer.weight_decya", "weight_decay"),
        ("optim_wrapper.clip_grad.maxnorm", "max_norm"),
        ("optim_wrapper.paramwise_cfg.custom_key", "custom_keys"),
        ("param_scheduler.0.start_facter", "start_factor"),
        ("default_hooks.checkpont", "checkpoint"),
        ("default_hooks.checkpoint.intervall", "interval"),
        ("custom_hooks.0.prioriti", "priority"),
        ("env_cfg.mp_cfg.start_method", "mp_start_method"),
        ("env_cfg.dist_cfg.backnd", "backend"),
        ("log_processor.window_sise", "window_size"),
        ("visualizer.vis_backends.0.save_dri", "save_dir"),
        ("randomness.sed", "seed"),
    ],
)
def test_unknown_key_names_its_path_and_the_nearest(path, nearest):
    text = message(put(path, 1))
    assert f"unknown key '{path}' (did you mean '{nearest}'?)" in text


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("model.type", "CheckedModle", "did you mean 'CheckedModel'"),
        ("model.type", "CheckedFrames", "it is registered in DATASETS"),
        ("train_dataloader.dataset.dataset.type", "CheckedFrame", "did you mean 'CheckedFrames'"),
        ("optim_wrapper.optimizer.type", "AdamWW", "did you mean 'AdamW'"),
        ("param_scheduler.0.type", "LinearRL", "did you mean 'LinearLR'"),
        ("model.part.type", "no.such.module.Class", "unknown 'model.part.type'"),
        ("model.source", {"type": "hubb"}, "did you mean 'hub'"),
        ("model.config.text_config.model_type", "quen2", "unknown 'model.config.text_config.mod"),
    ],
)
def test_unknown_type(path, value, expected):
    assert expected in message(put(path, value))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.part.width", "lacks width"),
        ("train_dataloader.sampler", "lacks sampler"),
        ("train_dataloader.dataset.dataset.ann_file", "add train_dataloader.dataset.dataset.ann_f"),
        ("train_cfg.max_iters", "lacks max_iters"),
        ("optim_wrapper.optimizer", "lacks optimizer"),
        ("default_hooks.checkpoint.type", "has no 'type'"),
        ("train_cfg.by_epoch", "has no 'type'"),
    ],
)
def test_missing_key(path, expected):
    assert expected in message(drop(path))


@pytest.mark.parametrize("path", ["model", "train_dataloader", "model.part.type"])
def test_group_expected(path):
    assert path in message(put(path, 3))


def test_values_must_be_plain_data():
    assert "'work_dir' is a set" in message(put("work_dir", {1, 2}))


def test_missing_and_misspelt_says_misspelt():
    tree = drop("model.part.width")
    tree["model"]["part"]["wdth"] = 3
    assert "did you mean 'width'" in message(tree)


def test_constructor_of_ones_own_checks_its_own_keys():
    tree = put("optim_wrapper.paramwise_cfg", {"free": 1})
    assert "unknown key 'optim_wrapper.paramwise_cfg.free'" in message(tree)
    tree["optim_wrapper"]["constructor"] = "MyConstructor"
    Checker("run.py").check(tree)


def test_signatures():
    class Open:
        def __init__(self, a, **rest):
            pass

    class Closed(Open):
        def __init__(self, b, *, c=1):
            pass

    class Nothing:
        pass

    assert schema_of(Open).is_open and schema_of(Open).required == {"a"}
    assert schema_of(Closed).names == ("b", "c") and not schema_of(Closed).accepts("a")
    assert not schema_of(Nothing).accepts("a")
    assert schema_of(CheckedModel).required == frozenset()


def test_find_type_by_dotted_path():
    assert find_type("torch.nn.Linear") == (nn.Linear, None)
    assert find_type("mmengine.CheckpointHook", ["HOOKS"])[1] == "HOOKS"


def test_tables_agree_with_the_readers():
    tokenizer = SLOTS_BY_NAME["tokenizer"].schema
    assert {k: {"type", *v.names} for k, v in tokenizer.items()} == TOKENIZER_KEYS
    patient = SLOTS_BY_NAME["patient"].schema
    assert {k: v.names for k, v in patient.items()} == PATIENT_KEYS

"""Loading: files, overrides, linking, dumping."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.config import config as config_module
from mmengine.registry import DATASETS, MODELS
from torch import nn

from projects.sa2va.config import (
    CONFIG_DIR,
    dataset_configs,
    dump_config,
    flatten,
    load_config,
)
from projects.sa2va.datasets.base import VesselDataset
from projects.sa2va.errors import ConfigError


@DATASETS.register_module()
class LinkedFrames(VesselDataset):
    def __init__(self, ann_file, data_root="", processor=None, size=1):
        pass

    def load_records(self):
        return []


@DATASETS.register_module()
class PlainFrames(LinkedFrames):
    def __init__(self, ann_file):
        pass


@MODELS.register_module()
class LinkedPart(nn.Module):
    def __init__(self, processor, width: int, pretrained=None, betas=(0.9, 0.99)):
        super().__init__()


@MODELS.register_module()
class LinkedModel(nn.Module):
    CONFIG_SCHEMAS = {"lora": "peft.LoraConfig"}  # noqa: RUF012

    def __init__(self, processor, mllm=None, lora=None, drop: float = 0.0, flag: bool = True):
        super().__init__()


BASE = """
data_root = "frames"
processor = dict(tokenizer=dict(type="byte_level"), tile_size=112, max_tiles=1)
model = dict(type="LinkedModel", mllm=dict(type="LinkedPart", width=4), drop=0.5)
train_dataloader = dict(
    batch_size=2,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(type="LinkedFrames", ann_file="a.json"),
)
val_dataloader = dict(
    batch_size=1,
    sampler=dict(type="ExactSampler"),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(type="LinkedFrames", ann_file="b.json", data_root="elsewhere"),
)
test_dataloader = dict(
    batch_size=1,
    sampler=dict(type="ExactSampler"),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(type="PlainFrames", ann_file="c.json"),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=20),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end=100),
]
"""


@pytest.fixture
def config(tmp_path: Path):
    """Writes BASE plus the given text as a config, returns its path."""
    (tmp_path / "base.py").write_text(BASE)

    def write(text: str = "", name: str = "run.py") -> Path:
        path = tmp_path / name
        path.write_text(f'_base_ = ["base.py"]\n{text}')
        return path

    return write


def message(path: Path, options: dict | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, options)
    error = caught.value
    assert error.found and error.expected and error.fix
    return str(error)


# ------------------------------------------------------------------------------------- files


def test_missing_file_suggests_the_nearest(config):
    path = config(name="vessel_finetune.py")
    assert f"did you mean '{path}'" in message(path.with_name("vessel_finetun.py"))


def test_missing_file_elsewhere_lists_ours(tmp_path):
    assert str(CONFIG_DIR) in message(tmp_path / "none" / "sa2va_demo.py")


def test_syntax_error_names_file_and_line(config):
    text = message(config("model = dict(drop=1.0\nx ="))
    assert "run.py, line " in text


def test_syntax_error_in_a_base_names_the_base(config, tmp_path):
    path = config()
    (tmp_path / "base.py").write_text("a = 1\nb = = 2\n")
    assert "base.py, line 2" in message(path)


def test_error_while_running_names_the_line(config):
    assert "run.py, line 3: NameError" in message(config("_a = 1\ndata_root = undefined_name\n"))


def test_missing_base(tmp_path):
    path = tmp_path / "run.py"
    path.write_text('_base_ = ["gone.py"]')
    assert "gone.py" in message(path)


def test_bases_in_a_circle(tmp_path):
    path = tmp_path / "run.py"
    path.write_text('_base_ = ["run.py"]')
    assert "circle" in message(path)


def test_import_style_is_refused(tmp_path):
    path = tmp_path / "run.py"
    path.write_text("from torch.optim import AdamW\nwork_dir = 'x'\n")
    assert "text style" in message(path)


def test_a_missing_import_is_a_config_error(config):
    text = message(config("custom_imports = dict(imports=['no_such_module_of_mine'])"))
    assert "no_such_module_of_mine" in text


def test_helpers_are_dropped(config):
    cfg = load_config(config("import os\n_half = 0.25\nmodel = dict(drop=_half)\ndef f():\n  pass"))
    assert cfg.model.drop == 0.25
    assert not {"_half", "os", "f"} & set(cfg)


def test_grey_values_of_augmentation_stand_in_one_part(tmp_path):
    parts = CONFIG_DIR.parents[2] / "configs/_base_/datasets"
    for file in parts.glob("*.py"):
        text = file.read_text().replace("gamma=(0.6, 1.6)", "gamma=(0.9, 1.1)")
        (tmp_path / file.name).write_text(text.replace("noise=(1, 10)", "noise=(1, 2)", 1))
    part = "grey_value_augmentation.py"
    for name in {file.name for file in parts.glob("*_augmented.py")}:
        (tmp_path / name).write_text((parts / name).read_text())
        _, grey, detector = Config.fromfile(tmp_path / name).train_dataloader.dataset.augment
        assert (grey.gamma, detector.noise) == ((0.9, 1.1), (1, 2)), f"{name} without {part}"


def test_delete_replaces_a_group(config):
    cfg = load_config(config("model = dict(mllm=dict(_delete_=True, type='LinkedPart', width=9))"))
    assert cfg.model.mllm.width == 9


# ----------------------------------------------------------------------------------- linking


def test_shared_keys_are_handed_down(config):
    cfg = load_config(config("data_root = 'mine'\nprocessor = dict(tile_size=56)"))
    first, second = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert cfg.model.processor == cfg.processor == first.processor == second.processor
    assert cfg.processor.tile_size == 56
    assert (first.data_root, second.data_root) == ("mine", "elsewhere")
    assert set(cfg.test_dataloader.dataset) == {"type", "ann_file"}  # it accepts neither
    first.processor.tile_size = 1
    assert cfg.processor.tile_size == 56  # copies, not aliases


def test_own_keys_of_a_part_win(config):
    cfg = load_config(
        config(
            "test_dataloader = dict(dataset=dict(type='LinkedFrames',processor=dict(max_tiles=6)))"
        )
    )
    assert cfg.test_dataloader.dataset.processor == {**cfg.processor, "max_tiles": 6}


def test_sizes_must_not_differ_between_parts(config):
    text = "test_dataloader=dict(dataset=dict(type='LinkedFrames',processor=dict(tile_size=56)))"
    assert "test_dataloader.dataset.processor.tile_size=56" in message(config(text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("train_dataloader=dict(dataset=[dict(type='PlainFrames', ann_file='x')])", "is a list"),
        ("custom_hooks=[dict(type='EMAHook')]", "custom_hooks.0: EMAHook"),
    ],
)
def test_rules_are_part_of_loading(config, text, found):
    assert found in message(config(text))


def test_tokenizer_is_that_of_the_pretrained_model(config):
    path = config(
        "processor = dict(tokenizer=dict(_delete_=True, type='pretrained'))\n"
        "model = dict(mllm=dict(pretrained='some/model'))"
    )
    assert load_config(path).model.processor.tokenizer.path == "some/model"
    cfg = load_config(path, {"model.mllm.pretrained": "another"})
    assert cfg.train_dataloader.dataset.processor.tokenizer.path == "another"


def test_override_of_a_dumped_config_reaches_the_copies(config, tmp_path):
    dump_config(load_config(config()), tmp_path / "dumped.py")
    options = {"processor.max_tiles": 3, "data_root": "moved"}
    cfg = load_config(tmp_path / "dumped.py", options)
    first, second = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert cfg.model.processor.max_tiles == first.processor.max_tiles == 3
    assert (first.data_root, second.data_root) == ("moved", "elsewhere")


def test_dataset_configs(config):
    assert {k: v.type for k, v in dataset_configs(load_config(config())).items()} == {
        "train": "LinkedFrames",
        "val": "LinkedFrames",
        "test": "PlainFrames",
    }


# --------------------------------------------------------------------------------- overriding


def test_override_of_a_nested_list_element(config):
    options = {"param_scheduler.1.end": 50, "train_dataloader.dataset.size": 7}
    cfg = load_config(config(), options)
    assert [s["end"] for s in cfg.param_scheduler] == [20, 50]
    assert [d.get("size") for d in dataset_configs(cfg).values()] == [7, None, None]


def test_override_may_add_what_the_class_accepts(config):
    cfg = load_config(config(), {"model.flag": False, "model.lora.r": 2, "resume": True})
    assert (cfg.model.flag, cfg.model.lora, cfg.resume) == (False, {"r": 2}, True)


def test_override_by_a_dict_merges_unless_told_to_replace(config):
    assert load_config(config(), {"model": {"drop": 0.1}}).model.mllm.width == 4
    replaced = {"_delete_": True, "type": "LinkedModel", "drop": 0.1}
    assert load_config(config(), {"model": replaced}).model.get("mllm") is None


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("modle.drop", 0.1, "did you mean 'model'"),
        ("model.drp", 0.1, "did you mean 'drop'"),
        ("model.mlm.width", 3, "did you mean 'mllm'"),
        ("model.lora.rank", 3, "no key 'model.lora.rank'"),
        ("model.drop.x", 3, "'model.drop' is 0.5, not a group"),
        ("param_scheduler.2.end", 3, "no element '2'"),
        ("param_scheduler.end", 3, "no element 'end'"),
        ("train_dataloader.dataset.sise", 3, "did you mean 'size'"),
        ("model.drop", "0.1x", "expected: a number"),
        ("model.mllm", 3, "a key below the group"),
    ],
)
def test_wrong_override(config, key, value, expected):
    text = message(config(), {key: value})
    assert expected in text and f"--cfg-options {key}" in text


def test_a_switch_that_takes_a_word_too(config):
    path = config("model = dict(mllm=dict(gradient_checkpointing=True))")
    key = "model.mllm.gradient_checkpointing"
    assert load_config(path, {key: "cpu"}, check=False).model.mllm.gradient_checkpointing == "cpu"
    assert "a switch (True or False)" in message(path, {key: "gpu"})


def test_a_number_that_takes_a_word_too() -> None:
    path = CONFIG_DIR / "sa2va_arcade_segments_small.py"
    key = "val_dataloader.dataset.absent"
    assert load_config(path).val_dataloader.dataset.absent == 3
    assert load_config(path, {key: "all"}).val_dataloader.dataset.absent == "all"
    assert f"a number, as in {key}=3" in message(path, {key: "none"})


def test_override_of_a_tuple_element(config):
    path = config("model = dict(mllm=dict(betas=(0.9, 0.99)))")
    assert 'model.mllm.betas="(0.9,0.99)"' in message(path, {"model.mllm.betas.0": 0.8})
    cfg = load_config(path, {"model.mllm.betas": (0.8, 0.9)})
    assert cfg.model.mllm.betas == (0.8, 0.9)


# ------------------------------------------------------------------------------------ dumping


def test_dump_loads_back_equal(config, tmp_path):
    cfg = load_config(config("work_dir = None"), {"model.drop": 0.25})
    dump_config(cfg, tmp_path / "new" / "dumped.py")
    assert load_config(tmp_path / "new" / "dumped.py").to_dict() == cfg.to_dict()


@pytest.mark.parametrize("value", [float("inf"), "a {{ fileBasename }} b"])
def test_dump_refuses_what_would_not_load_back(config, tmp_path, value):
    cfg = load_config(config())
    cfg.work_dir = value
    with pytest.raises(ConfigError, match="cannot be written"):
        dump_config(cfg, tmp_path / "dumped.py")


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.rglob("*.py")), ids=lambda p: p.stem)
def test_our_configs_load_and_dump(path, tmp_path, monkeypatch):
    cfg = load_config(path)
    # Line breaks take longest of all, and need no more configs than the other tests have.
    monkeypatch.setattr(config_module, "FormatCode", lambda text, **_: (text, True))
    dump_config(cfg, tmp_path / "dumped.py")
    assert load_config(tmp_path / "dumped.py").to_dict() == cfg.to_dict()
    validates = cfg.get("val_cfg") is not None
    assert set(dataset_configs(cfg)) == {"train", "test"} | ({"val"} if validates else set())


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
TREES = st.recursive(
    LEAVES, lambda t: st.dictionaries(st.sampled_from("abc"), t, max_size=3), max_leaves=9
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from("abc"), TREES, min_size=1))
def test_flatten_keeps_every_leaf(tree):
    flat = flatten(tree)
    for key, value in flat.items():
        node = tree
        for part in key.split("."):
            node = node[part]
        assert node == value

    def count(node):
        return sum(map(count, node.values())) if isinstance(node, dict) and node else 1

    assert len(flat) == count(tree)


def test_flatten_numbers_lists_of_groups():
    cfg = Config({"a": [{"b": 1}, {"b": 2}], "c": [1, 2]})
    assert flatten(cfg) == {"a.0.b": 1, "a.1.b": 2, "c": [1, 2]}

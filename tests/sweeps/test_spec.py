"""Sweep files: what they mean, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from projects.sa2va.errors import CheckpointError, ConfigError, DataError
from projects.sa2va.sweeps import check_data, read_spec, resolve
from projects.sa2va.sweeps.spec import Tuning
from tests.conftest import ROOT


def test_rows_hold_options_or_another_config(make_spec, tmp_path):
    rows = {"a": {"options": {"model.mllm.lora.r": 4}}, "b": {"config": "sub/other.py"}}
    spec = make_spec(rows=rows, tune={"split": "val", "metric": "cldice"}, metrics=["hd95"])
    assert [row.name for row in spec.rows] == ["a", "b"]
    assert spec.rows[0].options == {"model.mllm.lora.r": 4}
    assert spec.rows[0].config == tmp_path / "base.py"
    assert spec.rows[1].config == tmp_path / "sub" / "other.py"
    assert spec.tune == Tuning(metric="cldice") and spec.metrics == ("hd95",)


def test_a_grid_is_every_combination_by_the_shortest_names_that_differ(make_spec):
    grid = {
        "model.mllm.lora.r": [4, 8],
        "optim_wrapper.optimizer.lr": [1e-3, 0.0002],
        "x.r": [None],
    }
    spec = make_spec(rows=None, grid=grid, baseline="lora.r=8,lr=0.001,x.r=None")
    assert [row.name for row in spec.rows] == [
        f"lora.r={r},lr={lr},x.r=None" for r in (4, 8) for lr in ("0.001", "0.0002")
    ]
    assert spec.rows[1].options == dict(zip(grid, (4, 2e-4, None), strict=True))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"seed": [1]}, "unknown key 'seed' (did you mean 'seeds'?)"),
        ({"rows": None}, "neither rows nor grid"),
        ({"grid": {"key": [1]}}, "rows and grid"),
        ({"rows": {}}, "rows is {}"),
        ({"rows": {"a": {"model.mllm.lora.r": 4}}}, "has the key 'model.mllm.lora.r'"),
        ({"rows": {"a": {"option": {}}}}, "(did you mean 'options'?)"),
        ({"rows": {"a": 4}}, "rows['a'] is 4"),
        ({"rows": {"../a": {}}}, "the name of a row is '../a'"),
        ({"rows": {"a": {}, "A": {}}}, "the name of a row is 'A'"),
        ({"rows": {"a": {"options": {"randomness.seed": 1}}}}, "randomness.seed"),
        ({"config": None}, "config is None"),
        ({"rows": None, "grid": {"key": 4}}, "grid['key'] is 4"),
        ({"rows": None, "grid": {"key": ["a/b", "a b"]}, "baseline": None}, "'key=a-b'"),
        ({"seeds": []}, "seeds is []"),
        ({"seeds": [0, 0]}, "seeds is [0, 0]"),
        ({"seeds": [True]}, "seeds is True"),
        ({"metrics": ["dize"]}, "(did you mean 'dice'?)"),
        ({"metrics": "dice"}, "metrics is 'dice'"),
        ({"baseline": "aa"}, "baseline is 'aa'"),
        ({"tune": {"split": "test"}}, "tune['split'] is 'test'"),
        ({"tune": {"by": "dice"}}, "tune is 'by'"),
        ({"tune": {}, "test_split": "val"}, "test_split is 'val'"),
        ({"checkpoint": "first"}, "checkpoint is 'first'"),
        ({"bootstrap": 0}, "bootstrap is 0"),
    ],
)
def test_what_is_wrong_is_said_in_three_parts(make_spec, changes, found):
    with pytest.raises(ConfigError) as error:
        make_spec(**changes)
    assert found in error.value.found
    assert error.value.expected and error.value.fix


def test_the_shipped_sweep_resolves():
    spec = read_spec(ROOT / "configs/sweeps/demo_lora_rank.py")
    configs = resolve(spec)
    assert [cfg.model.mllm.lora.r for cfg in configs.values()] == [8, 2, 8]
    assert not configs["no_decoder"].model.grounding.train_mask_decoder


def spec_of(experiment: Path, rows: dict, **more: object):
    path = experiment.parent / "my.py"
    content = {"config": experiment.name, "rows": rows, **more}
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in content.items()))
    return read_spec(path)


def test_every_row_is_resolved_before_the_first_run(experiment):
    good = {"options": {"model.mllm.lora.r": 1}}
    configs = resolve(spec_of(experiment, {"a": {}, "b": good}))
    assert [cfg.model.mllm.lora.r for cfg in configs.values()] == [2, 1]
    for bad, found in (
        ({"options": {"model.mllm.lora.rank": 1}}, "row 'b': --cfg-options model.mllm.lora.rank"),
        ({"options": {"model.mllm.lora.r": 2}}, "'a' and 'b' resolve to the same config"),
        ({"config": "nowhere.py"}, "row 'b': no config file"),
        ({"options": {"default_hooks.checkpoint.save_best": None}}, "save_best=None"),
        ({"options": {"test_evaluator.save_probabilities": "none"}}, "save_probabilities='none'"),
        (
            {"config": str(ROOT / "projects/sa2va/configs/baselines/frangi_synthetic.py")},
            "nothing to train",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            resolve(spec_of(experiment, {"a": {}, "b": bad}, tune={"split": "val"}))
        assert found in error.value.found


def test_data_are_read_once_and_must_be_the_same_for_all_rows(experiment, monkeypatch):
    from projects.sa2va.sweeps import validate

    read = []
    real = validate.check_training_data
    monkeypatch.setattr(
        validate,
        "check_training_data",
        lambda cfg, *begun: read.append(cfg) or real(cfg, *begun),
    )
    lora, other = {"model.mllm.lora.r": 1}, {"test_dataloader.dataset.limit": 1}
    spec = spec_of(experiment, {"a": {}, "b": {"options": lora}})
    check_data(spec, resolve(spec))
    assert len(read) == 1
    spec = spec_of(experiment, {"a": {}, "b": {"options": other}})
    with pytest.raises(ConfigError, match="the test frames or labels of b are not those of 'a'"):
        check_data(spec, resolve(spec))
    next((experiment.parent / "data").rglob("*.png")).write_bytes(b"no image")
    with pytest.raises(DataError, match="row 'a'"):
        check_data(spec, resolve(spec))


@pytest.mark.parametrize(
    "begun",
    [
        {"init_from": {"checkpoint": "nowhere.pth", "parts": ["[SEG] projector"]}},
        {"load_from": "nowhere.pth"},
    ],
)
def test_what_a_row_starts_from_is_read_before_the_first_run(experiment, begun):
    spec = spec_of(experiment, {"a": {}, "b": {"options": begun}})
    with pytest.raises(CheckpointError, match=r"row 'b': no checkpoint at nowhere\.pth"):
        check_data(spec, resolve(spec))
    check_data(spec, resolve(spec), ["a"])

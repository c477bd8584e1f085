"""The measuring scripts, as far as a test can go: what they write, and that they notice."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks import load_true_size, true_size
from projects.sa2va.config import load_config
from projects.sa2va.errors import SetupError
from projects.sa2va.sweeps import read_spec
from projects.sa2va.weights.layouts import open_source


def test_the_written_folder_is_a_released_sa2va_and_a_changed_copy_is_noticed(
    tmp_path: Path,
) -> None:
    folder, copy = tmp_path / "source", tmp_path / "copy"
    written = load_true_size.write("tiny", folder)
    source = open_source(folder)
    assert source.layout.name == "sa2va" and len(source.files.files) == written["shards"] > 1
    assert not (source.renamed.unknown or source.renamed.incomplete or source.renamed.ignored)

    shutil.copytree(folder, copy)
    assert load_true_size.compare(folder, copy, "sa2va")["equal_tensors"] == written["tensors"]
    shard = sorted(copy.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, shard)
    with pytest.raises(RuntimeError, match="1 tensors differ"):
        load_true_size.compare(folder, copy, "sa2va")


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("train 1024, batch 1", 128_936),
        ("train 1024, batch 1, 8-bit AdamW", 128_936),
        ("train 1024, batch 4, checkpointing to CPU", 128_936),
        # Both tables of 351 x 32 instead of five rows of each.
        ("2B: train 1024, batch 1, as the reference (modules_to_save)", 128_936 - 320 + 22_464),
        ("predict 1024, batch 1, forced, NF4", 128_936),
        ("predict 1024, batch 1, forced, LoRA merged", None),
    ],
)
def test_a_case_of_every_kind_runs_on_a_tiny_model(
    experiment: Path, name: str, trained: int | None
) -> None:
    row = true_size.measure(name, 1, config=experiment)
    assert row["seconds"] > 0 and row["device"] == "cpu"
    if trained is not None:
        assert row["trainable_millions"] == pytest.approx(trained / 1e6)


def test_what_mild_augmentation_is_stands_in_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(true_size.__file__).parent)
    costs = importlib.import_module("recipe_costs")
    text = costs.SWEEP.read_text().replace('"rotate": (-15, 15)', '"rotate": (-3, 3)')
    monkeypatch.setattr(costs, "SWEEP", tmp_path / "sweep.py")
    costs.SWEEP.write_text(text)
    assert costs.item_cases()["mildly augmented"]["augment"]["rotate"] == (-3, 3)


def test_every_step_whose_cost_is_measured_is_a_row_that_can_be_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The optimiser too: it refuses learning rates of parts that a row leaves out."""
    monkeypatch.syspath_prepend(Path(true_size.__file__).parent)
    costs = importlib.import_module("recipe_costs")
    rows = read_spec(costs.SWEEP)
    for name, row in costs.STEPS.items():
        cfg = load_config(costs.CONFIG, dict(rows.row(row).options))
        parts = set(cfg.optim_wrapper.paramwise_cfg.lr_mult)
        has_head = cfg.model.high_resolution is not None
        assert ("high-resolution head" in parts) is has_head, name


def test_the_options_of_every_case_are_keys_of_its_config() -> None:
    for name, case in true_size.CASES.items():
        cfg = load_config(true_size.CONFIGS / f"true_size_{case.size}.py", dict(case.options))
        assert cfg.processor.image_size == (512 if " 512" in name else 1024), name


def test_missing_golden_numbers_say_how_to_give_them(tmp_path: Path) -> None:
    from benchmarks import reference_parity

    with pytest.raises(SetupError, match=r"(?s)F1_model.*--reference FOLDER"):
        reference_parity.find_reference(str(tmp_path))

"""The measuring scripts, as far as a test can go: what they write, and that they notice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks import load_true_size
from projects.sa2va.errors import SetupError
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


def test_missing_golden_numbers_say_how_to_give_them(tmp_path: Path) -> None:
    from benchmarks import reference_parity

    with pytest.raises(SetupError, match=r"(?s)F1_model.*--reference FOLDER"):
        reference_parity.find_reference(str(tmp_path))

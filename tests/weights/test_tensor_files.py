"""Files of every kind, recognised by what is in them; damage, named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from projects.sa2va.errors import CheckpointError
from projects.sa2va.weights import TensorFiles
from projects.sa2va.weights.tensor_files import has_tensors, is_safetensors

from .conftest import write_shards

TENSORS: dict[str, Tensor] = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.arange(4.0).to(torch.bfloat16),
    "c": torch.tensor(3),
    "d": torch.zeros(0, 2, dtype=torch.float16),
    "e": torch.tensor([True, False]),
}
INDEX = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}


def _single_safetensors(folder: Path) -> Path:
    save_file(TENSORS, folder / "model.safetensors")
    return folder


def _bin(folder: Path) -> Path:
    torch.save(TENSORS, folder / "pytorch_model.bin")
    return folder


def _legacy_bin(folder: Path) -> Path:
    torch.save(TENSORS, folder / "x.bin", _use_new_zipfile_serialization=False)
    return folder


def _meta(folder: Path) -> Path:
    torch.save({"model": TENSORS, "epoch": 3}, folder / "sam2.pt")
    return folder


def _mmengine(folder: Path) -> Path:
    torch.save({"meta": {"iter": 3}, "state_dict": TENSORS}, folder / "iter_3.pth")
    return folder / "iter_3.pth"


def _shards(folder: Path) -> Path:
    write_shards(folder, TENSORS, save_file, "safetensors")
    return folder


def _bin_shards(folder: Path) -> Path:
    write_shards(folder, TENSORS, torch.save, "bin")
    return folder


def _safetensors_called_bin(folder: Path) -> Path:
    save_file(TENSORS, folder / "pytorch_model.bin")
    return folder


def _torch_called_safetensors(folder: Path) -> Path:
    torch.save(TENSORS, folder / "model.safetensors")
    return folder


def _meta_called_weights(folder: Path) -> Path:
    torch.save({"model": TENSORS}, folder / "foo.weights")
    return folder / "foo.weights"


def _beside_others(folder: Path) -> Path:
    """safetensors before everything else: they hold no pickle."""
    torch.save({"other": torch.zeros(1)}, folder / "optimizer.bin")
    torch.save({"other": torch.zeros(1)}, folder / "rng.pt")
    return _single_safetensors(folder)


KINDS = [
    _single_safetensors,
    _bin,
    _legacy_bin,
    _meta,
    _mmengine,
    _shards,
    _bin_shards,
    _safetensors_called_bin,
    _torch_called_safetensors,
    _meta_called_weights,
    _beside_others,
]


@pytest.mark.parametrize("write", KINDS)
def test_every_kind_gives_the_same_tensors(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path)
    files = TensorFiles(path)
    assert files.keys() == TENSORS.keys() and len(files) == len(TENSORS)
    for name, expected in TENSORS.items():
        entry, tensor = files.entries[name], files[name]
        assert entry.shape == tuple(expected.shape) and entry.dtype == expected.dtype
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)
        assert torch.equal(files.lazily(name)[...], expected)
        assert entry.file in files.files
    assert len(files.files) == (3 if "shards" in write.__name__ else 1)
    assert has_tensors(path) or not any(p.suffix in (".bin", ".pt") for p in tmp_path.iterdir())
    assert files.extra == {"_meta": {"epoch": 3}, "_mmengine": {"meta": {"iter": 3}}}.get(
        write.__name__, {}
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(length=st.integers(0, 700))
def test_safetensors_of_every_header_length(tmp_path_factory, length: int) -> None:
    """The header's length is the first byte of the file; a pickle's first byte is 0x80."""
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    path.write_bytes(save({"a" * (length + 1): torch.zeros(1)}))
    assert is_safetensors(path)


@pytest.mark.parametrize("low", [0x80, 0x4B50])
def test_a_header_length_that_looks_like_a_pickle_or_zip(tmp_path: Path, low: int) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", low) + header.ljust(low) + struct.pack("<f", 2.5))
    assert path.read_bytes()[:2] in (b"\x80\x00", b"PK")
    assert TensorFiles(tmp_path)["w"].item() == 2.5


def error(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        TensorFiles(path)
    assert caught.value.expected and caught.value.fix
    return caught.value


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(share=st.floats(0, 0.999), zipped=st.booleans())
def test_a_file_cut_short_anywhere(tmp_path: Path, share: float, zipped: bool) -> None:
    path = tmp_path / "cut.weights"
    torch.save(TENSORS, path) if zipped else save_file(TENSORS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    found = error(path).found
    assert "cut.weights" in found and "cut short" in found


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_shard_that_is_cut_short(tmp_path: Path, kind: str) -> None:
    write = save_file if kind == "safetensors" else torch.save
    shard_of = write_shards(tmp_path, TENSORS, write, kind)
    shard = tmp_path / shard_of["a.weight"]
    shard.write_bytes(shard.read_bytes()[:-5])
    found = error(tmp_path).found
    assert shard.name in found and "cut short" in found


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_index_that_names_an_absent_shard(tmp_path: Path, kind: str) -> None:
    write = save_file if kind == "safetensors" else torch.save
    shard_of = write_shards(tmp_path, TENSORS, write, kind)
    assert has_tensors(tmp_path)
    (tmp_path / shard_of["c"]).unlink()
    assert not has_tensors(tmp_path)
    caught = error(tmp_path)
    assert f"names {shard_of['c']}, which is not there" in caught.found
    assert "download" in caught.fix and "all 3 shards" in caught.expected


def test_a_tensor_of_the_index_that_no_shard_has(tmp_path: Path) -> None:
    shard_of = write_shards(tmp_path, TENSORS, save_file, "safetensors")
    index = {"weight_map": {**shard_of, "lost.weight": shard_of["c"]}}
    (tmp_path / INDEX["safetensors"]).write_text(json.dumps(index))
    found = error(tmp_path).found
    assert "1 not where it says: lost.weight" in found and "not in it" not in found


def test_a_tensor_of_a_shard_that_the_index_lacks(tmp_path: Path) -> None:
    shard_of = write_shards(tmp_path, TENSORS, save_file, "safetensors")
    del shard_of["d"]
    (tmp_path / INDEX["safetensors"]).write_text(json.dumps({"weight_map": shard_of}))
    found = error(tmp_path).found
    assert "1 not in it: d" in found and "not where" not in found


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path: Path) -> None:
    shard_of = write_shards(tmp_path, TENSORS, save_file, "safetensors")
    index = {"weight_map": {**shard_of, "c": shard_of["a.weight"]}}
    (tmp_path / INDEX["safetensors"]).write_text(json.dumps(index))
    assert "1 not where it says: c" in error(tmp_path).found


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    shard_of = write_shards(tmp_path, TENSORS, save_file, "safetensors")
    both = {n: t for n, t in TENSORS.items() if shard_of[n] == shard_of["b.weight"]}
    save_file({**both, "c": torch.zeros(1)}, tmp_path / shard_of["b.weight"])
    found = error(tmp_path).found
    assert found.startswith("c is in") and all(shard_of[n] in found for n in ("b.weight", "c"))


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "\xff", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}'),
        *('{"weight_map": {"a": null}}', '{"weight_map": {"a": "x", "b": 3}}'),
    ],
)
def test_a_damaged_index(tmp_path: Path, content: str) -> None:
    save_file(TENSORS, tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / INDEX["safetensors"]).write_bytes(content.encode("latin1"))
    assert not has_tensors(tmp_path)
    caught = error(tmp_path)
    assert INDEX["safetensors"] in caught.found and "weight_map" in caught.expected


def test_an_empty_folder_and_one_without_weights(tmp_path: Path) -> None:
    assert "it holds nothing" in error(tmp_path).found and not has_tensors(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    caught = error(tmp_path)
    assert "config.json" in caught.found and str(tmp_path) in caught.found
    assert not has_tensors(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt", "pth"])
def test_several_files_without_index(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        torch.save(TENSORS, tmp_path / f"{name}.{suffix}")
    found = error(tmp_path).found
    assert f"2 .{suffix} files and no index" in found
    assert f"one.{suffix}, two.{suffix}" in found


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in error(tmp_path / "model.safetensors").found


def test_quantized_safetensors_name_tensor_and_dtype(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    caught = error(tmp_path)
    assert "w in" in caught.found and "F8_E4M3" in caught.found and "bfloat16" in caught.fix


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        ([1, 2], "list"),
        (torch.zeros(2), "Tensor"),
        ({"model": {"w": torch.zeros(2), "lr": 0.1}}, "float"),
        ({"state": {"w": torch.zeros(2)}, "step": 3}, "dict, int"),
    ],
)
def test_torch_files_without_weights(tmp_path: Path, content: Any, holds: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert f"a.pt holds {holds} where weights were expected" in error(tmp_path).found


def test_a_pickle_that_would_run_code(tmp_path: Path) -> None:
    torch.save({"model": {}, "extra": test_torch_files_without_weights}, tmp_path / "a.pt")
    assert "would have to run" in error(tmp_path).found

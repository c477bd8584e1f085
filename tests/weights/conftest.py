"""The fixtures of shared/reference, and folders of weights made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.reference_model import model_config


@pytest.fixture(scope="session")
def reference(shared_dir: Path) -> Path:
    """Folder of the reference's tiny models."""
    path = shared_dir / "reference"
    if not (path / "F8_bases").is_dir():
        pytest.skip(f"no weights of the reference in {path}")
    return path


@pytest.fixture(scope="session")
def released(reference: Path) -> dict[str, Tensor]:
    """The released model's tensors. Read them only."""
    return load_file(reference / "F1_model" / "model.safetensors")


@pytest.fixture(scope="session")
def sam2_sizes(reference: Path) -> dict[str, Any]:
    """``Sam2Config`` of the reference's tiny SAM2, which is no published size."""
    return model_config(reference)["grounding"]["config"]


@pytest.fixture(scope="session")
def f8(reference: Path) -> Path:
    return reference / "F8_bases" / "internvl3_original"


@pytest.fixture(scope="session")
def f8_tensors(f8: Path) -> dict[str, Tensor]:
    return load_file(f8 / "model.safetensors")


@pytest.fixture(scope="session")
def meta(reference: Path) -> Path:
    return reference / "F8_bases" / "sam2_original" / "tiny.pt"


def write_folder(folder: Path, tensors: dict[str, Tensor], config: dict | Path | None) -> Path:
    """A folder with one safetensors file, and a config.json (or a copy of one)."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    if isinstance(config, Path):
        config = json.loads((config / "config.json").read_text())
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_shards(folder: Path, tensors: dict[str, Tensor], save: Any, kind: str) -> dict[str, str]:
    """Three shards with their index; gives the index's weight_map.

    Args:
        folder: where to.
        tensors: what to write.
        save: ``safetensors.torch.save_file`` or ``torch.save``.
        kind: ``safetensors`` or ``bin``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    shard_of = {n: f"{stem}-{i % 3 + 1:05d}-of-00003.{kind}" for i, n in enumerate(tensors)}
    for shard in set(shard_of.values()):
        save({n: t for n, t in tensors.items() if shard_of[n] == shard}, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": shard_of}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return shard_of

"""Weights from folders, from the hub, from a seed."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, snapshot_download
from safetensors.torch import load_file, save_file
from torch import nn

from projects.sa2va import hub
from projects.sa2va.errors import CheckpointError, ConfigError, SetupError
from projects.sa2va.models import grounding, internvl
from projects.sa2va.models.building import Built, build_weights, first_parameter, resolve_dtype

from .conftest import GROUNDING_CONFIG, MLLM_CONFIG, merged

KINDS = {"mllm": internvl.part_kind(), "grounding": grounding.part_kind()}
HEAD = "language_model.lm_head.weight"  # its name in files, also in released ones
CONFIGS = {
    "mllm": merged(MLLM_CONFIG, dict(text_config=dict(model_type="qwen2", vocab_size=64))),
    "grounding": GROUNDING_CONFIG,
}


def built(kind: str = "mllm", **changes: Any) -> Built:
    arguments = dict(
        pretrained=None,
        config=None,
        dtype=torch.float32,
        attn_implementation="sdpa",
        seed=0,
        device="cpu",
    )
    return build_weights(KINDS[kind], **{**arguments, **changes})


def weights(kind: str = "mllm", **changes: Any) -> nn.Module:
    return built(kind, **changes).model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both parts in bfloat16, as ``save_pretrained`` writes them."""
    root = tmp_path_factory.mktemp("weights")
    for kind, config in CONFIGS.items():
        weights(kind, config=merged(config, {}), dtype=torch.bfloat16).save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def copy(saved: dict[str, Path], tmp_path: Path) -> Path:
    """The MLLM's folder, to be broken."""
    return Path(shutil.copytree(saved["mllm"], tmp_path / "copy"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_saved_folder_comes_back_bit_equal(saved, kind: str, dtype: torch.dtype) -> None:
    model = weights(kind, pretrained=str(saved[kind]), dtype=dtype)
    assert first_parameter(model).dtype == dtype
    original = weights(kind, config=merged(CONFIGS[kind], {}), dtype=torch.bfloat16)
    assert model.config._attn_implementation == "sdpa"
    own, expected = model.state_dict(), original.state_dict()
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(own[name].float(), value.float()), name


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (weights(config=merged(CONFIGS["mllm"], {}), seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    table = [m.get_input_embeddings().weight for m in (one, same, other)]
    assert torch.equal(table[0], table[1]) and not torch.equal(table[0], table[2])


def test_loading_leaves_the_generator_alone(saved) -> None:
    before = torch.random.get_rng_state()
    weights(pretrained=str(saved["mllm"]))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("sources", [dict(), dict(pretrained="x/y", config={})])
def test_exactly_one_source(sources: dict) -> None:
    with pytest.raises(ConfigError, match=r"model\.mllm\.pretrained=.*config"):
        weights(**sources)


@pytest.mark.parametrize(
    "config",
    [
        dict(text_config="x"),
        dict(text_config=dict(model_type="qwen2", hidden_size="many")),
        dict(text_config=dict(model_type="no such model")),
    ],
)
def test_a_config_that_transformers_refuses(config: dict) -> None:
    with pytest.raises(ConfigError, match=r"model\.mllm\.config is refused by InternVLConfig"):
        weights(config=config)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_missing_folder(path: str) -> None:
    with pytest.raises(SetupError, match="no folder"):
        weights(pretrained=path)


def test_missing_weights_are_named(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = next(n for n in tensors if n.endswith("0.mlp.up_proj.weight"))
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensors missing .*0.mlp.up_proj.weight"):
        weights(pretrained=str(copy))


def test_weights_of_another_shape_are_named(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = next(n for n in tensors if n.endswith("0.mlp.up_proj.weight"))
    tensors[name] = torch.zeros(3, 3)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensors of another shape .*0.mlp.up_proj.weight"):
        weights(pretrained=str(copy))


@pytest.mark.parametrize("damage", ["truncated", "no weights", "no config", "config is not JSON"])
def test_a_damaged_folder(copy: Path, damage: str) -> None:
    file = copy / ("config.json" if "config" in damage else "model.safetensors")
    if damage.startswith("no "):
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.write_text("{")
    with pytest.raises(CheckpointError, match=r"download|copy the file") as error:
        weights(pretrained=str(copy))
    assert str(copy) in error.value.found
    assert (error.value.__cause__ is None) == (damage == "no weights")


def test_folders_of_the_two_parts_swapped(saved) -> None:
    with pytest.raises(SetupError, match=r"InternVL in .*\(model\.grounding\.pretrained\)"):
        weights("grounding", pretrained=str(saved["mllm"]))
    with pytest.raises(SetupError, match=r"SAM2 in .*\(model\.mllm\.pretrained\)"):
        weights(pretrained=str(saved["grounding"]))


def test_rows_say_where_every_tensor_comes_from(saved) -> None:
    drawn = built(config=merged(CONFIGS["mllm"], {}), seed=3)
    assert {row.source for row in drawn.rows} == {"random weights (seed 3)"}
    assert not any(row.loaded or row.checksum for row in drawn.rows)
    loaded = built(pretrained=str(saved["mllm"]))
    assert [(r.part, r.tensors) for r in loaded.rows] == [(r.part, r.tensors) for r in drawn.rows]
    for row in loaded.rows:
        assert (row.source, row.dtype) == (str(saved["mllm"]), "bfloat16")
        assert row.loaded == row.tensors and len(row.checksum) == 16
    assert sum(row.tensors for row in loaded.rows) == len(loaded.model.state_dict())


def test_a_released_sam2_folder_says_video(saved, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["grounding"], tmp_path / "video"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "sam2_video"}))
    model = weights("grounding", pretrained=str(folder), dtype=torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(model.no_memory_embedding, stored["no_memory_embedding"])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_without_network_fails_at_once(offline: Path) -> None:
    start = time.monotonic()
    with pytest.raises(SetupError, match=r"'somebody/some-model'.*not to be had from the hub") as e:
        weights(pretrained="somebody/some-model")
    assert time.monotonic() - start < 2
    assert e.value.__cause__ is not None and "model.mllm.pretrained" in e.value.fix


def test_what_is_no_hub_id(offline: Path) -> None:
    with pytest.raises(SetupError, match="'what is this'"):
        weights(pretrained="what is this")


def cached(hub: Path, saved: Path, *names: str) -> None:
    folder = hub / "models--somebody--some-model"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    for name in names:
        shutil.copy(saved / name, snapshot / name)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every look-up, whether it was of the cache only."""
    calls: list[bool] = []

    def spy(*args: Any, **kwargs: Any) -> str:
        calls.append(kwargs.get("local_files_only", False))
        return snapshot_download(*args, **kwargs)

    monkeypatch.setattr(hub, "snapshot_download", spy)
    return calls


def test_a_cached_hub_id_needs_no_network(offline: Path, saved, asked: list[bool]) -> None:
    cached(offline, saved["mllm"], "config.json", "model.safetensors")
    model = weights(pretrained="somebody/some-model", dtype=torch.bfloat16)
    table = load_file(saved["mllm"] / "model.safetensors")[HEAD]
    assert torch.equal(model.get_output_embeddings().weight, table)
    assert asked == [True]


def test_a_cache_without_the_weights_is_not_enough(offline: Path, saved, asked: list[bool]) -> None:
    """As after loading the tokenizer alone."""
    cached(offline, saved["mllm"], "config.json")
    with pytest.raises(CheckpointError, match=r"no weights in .*somebody--some-model"):
        weights(pretrained="somebody/some-model")
    assert asked == [True, False], "the cache, then the hub"


@pytest.mark.parametrize("complete", [False, True])
def test_sharded_cache(offline: Path, saved, complete: bool) -> None:
    cached(offline, saved["mllm"], "config.json")
    snapshot = next((offline / "models--somebody--some-model" / "snapshots").iterdir())
    tensors = load_file(saved["mllm"] / "model.safetensors")
    shard_of = {n: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, n in enumerate(tensors)}
    (snapshot / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": shard_of})
    )
    for shard in sorted(set(shard_of.values()))[: 2 if complete else 1]:
        own = {n: t for n, t in tensors.items() if shard_of[n] == shard}
        save_file(own, snapshot / shard, metadata={"format": "pt"})
    if complete:
        model = weights(pretrained="somebody/some-model", dtype=torch.bfloat16)
        assert torch.equal(model.get_output_embeddings().weight, tensors[HEAD])
    else:
        # offline, the hub hands out the incomplete snapshot again; loading then names the shard
        with pytest.raises(CheckpointError, match=r"names model-00002-of-00002\.safetensors"):
            weights(pretrained="somebody/some-model")


def test_dtype_names() -> None:
    assert resolve_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ConfigError, match="bf16"):
        resolve_dtype("bf16")

"""Every layout into our modules, bit for bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam2VideoConfig, Sam2VideoModel

from projects.sa2va.errors import CheckpointError, ConfigError
from projects.sa2va.models import Sa2VAModel, building, internvl
from projects.sa2va.weights import tables
from tests.models.reference_model import load_reference

from .conftest import write_folder, write_shards
from .loading import EMBEDDING, HEAD, THEIR_EMBEDDING, THEIR_HEAD, assert_same, build, model, state


@pytest.fixture(scope="module")
def whole(reference: Path, sam2_sizes: dict) -> Sa2VAModel:
    """The released model. Read it only."""
    return model(reference, sam2_sizes, pretrained=str(reference / "F1_model"))


# --------------------------------------------------------------------------------------- layouts


def test_the_released_model_is_what_an_independent_table_says(reference, whole) -> None:
    """``load_reference`` copies by F1_model_keys.json; it must find nothing to change."""
    before = state(whole)
    with torch.no_grad():
        by_table = copy.deepcopy(whole)
        for parameter in by_table.parameters():
            parameter.zero_()
        load_reference(reference, by_table)
    assert_same(state(by_table), before)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "one bin"])
def test_the_released_model_in_other_files(tmp_path, reference, sam2_sizes, released, whole, kind):
    if kind == "one bin":
        torch.save(released, tmp_path / "pytorch_model.bin")
    else:
        write_shards(tmp_path, released, save_file if kind == "safetensors" else torch.save, kind)
    (tmp_path / "config.json").write_text((reference / "F1_model" / "config.json").read_text())
    other = model(reference, sam2_sizes, pretrained=str(tmp_path))
    assert_same(state(other), state(whole))
    assert other.base_fingerprint == whole.base_fingerprint
    sums = [[r.checksum for r in m.mllm.rows + m.grounding.rows] for m in (other, whole)]
    assert sums[0] == sums[1] and all(sums[0])


def test_internvl_in_its_three_layouts(tmp_path, f8, f8_tensors) -> None:
    chat = build("mllm", f8)
    chat.model.save_pretrained(tmp_path / "native")
    assert "model.vision_tower.embeddings.cls_token" in load_file(
        tmp_path / "native" / "model.safetensors"
    )
    ours = {f"mllm.{name}": tensor for name, tensor in state(chat.model).items()}
    hub = {
        n: t
        for p in tables.INTERNVL_HUB.to_theirs(ours).pieces
        for n, t in p.read(ours.get).items()
    }
    assert {THEIR_HEAD, "vision_tower.embeddings.cls_token"} <= hub.keys()
    write_folder(tmp_path / "hub", hub, tmp_path / "native")
    for name in ("native", "hub"):
        other = build("mllm", tmp_path / name)
        assert_same(state(other.model), state(chat.model))
        assert [(r.part, r.tensors) for r in other.rows] == [(r.part, r.tensors) for r in chat.rows]
    qkv = f8_tensors["vision_model.encoder.layers.1.attn.qkv.weight"].float()
    attention = chat.model.model.vision_tower.encoder.layer[1].attention
    parts = [getattr(attention, f"{x}_proj").weight for x in "qkv"]
    assert torch.equal(torch.cat(parts), qkv)


def test_sam2_in_its_three_layouts(tmp_path, meta, sam2_sizes) -> None:
    published = build("grounding", meta, sam2_sizes)
    published.model.save_pretrained(tmp_path / "image")
    image = build("grounding", tmp_path / "image")
    assert_same(state(image.model), state(published.model))
    assert len(published.rest) == 70 and not image.rest
    config = Sam2VideoConfig(
        **copy.deepcopy(sam2_sizes),
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=64,
        memory_fuser_num_layers=1,
        enable_occlusion_spatial_embedding=False,
        enable_temporal_pos_encoding_for_object_pointers=False,
    )
    video = Sam2VideoModel(config)
    memory = {n.removeprefix("grounding."): t for n, t in published.rest.items()}
    video.load_state_dict({**published.model.state_dict(), **memory}, strict=True)
    video.save_pretrained(tmp_path / "video")
    other = build("grounding", tmp_path / "video")
    assert_same(state(other.model), state(published.model))
    assert_same(other.rest, published.rest)
    sums = {row.part: row.checksum for row in published.rows}
    assert {row.part: row.checksum for row in other.rows} == sums


def test_no_weight_is_a_map_of_the_file_or_another_weight(tmp_path, meta, sam2_sizes, f8) -> None:
    """Of the file's dtype nothing needs converting, and all must be copied all the same."""
    copied = tmp_path / "sam2.pt"
    copied.write_bytes(meta.read_bytes())
    sam2 = build("grounding", copied, sam2_sizes).model
    before = state(sam2)
    with copied.open("r+b") as file:  # in place: the map would show it
        file.write(b"\xff" * copied.stat().st_size)
    assert_same(state(sam2), before)
    language = building.build_weights(
        internvl.part_kind(),
        pretrained=str(f8),
        config=None,
        dtype=torch.bfloat16,
        attn_implementation="sdpa",
        seed=0,
        device="cpu",
    ).model
    for part in (sam2, language):
        storages = [t.untyped_storage().data_ptr() for t in part.state_dict().values()]
        assert len(set(storages)) == len(storages)


def test_parts_of_the_released_model_are_the_bases(f8, meta, sam2_sizes, whole) -> None:
    assert_same(state(build("grounding", meta, sam2_sizes).model), state(whole.grounding.model))
    base, trained = state(build("mllm", f8).model), state(whole.mllm.model)
    for name in (HEAD, EMBEDDING):
        assert base[name].shape == (595, 96) and trained[name].shape == (600, 96)
        assert torch.equal(base.pop(name), trained.pop(name)[:595])
    assert_same(base, trained)


# ------------------------------------------------------------------------------------- checksums


def test_checksums_are_of_weights_not_of_files(tmp_path, reference, f8, f8_tensors, whole) -> None:
    rows = {row.part: row for row in build("mllm", f8).rows}
    same = {"MLLM vision encoder", "MLLM projector", "MLLM language model"}
    for row in whole.mllm.rows:
        assert (row.checksum == rows[row.part].checksum) == (row.part in same), row.part
    changed = {name: tensor.clone() for name, tensor in f8_tensors.items()}
    changed["vision_model.encoder.layers.0.ls2"].view(torch.int16)[7] ^= 1
    write_folder(tmp_path / "x", changed, f8)
    for row in build("mllm", tmp_path / "x").rows:
        differs = row.part == "MLLM vision encoder"
        assert (row.checksum != rows[row.part].checksum) == differs, row.part


# ------------------------------------------------------------------------------------ tied heads


def tied_config(f8: Path, top: Any, text: Any) -> dict[str, Any]:
    config = json.loads((f8 / "config.json").read_text())
    for place, value in ((config, top), (config["llm_config"], text)):
        place.pop("tie_word_embeddings", None)
        if value is not None:
            place["tie_word_embeddings"] = value
    return config


@pytest.mark.parametrize(
    ("stored", "top", "text", "tied"),
    [
        ("none", True, True, True),
        ("none", None, None, True),
        ("none", False, True, True),
        ("equal", True, True, True),
        ("equal", True, False, True),
        ("equal", False, False, False),
        ("different", False, False, False),
        ("different", None, None, False),
        ("different", True, False, False),
    ],
)
def test_whether_the_head_is_the_embedding(tmp_path, f8, f8_tensors, stored, top, text, tied):
    tensors = dict(f8_tensors)
    if stored == "none":
        del tensors[THEIR_HEAD]
    elif stored == "equal":
        tensors[THEIR_HEAD] = tensors[THEIR_EMBEDDING].clone()
    write_folder(tmp_path, tensors, tied_config(f8, top, text))
    built = build("mllm", tmp_path)
    head, table = (
        getattr(built.model, f"get_{x}_embeddings")().weight for x in ("output", "input")
    )
    assert (head is table) == tied
    assert torch.equal(table, tensors[THEIR_EMBEDDING].float())
    assert torch.equal(head, tensors.get(THEIR_HEAD, tensors[THEIR_EMBEDDING]).float())
    (row,) = [r for r in built.rows if r.part == "MLLM head"] or [None]
    if stored == "none":
        assert row is None
    else:
        assert (row.tensors, row.loaded) == (1, 0 if tied else 1)


def test_a_config_that_ties_what_the_weights_do_not(tmp_path, f8, f8_tensors) -> None:
    write_folder(tmp_path, f8_tensors, tied_config(f8, True, True))
    with pytest.raises(CheckpointError, match="hold a different head") as caught:
        build("mllm", tmp_path)
    assert "tie_word_embeddings to false" in caught.value.fix


@pytest.mark.parametrize("untie", [None, False])
def test_untying(tmp_path, reference, f8, f8_tensors, sam2_sizes, meta, untie) -> None:
    tensors = {n: t for n, t in f8_tensors.items() if n != THEIR_HEAD}
    write_folder(tmp_path, tensors, tied_config(f8, True, True))
    changes = {"mllm": {"pretrained": str(tmp_path), "tie_word_embeddings": untie}}
    core = model(reference, sam2_sizes, grounding={"pretrained": str(meta)}, **changes).mllm._core
    head, table = core.get_output_embeddings().weight, core.get_input_embeddings().weight
    assert (head is table) == (untie is None)
    assert len(head) == len(table) == 600
    assert torch.equal(head[:595], tensors[THEIR_EMBEDDING].float())
    assert torch.equal(table[:595], tensors[THEIR_EMBEDDING].float())


# ------------------------------------------------------------------------------------ vocabulary


def test_a_base_grows_by_the_added_tokens(reference, f8, f8_tensors, meta, sam2_sizes) -> None:
    changes = {"mllm": {"pretrained": str(f8)}, "grounding": {"pretrained": str(meta)}}
    for tokenizer in (f8, reference / "F1_tokenizer"):
        processor = {"tokenizer": {"type": "pretrained", "path": str(tokenizer)}}
        built = model(reference, sam2_sizes, processor=processor, **changes)
        own = built.mllm._core.state_dict()
        for ours, theirs in ((HEAD, THEIR_HEAD), (EMBEDDING, THEIR_EMBEDDING)):
            assert own[ours].shape == (600, 96)
            assert torch.equal(own[ours][:595], f8_tensors[theirs].float())
            assert own[ours][595:].abs().sum(dim=1).min() > 0
        assert built.projector_rows[0].loaded == 0


@pytest.mark.parametrize(("rows", "result"), [(640, 640), (590, None)])
def test_tables_longer_and_shorter_than_the_tokenizer(
    tmp_path, reference, f8, f8_tensors, meta, sam2_sizes, rows: int, result: int | None
) -> None:
    """Longer: padding, kept. Shorter: the tokenizer is another model's."""
    config = json.loads((f8 / "config.json").read_text())
    config["llm_config"]["vocab_size"] = rows
    tensors = dict(f8_tensors)
    for name in (THEIR_HEAD, THEIR_EMBEDDING):
        tensors[name] = torch.cat([tensors[name], torch.ones(64, 96, dtype=torch.bfloat16)])[:rows]
    write_folder(tmp_path, tensors, config)
    changes = {"mllm": {"pretrained": str(tmp_path)}, "grounding": {"pretrained": str(meta)}}
    if result is None:
        with pytest.raises(ConfigError, match="590 rows and a tokenizer of 595 tokens"):
            model(reference, sam2_sizes, **changes)
        return
    built = model(reference, sam2_sizes, **changes).mllm._core
    assert torch.equal(built.get_input_embeddings().weight, tensors[THEIR_EMBEDDING].float())


def test_a_sa2va_whose_tokenizer_lacks_its_tokens(reference, f8, sam2_sizes) -> None:
    processor = {"tokenizer": {"type": "pretrained", "path": str(f8)}}
    with pytest.raises(CheckpointError, match=r"tokenizer has no \[SEG\]") as caught:
        model(reference, sam2_sizes, pretrained=str(reference / "F1_model"), processor=processor)
    assert "processor.tokenizer.path" in caught.value.fix

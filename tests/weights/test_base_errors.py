"""Weights that are not exactly those of the model: an error that names tensor and part."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from projects.sa2va.errors import CheckpointError, ConfigError, SetupError
from projects.sa2va.weights import tables
from tests.models.reference_model import model_config

from .conftest import write_folder
from .loading import THEIR_EMBEDDING, THEIR_HEAD, build, model

DAMAGED = [
    ("MLLM vision encoder", "vision_model.encoder.layers.0.attn.qkv.weight"),
    ("MLLM vision encoder", "vision_model.embeddings.class_embedding"),
    ("MLLM projector", "mlp1.1.bias"),
    ("MLLM language model", "language_model.model.layers.2.mlp.up_proj.weight"),
    ("MLLM embeddings", THEIR_EMBEDDING),
    ("SAM2 image encoder", "grounding_encoder.sam2_model.image_encoder.trunk.pos_embed"),
    ("SAM2 mask decoder", "grounding_encoder.sam2_model.sam_mask_decoder.conv_s0.weight"),
    ("SAM2 prompt encoder", "grounding_encoder.sam2_model.no_mem_embed"),
    ("[SEG] projector", "text_hidden_fcs.2.weight"),
]


def our_name(name: str) -> str:
    (piece,) = tables.SA2VA_RELEASED.to_ours([name]).pieces
    return min(piece.targets)


def refused(reference: Path, sizes: dict, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        model(reference, sizes, pretrained=str(folder))
    assert str(folder) in caught.value.found and caught.value.fix
    return caught.value.found


@pytest.mark.parametrize("damage", ["missing", "of another shape"])
@pytest.mark.parametrize(("part", "name"), DAMAGED)
def test_one_tensor_of_the_released_model(
    tmp_path, reference, sam2_sizes, released, part, name, damage
) -> None:
    tensors = dict(released)
    old = tensors.pop(name)
    if damage == "of another shape":
        tensors[name] = torch.cat([old] * 3)
    write_folder(tmp_path, tensors, reference / "F1_model")
    found = refused(reference, sam2_sizes, tmp_path)
    count = 3 if ".qkv." in name else 1
    assert f"{count} tensors {damage} ({part}): {our_name(name)}" in found


def test_a_missing_head_of_a_model_that_has_one(tmp_path, reference, sam2_sizes, released) -> None:
    """Without tie_word_embeddings=False in config.json it could only be taken for tied."""
    tensors = {n: t for n, t in released.items() if n != THEIR_HEAD}
    write_folder(tmp_path, tensors, reference / "F1_model")
    found = refused(reference, sam2_sizes, tmp_path)
    assert "1 tensors missing (MLLM head): mllm.lm_head.weight" in found


def test_a_group_of_which_one_is_missing(tmp_path, reference, sam2_sizes, released) -> None:
    name = "grounding_encoder.sam2_model.sam_prompt_encoder.point_embeddings.2.weight"
    write_folder(tmp_path, {n: t for n, t in released.items() if n != name}, reference / "F1_model")
    assert f"1 tensors missing: {name}" in refused(reference, sam2_sizes, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vision_model.stranger", "not known to the table: vision_model.stranger"),
        ("mlp1.1.scales", "not known to the table: mlp1.1.scales"),
        ("text_hidden_fcs.3.weight", "not known to the table: text_hidden_fcs.3.weight"),
        (
            "language_model.model.layers.3.mlp.up_proj.weight",
            "too many (MLLM language model): mllm.model.language_model.layers.3.mlp.up_proj.weight",
        ),
        (
            "vision_model.encoder.layers.0.attn.q_norm.weight",
            "too many (MLLM vision encoder)",
        ),
        (
            "grounding_encoder.sam2_model.sam_mask_decoder.stranger",
            "too many (SAM2 mask decoder): grounding.mask_decoder.stranger",
        ),
        (
            "grounding_encoder.sam2_model.image_encoder.trunk.blocks.9.attn.proj.bias",
            "too many (SAM2 image encoder)",
        ),
        (
            "grounding_encoder.sam2_model.memory_encoder.fuser.layers.0.gamma",
            "holds a weight twice",
        ),
    ],
)
def test_one_tensor_too_many(tmp_path, reference, sam2_sizes, released, name, message) -> None:
    tensors = {**released, name: torch.zeros(64)}
    write_folder(tmp_path, tensors, reference / "F1_model")
    assert message in refused(reference, sam2_sizes, tmp_path)


def test_one_extra_tensor_in_transformers_layout(tmp_path, meta, sam2_sizes) -> None:
    build("grounding", meta, sam2_sizes).model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    write_folder(tmp_path, {**tensors, "neck.stranger": torch.zeros(2)}, None)
    with pytest.raises(CheckpointError, match=r"1 tensors too many .*: grounding\.neck\.stranger"):
        build("grounding", tmp_path)


@pytest.mark.parametrize("shape", [(), (190, 64)])
def test_a_matrix_that_cannot_be_cut(tmp_path, f8, f8_tensors, shape: tuple) -> None:
    name = "vision_model.encoder.layers.0.attn.qkv.weight"
    write_folder(tmp_path, {**f8_tensors, name: torch.zeros(shape)}, f8)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        build("mllm", tmp_path)


def test_point_tables_of_unequal_width(tmp_path, reference, sam2_sizes, released) -> None:
    name = "grounding_encoder.sam2_model.sam_prompt_encoder.point_embeddings.1.weight"
    write_folder(tmp_path, {**released, name: torch.zeros(1, 255)}, reference / "F1_model")
    assert "which must be equal" in refused(reference, sam2_sizes, tmp_path)


def test_weights_of_other_sizes_than_config_json_says(tmp_path, f8, f8_tensors) -> None:
    config = json.loads((f8 / "config.json").read_text())
    config["llm_config"]["intermediate_size"] = 200
    write_folder(tmp_path, f8_tensors, config)
    with pytest.raises(CheckpointError, match=r"9 tensors of another shape \(MLLM language model"):
        build("mllm", tmp_path)


# ---------------------------------------------------------------------------------- wrong sources


def test_what_model_pretrained_refuses(reference, f8, meta, sam2_sizes) -> None:
    for path in (f8, meta):
        with pytest.raises(SetupError, match=r"\(model\.pretrained\)"):
            model(reference, sam2_sizes, pretrained=str(path))
    f1 = str(reference / "F1_model")
    for key in ("mllm", "grounding"):
        with pytest.raises(ConfigError, match=rf"beside model\.{key}\.pretrained"):
            model(reference, sam2_sizes, pretrained=f1, **{key: {"pretrained": "x"}})


def test_a_config_beside_weights_that_have_one(tmp_path, reference, f8, sam2_sizes) -> None:
    """It would be ignored."""
    config = model_config(reference)["mllm"]["config"]
    for path in (f8, reference / "F1_model"):
        with pytest.raises(ConfigError, match=r"model\.mllm\.config set"):
            build("mllm", path, config)
    assert build("grounding", reference / "F1_model", sam2_sizes).rows


def test_a_training_checkpoint_is_no_base(reference) -> None:
    f7 = reference / "F7_checkpoint" / "iter_12192.pth"
    for kind in ("mllm", "grounding"):
        with pytest.raises(SetupError, match="a training checkpoint of the reference in") as caught:
            build(kind, f7)
        assert "--checkpoint" in caught.value.fix


def test_a_file_of_internvl_by_itself(f8) -> None:
    with pytest.raises(CheckpointError, match=r"\(model\.mllm\.pretrained\) by itself"):
        build("mllm", f8 / "model.safetensors")


def test_sam2_of_an_unpublished_size_needs_its_config(meta) -> None:
    with pytest.raises(ConfigError, match="stages of") as caught:
        build("grounding", meta)
    assert "model.grounding.config" in caught.value.fix

"""Sizes of published models, from weights without a config and from config.json."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, Sam2Config, Sam2Model

from projects.sa2va.errors import CheckpointError, ConfigError
from projects.sa2va.weights import TensorFiles, tables
from projects.sa2va.weights.published_configs import internvl_config, released_config, sam2_config

# facebookresearch/sam2, sam2/configs/sam2.1: what the four yaml files say of Hiera, written out.
HIERA: dict[str, dict[str, Any]] = {
    "tiny": dict(
        embed_dim_per_stage=[96, 192, 384, 768],
        blocks_per_stage=[1, 2, 7, 2],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 14, 7],
        global_attention_blocks=[5, 7, 9],
        window_positional_embedding_background_size=[7, 7],
    ),
    "small": dict(
        embed_dim_per_stage=[96, 192, 384, 768],
        blocks_per_stage=[1, 2, 11, 2],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 14, 7],
        global_attention_blocks=[7, 10, 13],
        window_positional_embedding_background_size=[7, 7],
    ),
    "base+": dict(
        embed_dim_per_stage=[112, 224, 448, 896],
        blocks_per_stage=[2, 3, 16, 3],
        num_attention_heads_per_stage=[2, 4, 8, 16],
        window_size_per_stage=[8, 4, 14, 7],
        global_attention_blocks=[12, 16, 20],
        window_positional_embedding_background_size=[14, 14],
    ),
    "large": dict(
        embed_dim_per_stage=[144, 288, 576, 1152],
        blocks_per_stage=[2, 6, 36, 4],
        num_attention_heads_per_stage=[2, 4, 8, 16],
        window_size_per_stage=[8, 4, 16, 8],
        global_attention_blocks=[23, 33, 43],
        window_positional_embedding_background_size=[7, 7],
    ),
}


def sam2_model(hiera: dict[str, Any]) -> Sam2Model:
    config = Sam2Config(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_channel_list": hiera["embed_dim_per_stage"][::-1],
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": hiera["embed_dim_per_stage"][0],
                "num_attention_heads": hiera["num_attention_heads_per_stage"][0],
                **copy.deepcopy(hiera),
            },
        }
    )
    with torch.device("meta"):
        return Sam2Model(config)


def meta_shapes(model: Sam2Model) -> dict[str, tuple[int, ...]]:
    """Shapes under our names, by way of Meta's names."""
    ours = {f"grounding.{n}": tuple(t.shape) for n, t in model.state_dict().items()}
    meta = tables.SAM2_META.to_theirs(ours)
    theirs = {n: s for p in meta.pieces for n, s in p.shapes(ours.__getitem__).items()}
    assert "image_encoder.trunk.blocks.0.attn.qkv.weight" in theirs
    back = tables.SAM2_META.to_ours(theirs)
    return {n: s for p in back.pieces for n, s in p.shapes(theirs.__getitem__).items()}


@pytest.mark.parametrize("size", HIERA)
def test_the_published_sizes_of_sam2(size: str) -> None:
    model = sam2_model(HIERA[size])
    shapes = meta_shapes(model)
    found = Sam2Config(**sam2_config(shapes, "sam2.pt"))
    assert found.to_dict() == model.config.to_dict()
    backbone = found.vision_config.backbone_config.to_dict()
    assert {key: list(backbone[key]) for key in HIERA[size]} == HIERA[size]
    with torch.device("meta"):
        again = {f"grounding.{n}": tuple(t.shape) for n, t in Sam2Model(found).state_dict().items()}
    assert again == shapes


def test_an_unpublished_size_of_sam2(reference: Path) -> None:
    files = TensorFiles(reference / "F8_bases" / "sam2_original" / "tiny.pt")
    shapes = {
        name: shape
        for piece in tables.SAM2_META.to_ours(files).pieces
        for name, shape in piece.shapes(lambda n: files.entries[n].shape).items()
    }
    with pytest.raises(ConfigError, match=r"tiny\.pt with stages of \[1, 1, 2, 1\]") as caught:
        sam2_config(shapes, "tiny.pt")
    assert "model.grounding.config" in caught.value.fix


@pytest.mark.parametrize("shapes", [{}, {"grounding.no_memory_embedding": (1, 1, 256)}])
def test_weights_without_blocks(shapes: dict) -> None:
    with pytest.raises(ConfigError, match=r"stages of \[\] blocks"):
        sam2_config(shapes, "x.pt")


def test_a_missing_position_table_is_left_to_the_loader() -> None:
    shapes = meta_shapes(sam2_model(HIERA["tiny"]))
    del shapes["grounding.vision_encoder.backbone.pos_embed"]
    assert Sam2Config(**sam2_config(shapes, "x.pt"))


@pytest.fixture(params=["F1_model", "F8_bases/internvl3_original"])
def published(request, reference: Path) -> tuple[Path, dict[str, Any]]:
    folder = reference / request.param
    return folder, json.loads((folder / "config.json").read_text())


def internvl_shapes(arguments: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig(**copy.deepcopy(arguments)))
    return {f"mllm.{n}": tuple(t.shape) for n, t in model.state_dict().items()}


def test_the_sizes_of_internvl_are_those_of_its_weights(published) -> None:
    folder, config = published
    files = TensorFiles(folder)
    in_file = {
        name: shape
        for piece in tables.SA2VA_RELEASED.to_ours(files).pieces
        for name, shape in piece.shapes(lambda n: files.entries[n].shape).items()
        if name.startswith("mllm.")
    }
    arguments = internvl_config(config, False, folder)
    assert internvl_shapes(arguments) == in_file
    built, text, vision = InternVLConfig(**arguments), config["llm_config"], config["vision_config"]
    assert built.text_config.rope_parameters["rope_theta"] == text["rope_theta"]
    for key in ("rms_norm_eps", "num_attention_heads", "num_key_value_heads", "hidden_act"):
        assert getattr(built.text_config, key) == text[key]
    for key in ("layer_norm_eps", "num_attention_heads", "hidden_act", "norm_type"):
        assert getattr(built.vision_config, key) == vision[key]
    assert built.vision_feature_layer == config["select_layer"]
    assert built.vision_config.attention_bias is vision["qkv_bias"]


CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "attention": {"llm_config": {"num_key_value_heads": 4}, "vision_config": {"qkv_bias": False}},
    "rope": {
        "llm_config": {
            "rope_theta": 5e5,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic"},
        }
    },
    "depth": {"llm_config": {"num_hidden_layers": 1, "layer_types": None}, "select_layer": -2},
    "eps": {"llm_config": {"rms_norm_eps": 1e-5}, "vision_config": {"layer_norm_eps": 1e-5}},
    "6B": {"vision_config": {"qk_normalization": True, "norm_type": "rms_norm", "dropout": 0.1}},
    "tiles": {"vision_config": {"image_size": 224, "patch_size": 16}, "force_image_size": 224},
    "projector": {"downsample_ratio": 0.25},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("tied", [False, True])
def test_out_and_in_again_keeps_every_size(published, change: str, tied: bool) -> None:
    folder, config = published
    for key, value in CHANGES[change].items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    before = copy.deepcopy(config)
    built = InternVLConfig(**internvl_config(config, tied, folder))
    assert config == before, "transformers writes into the dicts that it is given"
    out = json.loads(json.dumps(released_config(built, {"template": "x"})))
    assert out["template"] == "x"
    again = InternVLConfig(**internvl_config(out, tied, folder))
    for config_of in (built, again):  # transformers adds this older spelling of rope_type
        config_of.text_config.rope_parameters.pop("type", None)
    assert again.to_dict() == built.to_dict()
    assert internvl_shapes(internvl_config(out, tied, folder)) == internvl_shapes(
        internvl_config(config, tied, folder)
    )
    for part in ("llm_config", "vision_config"):
        for key, value in config[part].items():
            if key not in ("use_cache", "architectures", "layer_types", "rope_scaling"):
                assert out[part].get(key, value) == value, key
    for key in ("downsample_ratio", "force_image_size", "hidden_size", "select_layer"):
        assert out[key] == config[key], key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llm_config": None}, "no llm_config or vision_config"),
        ({"vision_config": "InternViT"}, "no llm_config or vision_config"),
        ({"llm_config": {"model_type": "internlm2"}}, "model_type='internlm2'"),
        ({"llm_config": {}}, "model_type=None"),
        ({"ps_version": "v1"}, "ps_version='v1'"),
        ({"vision_config": {"image_size": 448}}, "without image_size or patch_size"),
    ],
)
def test_what_transformers_internvl_cannot_be(published, change: dict, message: str) -> None:
    folder, config = published
    with pytest.raises(CheckpointError, match=message) as caught:
        internvl_config({**config, **change}, False, folder)
    assert str(folder) in caught.value.found

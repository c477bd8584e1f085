"""The sizes of published models, as keyword arguments of transformers' configs."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from projects.sa2va.errors import CheckpointError, ConfigError

# Source: facebookresearch/sam2, sam2/configs/sam2*/sam2*_hiera_{t,s,b+,l}.yaml. Keyed by the width
# and depth that the weights show; heads, windows and global blocks cannot be seen in them.
_SAM2_SIZES: dict[tuple[int, tuple[int, ...]], dict[str, Any]] = {
    (96, (1, 2, 7, 2)): {"heads": 1, "windows": (8, 4, 14, 7), "global": (5, 7, 9)},
    (96, (1, 2, 11, 2)): {"heads": 1, "windows": (8, 4, 14, 7), "global": (7, 10, 13)},
    (112, (2, 3, 16, 3)): {"heads": 2, "windows": (8, 4, 14, 7), "global": (12, 16, 20)},
    (144, (2, 6, 36, 4)): {"heads": 2, "windows": (8, 4, 16, 8), "global": (23, 33, 43)},
}
# What only the original code reads, or what names files that we do not run.
_DROPPED = (
    "architectures",
    "auto_map",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
)
_VISION = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "hidden_act": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "norm_type": "norm_type",
    "num_channels": "num_channels",
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "attention_dropout": "attention_dropout",
    "dropout": "hidden_dropout_prob",
}


def internvl_config(published: Mapping[str, Any], tied: bool, source: str | Path) -> dict[str, Any]:
    """Turns the config.json of InternVL or of a released Sa2VA into ``InternVLConfig``'s arguments.

    Args:
        published: the parsed config.json (``internvl_chat`` or ``sa2va_chat``).
        tied: whether the head is the embedding (told from the weights).
        source: the folder, for messages.

    Raises:
        CheckpointError: an architecture that transformers' InternVL cannot be.
    """
    text, vision = published.get("llm_config"), published.get("vision_config")
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise _unsupported(source, "no llm_config or vision_config", "both, as published")
    if text.get("model_type") != "qwen2":
        raise _unsupported(
            source, f"llm_config.model_type={text.get('model_type')!r}", "'qwen2' (InternVL3's)"
        )
    if published.get("ps_version", "v2") != "v2":
        raise _unsupported(source, f"ps_version={published['ps_version']!r}", "'v2'")
    if not vision.keys() >= {"image_size", "patch_size"}:
        raise _unsupported(source, "a vision_config without image_size or patch_size", "both")
    size, patch = vision["image_size"], vision["patch_size"]
    return {
        "downsample_ratio": published.get("downsample_ratio", 0.5),
        "vision_feature_layer": published.get("select_layer", -1),
        "tie_word_embeddings": tied,
        "text_config": {
            # Copied: transformers writes into the dicts that it is given.
            **copy.deepcopy({key: value for key, value in text.items() if key not in _DROPPED}),
            "tie_word_embeddings": tied,
        },
        "vision_config": {
            **{ours: vision[theirs] for theirs, ours in _VISION.items() if theirs in vision},
            "image_size": [size, size],
            "patch_size": [patch, patch],
        },
    }


def tile_sizes(image_size: Any, patch_size: Any, downsample_ratio: float) -> tuple[int, int, int]:
    """Sides of InternVL's tiles and patches in px, and visual tokens of a tile.

    Args:
        image_size, patch_size: a number, or a pair of the same number.
        downsample_ratio: that of the pixel shuffle.
    """
    size, patch = (v[0] if isinstance(v, (list, tuple)) else v for v in (image_size, patch_size))
    return size, patch, int((size // patch * downsample_ratio) ** 2)


def released_config(config: Any, template: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse: the parts of a released config.json that describe an InternVL model.

    Args:
        config: a transformers ``InternVLConfig``.
        template: keys of the released config.json that say nothing of sizes.
    """
    text = without_defaults(config.text_config.to_dict())
    vision = config.vision_config.to_dict()
    rope = text.pop("rope_parameters", None) or {}
    text = {key: value for key, value in text.items() if key not in _DROPPED}
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    scaling["type"] = scaling.get("rope_type", "default")  # the name before transformers 4.45
    text |= {
        "architectures": ["Qwen2ForCausalLM"],
        "rope_theta": rope.get("rope_theta", 10000.0),
        "rope_scaling": None if scaling["type"] == "default" else scaling,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    first = {
        k: vision[k][0] if isinstance(vision[k], (list, tuple)) else vision[k]
        for k in ("image_size", "patch_size")
    }
    return {
        **template,
        "downsample_ratio": config.downsample_ratio,
        "force_image_size": first["image_size"],
        "hidden_size": text["hidden_size"],
        "select_layer": config.vision_feature_layer,
        "ps_version": "v2",
        "tie_word_embeddings": config.tie_word_embeddings,
        "llm_config": text,
        "vision_config": {
            **{theirs: vision[ours] for theirs, ours in _VISION.items() if ours in vision},
            **first,
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "drop_path_rate": 0.0,
            "initializer_factor": 1.0,
            "use_flash_attn": False,
        },
    }


def without_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Drops what every transformers config has and that says nothing of a model."""
    common = {**PreTrainedConfig().to_dict(), "_name_or_path": config.get("_name_or_path")}
    return {
        key: without_defaults(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in common or value != common[key]
    }


def sam2_config(shapes: Mapping[str, tuple[int, ...]], source: str | Path) -> dict[str, Any]:
    """``Sam2Config``'s arguments for weights of SAM2 that come without a config.

    Args:
        shapes: our names (``grounding.vision_encoder...``) to shapes.
        source: file or folder, for messages.

    Raises:
        ConfigError: none of the four published sizes.
    """
    backbone = "grounding.vision_encoder.backbone"
    pattern = re.compile(re.escape(backbone) + r"\.blocks\.(\d+)\.attn\.proj\.weight")
    widths = {int(m[1]): shape[0] for name, shape in shapes.items() if (m := pattern.match(name))}
    stages: list[list[int]] = []
    for block in sorted(widths):
        if not stages or stages[-1][0] != widths[block]:
            stages.append([widths[block], 0])
        stages[-1][1] += 1
    dims, depths = [s[0] for s in stages], tuple(s[1] for s in stages)
    size = _SAM2_SIZES.get((dims[0] if dims else 0, depths))
    if size is None:
        raise ConfigError(
            found=f"SAM2 weights in {source} with stages of {list(depths)} blocks, {dims} wide",
            expected="SAM2 or SAM2.1 tiny, small, base+ or large, whose other sizes are known",
            fix="set model.grounding.config=dict(...) (transformers.Sam2Config) beside "
            "model.grounding.pretrained",
        )
    heads = size["heads"]
    # Where the table is missing, any size will do: loading then says that it is missing.
    table = shapes.get(f"{backbone}.pos_embed", (7, 7))
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_channel_list": dims[::-1],
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": dims[0],
                "num_attention_heads": heads,
                "blocks_per_stage": list(depths),
                "embed_dim_per_stage": dims,
                "num_attention_heads_per_stage": [heads * 2**i for i in range(len(dims))],
                "window_size_per_stage": list(size["windows"]),
                "global_attention_blocks": list(size["global"]),
                "window_positional_embedding_background_size": list(table[-2:]),
            },
        },
    }


def _unsupported(source: str | Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        found=f"config.json in {source} has {found}",
        expected=f"an InternVL3 (or a Sa2VA on it) with {expected}",
        fix="use a model on InternVL3 or InternVL2.5 with Qwen2, for instance "
        "OpenGVLab/InternVL3-8B",
    )

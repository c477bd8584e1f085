"""The sizes of published models without their weights: a table, a local folder, the hub's cache."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from mmengine.config import Config

from projects.sa2va.errors import ConfigError, SetupError, suggest
from projects.sa2va.models import grounding, internvl
from projects.sa2va.weights.layouts import open_source
from projects.sa2va.weights.published_configs import sam2_config
from projects.sa2va.weights.tensor_files import has_tensors

ROOT = Path(__file__).resolve().parents[3]
# The config of the 8B model with random weights says its sizes; the others differ as below.
_LARGE = ROOT / "configs/_base_/models/sa2va_internvl3_8b_random.py"
# Source: config.json of each model on the hub (llm_config): Qwen2.5 0.5B, 1.5B, 7B and 14B.
_TEXT: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
           "num_attention_heads": 14, "num_key_value_heads": 2, "tied": False},
    "2B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
           "num_attention_heads": 12, "num_key_value_heads": 2, "tied": False},
    "8B": {"tied": False},
    "14B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
            "num_attention_heads": 40, "num_key_value_heads": 8, "tied": False},
}  # fmt: skip
# Width of the first stage, blocks of the stages, side of the background position embedding.
_SAM2 = {
    "tiny": (96, (1, 2, 7, 2), 7),
    "small": (96, (1, 2, 11, 2), 7),
    "base-plus": (112, (2, 3, 16, 3), 14),
    "large": (144, (2, 6, 36, 4), 7),
}
INTERNVL_IDS = {f"OpenGVLab/InternVL3-{size}{end}": size for size in _TEXT for end in ("", "-hf")}
SAM2_IDS = {f"facebook/{v}-hiera-{size}": size for v in ("sam2", "sam2.1") for size in _SAM2}
WHOLE_IDS = {f"ByteDance/Sa2VA-InternVL3-{size}": size for size in ("2B", "8B", "14B")}


def internvl_sizes(pretrained: str, key: str = "model.mllm.pretrained") -> dict[str, Any]:
    """Keyword arguments of ``InternVLConfig`` for what ``pretrained`` names; nothing is fetched.

    Args:
        pretrained: local folder, or hub id.
        key: config key that it stands under, for messages.

    Raises:
        SetupError: a hub id that is neither in the table nor in the cache, or no such folder.
    """
    folder = local_folder(pretrained)
    if folder is not None:
        return internvl.part_kind().read_config(open_source(folder), None)
    size = _known(pretrained, {**INTERNVL_IDS, **WHOLE_IDS}, key)
    sizes: dict[str, Any] = Config.fromfile(_LARGE).model.mllm.config.to_dict()
    own = dict(_TEXT[size])
    tied = own.pop("tied")
    sizes["text_config"] = {**sizes["text_config"], **own}
    return {**sizes, "tie_word_embeddings": tied}


def sam2_sizes(
    pretrained: str, config: dict | None = None, key: str = "model.grounding.pretrained"
) -> dict[str, Any]:
    """Keyword arguments of ``Sam2Config`` for what ``pretrained`` names; nothing is fetched.

    Args:
        pretrained: local folder or file, or hub id.
        config: ``model.grounding.config``, for weights of an unpublished size.
        key: config key that ``pretrained`` stands under, for messages.

    Raises:
        SetupError: as :func:`internvl_sizes`.
    """
    if config is not None:
        return copy.deepcopy(config)
    folder = local_folder(pretrained)
    if folder is not None:
        return grounding.part_kind().read_config(open_source(folder), None)
    size = "large" if pretrained in WHOLE_IDS else _known(pretrained, SAM2_IDS, key)
    width, blocks, side = _SAM2[size]
    # The function that tells a size from weights, given the shapes that it looks at.
    backbone, shapes, block = "grounding.vision_encoder.backbone", {}, 0
    for stage, count in enumerate(blocks):
        for _ in range(count):
            shapes[f"{backbone}.blocks.{block}.attn.proj.weight"] = (width * 2**stage,)
            block += 1
    shapes[f"{backbone}.pos_embed"] = (1, width, side, side)
    return sam2_config(shapes, pretrained)


def local_folder(pretrained: str) -> Path | None:
    """The folder or file of weights that is on this machine already, None for a bare hub id."""
    path = Path(os.path.expanduser(pretrained))
    if path.exists():
        return path
    if pretrained.startswith((".", "/", "~")) or pretrained.count("/") != 1:
        raise SetupError(
            found=f"no folder {path.absolute()}",
            expected="a local folder of weights, or a hub id",
            fix="correct model.mllm.pretrained, model.grounding.pretrained or model.pretrained",
        )
    config = try_to_load_from_cache(pretrained, "config.json")
    if isinstance(config, str) and has_tensors(Path(config).parent):
        return Path(config).parent
    return None


def cached_tokenizer(path: str) -> bool:
    """Whether a tokenizer can be read without network."""
    if Path(os.path.expanduser(path)).is_dir():
        return True
    names = ("tokenizer.json", "vocab.json") if path.count("/") == 1 else ()
    return any(isinstance(try_to_load_from_cache(path, name), str) for name in names)


def _known(pretrained: str, table: dict[str, str], key: str) -> str:
    if pretrained not in table:
        raise ConfigError(
            found=f"{key}={pretrained!r}, whose sizes are not known without its config.json"
            + suggest(pretrained, table),
            expected="a local folder, a model in the hub's cache, or one of " + ", ".join(table),
            fix=f"download it first and set {key} to the folder, or correct the name",
        )
    return table[pretrained]

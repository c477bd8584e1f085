"""Building a transformers model from pretrained weights or, reproducibly, from a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from projects.sa2va import hub
from projects.sa2va.errors import ConfigError, SetupError, listing, suggest

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FILES = ("*.json", "*.safetensors")


def resolve_dtype(name: str) -> torch.dtype:
    """Returns the torch dtype called ``name`` (``float32``, ``bfloat16`` or ``float16``)."""
    if name not in _DTYPES:
        raise ConfigError(
            found=f"dtype {name!r}",
            expected="one of " + ", ".join(_DTYPES) + suggest(str(name), _DTYPES),
            fix="correct the dtype key of model.mllm or model.grounding",
        )
    return _DTYPES[name]


def first_parameter(module: nn.Module) -> torch.Tensor:
    """Returns any parameter of ``module``, to read its dtype or device."""
    return next(module.parameters())


def build_weights(
    model_class: Any,
    config_class: Any,
    *,
    key: str,
    pretrained: str | None,
    config: dict | None,
    dtype: torch.dtype,
    attn_implementation: str,
    seed: int,
    device: str,
) -> nn.Module:
    """Loads ``pretrained``, or draws random weights for ``config`` from ``seed``.

    Args:
        model_class: transformers model class.
        config_class: its config class.
        key: config key of the part, for messages.
        pretrained: hub id or local folder in transformers' layout.
        config: keyword arguments of ``config_class``.
        dtype: dtype of all weights.
        attn_implementation: attention backend of transformers.
        seed: seed of the random weights; the global generator is left as it was.
        device: device on which random weights are drawn.

    Raises:
        ConfigError: neither or both sources given, or a config that the class refuses.
        SetupError: ``pretrained`` cannot be loaded, or holds other weights than the class needs.
    """
    if (pretrained is None) == (config is None):
        raise ConfigError(
            found=f"{key}.pretrained={pretrained!r} and {key}.config "
            + ("unset" if config is None else "set"),
            expected="exactly one: pretrained=<hub id or folder>, or config=dict(...) for random "
            "weights",
            fix=f"set {key}.pretrained, or {key}.config (with _delete_=True to replace a base's)",
        )
    if pretrained is not None:
        return _load(model_class, config_class, key, pretrained, dtype, attn_implementation)
    try:
        built = config_class(**config)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(
            found=f"{key}.config is refused by {config_class.__name__}: {error}",
            expected=f"keyword arguments of transformers.{config_class.__name__}",
            fix=f"correct {key}.config",
        ) from error
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = model_class._from_config(
            built, dtype=dtype, attn_implementation=attn_implementation
        )
    return model


def _load(
    model_class: Any,
    config_class: Any,
    key: str,
    pretrained: str,
    dtype: torch.dtype,
    attn_implementation: str,
) -> nn.Module:
    folder = hub.resolve(
        pretrained,
        key=f"{key}.pretrained",
        allow_patterns=_FILES,
        is_complete=_is_complete,
        expected=f"config.json and the safetensors of a {model_class.__name__} in transformers' "
        "layout",
    )
    _check_kind(config_class, key, folder)
    try:
        # Weights of another shape are reported below, by name; transformers itself only logs them.
        model, info = model_class.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise SetupError(
            found=f"{key}.pretrained={pretrained!r} cannot be loaded from '{folder}': {error}",
            expected=f"config.json and the safetensors of a {model_class.__name__} in "
            "transformers' layout",
            fix="download the folder again, or correct the key",
        ) from error
    problems = {name: sorted(map(str, info[name])) for name in ("missing_keys", "mismatched_keys")}
    if any(problems.values()):
        raise SetupError(
            found=f"{key}.pretrained={pretrained!r} does not fill the model: "
            + "; ".join(
                f"{len(names)} {name}: {listing(names, 5)}"
                for name, names in problems.items()
                if names
            ),
            expected=f"every weight of {model_class.__name__}",
            fix="use weights published in transformers' layout (names ending in -hf for InternVL3)",
        )
    return model


def _check_kind(config_class: Any, key: str, folder: Path) -> None:
    """Raises SetupError unless ``folder`` says that it holds this kind of model.

    transformers only warns, and then fails somewhere inside or fills nothing.
    """
    # Released SAM2 folders hold the video model, of which the image model is a part.
    kinds = (config_class.model_type, f"{config_class.model_type}_video")
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise SetupError(
            found=f"{file} ({key}.pretrained) cannot be read: {error}",
            expected="the config.json of a model in transformers' layout",
            fix=f"download the folder again, or correct {key}.pretrained",
        ) from error
    if found not in kinds:
        raise SetupError(
            found=f"a model of type {found!r} in '{folder}' ({key}.pretrained)",
            expected=f"model_type {kinds[0]!r} in its config.json",
            fix="use weights published in transformers' layout (names ending in -hf for "
            "InternVL3), and do not swap model.mllm.pretrained and model.grounding.pretrained",
        )


def _is_complete(folder: Path) -> bool:
    """Whether a cached snapshot holds all weights: the cache may have the tokenizer only."""
    if not (folder / "config.json").exists():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return (folder / "model.safetensors").exists()
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError):
        return False  # a damaged index: the hub may have a whole one
    return all((folder / shard).exists() for shard in shards)

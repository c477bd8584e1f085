"""Building a transformers model from pretrained weights or, reproducibly, from a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from projects.sa2va.errors import ConfigError, SetupError, suggest

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        return _load(model_class, key, pretrained, dtype, attn_implementation)
    try:
        built = config_class(**config)
    except (TypeError, ValueError) as error:
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
    model_class: Any, key: str, pretrained: str, dtype: torch.dtype, attn_implementation: str
) -> nn.Module:
    looks_local = pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1
    path = Path(pretrained).expanduser()
    if looks_local and not path.is_dir():
        raise SetupError(
            found=f"no folder {pretrained} ({key}.pretrained)",
            expected="a folder with config.json and safetensors in transformers' layout",
            fix=f"download the weights there, or set {key}.pretrained to a folder or hub id",
        )
    source = str(path) if path.is_dir() else pretrained
    try:
        model, info = model_class.from_pretrained(
            source, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise SetupError(
            found=f"{key}.pretrained={pretrained!r} cannot be loaded: {error}",
            expected=f"weights of a {model_class.__name__} in transformers' layout, on the hub or "
            "in a local folder",
            fix="check the name and the network, or download the folder and give its path",
        ) from error
    problems = {name: sorted(info[name]) for name in ("missing_keys", "mismatched_keys")}
    problems = {name: keys for name, keys in problems.items() if keys}
    if problems:
        raise SetupError(
            found=f"{key}.pretrained={pretrained!r} does not fill the model: "
            + "; ".join(f"{name} {keys[:5]} ({len(keys)})" for name, keys in problems.items()),
            expected=f"every weight of {model_class.__name__}",
            fix="use weights published in transformers' layout (names ending in -hf for InternVL3)",
        )
    return model

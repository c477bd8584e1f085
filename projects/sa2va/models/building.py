"""Building a transformers model from published weights or, reproducibly, from a config."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from projects.sa2va import hub
from projects.sa2va.errors import ConfigError, SetupError, suggest
from projects.sa2va.weights.base import load_part
from projects.sa2va.weights.layouts import Source, open_source
from projects.sa2va.weights.parts import by_part
from projects.sa2va.weights.report import PartRow, dtype_names
from projects.sa2va.weights.tensor_files import has_tensors

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


@dataclass(frozen=True)
class PartKind:
    """What one of the two base models is, for :func:`build_weights`.

    Attributes:
        key: its config key, for messages.
        prefix: beginning of its weights' names (see ``weights/tables.py``).
        model_class: transformers model class.
        config_class: its config class.
        layouts: names of the layouts (``weights/layouts.py``) that hold it.
        read_config: makes keyword arguments of ``config_class`` of recognised weights; gets
            the user's ``config`` too, for weights that come without one.
    """

    key: str
    prefix: str
    model_class: Any
    config_class: Any
    layouts: tuple[str, ...]
    read_config: Callable[[Source, dict | None], dict[str, Any]]


@dataclass
class Built:
    """A base model, where its weights come from, and tensors it has no place for."""

    model: nn.Module
    rows: list[PartRow]
    rest: dict[str, Tensor] = field(default_factory=dict)


def build_weights(
    kind: PartKind,
    *,
    pretrained: str | None,
    config: dict | None,
    dtype: torch.dtype,
    attn_implementation: str,
    seed: int,
    device: str,
) -> Built:
    """Loads ``pretrained``, or draws random weights for ``config`` from ``seed``.

    Args:
        kind: which of the base models.
        pretrained: hub id, local folder or file, in any layout of ``kind.layouts``.
        config: keyword arguments of the config class.
        dtype: dtype of all weights.
        attn_implementation: attention backend of transformers.
        seed: seed of the random weights; the global generator is left as it was.
        device: device on which random weights are drawn.

    Raises:
        ConfigError: neither or both sources given, or a config that the class refuses.
        SetupError: ``pretrained`` is nowhere, or is another model.
        CheckpointError: its weights are damaged or not exactly those of the model.
    """
    # Only SAM2 is published without a config; any other is refused before it is fetched.
    if pretrained is not None and config is not None and "sam2-meta" not in kind.layouts:
        raise _one_source(kind.key, pretrained, config)
    if pretrained is not None:
        return _load(kind, pretrained, config, dtype, attn_implementation)
    if config is None:
        raise _one_source(kind.key, pretrained, config)
    built = make_config(kind, config, f"{kind.key}.config")
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = kind.model_class._from_config(
            built, dtype=dtype, attn_implementation=attn_implementation
        )
    return Built(model, random_rows(kind.prefix, model, seed))


def make_config(kind: PartKind, arguments: dict[str, Any], source: str) -> Any:
    """The transformers config for ``arguments``.

    Raises:
        ConfigError: the class refuses them.
    """
    try:
        return kind.config_class(**arguments)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(
            found=f"{source} is refused by {kind.config_class.__name__}: {error}",
            expected=f"keyword arguments of transformers.{kind.config_class.__name__}",
            fix=f"correct {source}",
        ) from error


def random_rows(prefix: str, module: nn.Module, seed: int) -> list[PartRow]:
    """Report rows of weights that were drawn and not loaded."""
    tensors = {prefix + name: value for name, value in module.state_dict().items()}
    return [
        PartRow(
            part=part,
            source=f"random weights (seed {seed})",
            tensors=len(names),
            loaded=0,
            dtype=dtype_names(tensors[name].dtype for name in names),
        )
        for part, names in by_part(tensors).items()
    ]


def locate(pretrained: str, key: str, expected: str) -> Path:
    """The folder or file of weights that a config key names; a hub id is fetched.

    Raises:
        SetupError: it is nowhere.
    """
    if os.path.isfile(os.path.expanduser(pretrained)):
        return Path(os.path.expanduser(pretrained))
    return hub.resolve(
        pretrained, key=key, allow_patterns=_FILES, is_complete=_is_complete, expected=expected
    )


def _load(
    kind: PartKind,
    pretrained: str,
    config: dict | None,
    dtype: torch.dtype,
    attn_implementation: str,
) -> Built:
    key = f"{kind.key}.pretrained"
    what = f"the weights of a {kind.model_class.__name__}: {', '.join(kind.layouts)}"
    path = locate(pretrained, key, what)
    source = open_source(path)
    if source.layout.name not in kind.layouts:
        raise SetupError(
            found=f"{source.layout.what} in '{path}' ({key})",
            expected=what,
            fix="do not swap model.mllm.pretrained and model.grounding.pretrained; a training "
            "checkpoint goes into --checkpoint or load_from, not here",
        )
    # The config.json of a released Sa2VA has no sizes of SAM2.
    if config is not None and source.config and source.layout.name != "sa2va":
        raise _one_source(kind.key, pretrained, config)
    arguments = kind.read_config(source, config)
    built = make_config(kind, arguments, f"config.json in '{path}'")
    model, rows, rest = load_part(
        source, kind.prefix, kind.model_class, built, dtype, attn_implementation
    )
    return Built(model, rows, rest)


def _one_source(key: str, pretrained: str | None, config: dict | None) -> ConfigError:
    return ConfigError(
        found=f"{key}.pretrained={pretrained!r} and {key}.config "
        + ("unset" if config is None else "set"),
        expected="exactly one: pretrained=<hub id or folder>, or config=dict(...) for random "
        "weights",
        fix=f"set {key}.pretrained, or {key}.config (with _delete_=True to replace a base's)",
    )


def _is_complete(folder: Path) -> bool:
    """Whether a cached snapshot holds all weights: the cache may have the tokenizer only."""
    return (folder / "config.json").exists() and has_tensors(folder)

"""What the model and all data sets of a config must share."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import ConfigError

# Keys of the processor that fix token ids and tensor sizes: model and data must share them.
SHARED_WITH_MODEL = (
    *("tokenizer", "added_tokens", "tile_size", "tokens_per_tile", "image_size"),
    *("reference_numerics", "image_only"),
)


def check_processors(processor: Mapping, parts: Mapping[str, Mapping], source: str) -> None:
    """The model and every data set must agree on what fixes token ids and tensor sizes.

    Args:
        processor: the top-level ``processor``.
        parts: ``processor`` dicts of the model and the data sets, by their key.
        source: the config's file.

    Raises:
        ConfigError: one of :data:`SHARED_WITH_MODEL` differs.
    """
    for path, own in parts.items():
        for key in SHARED_WITH_MODEL:
            if key in own and own[key] != processor.get(key, own[key]):
                raise ConfigError(
                    found=f"{source}: {path}.{key}={own[key]!r} but processor.{key}="
                    f"{processor[key]!r}",
                    expected="one value: the model and every data set must share it",
                    fix=f"set processor.{key} only, and remove {path}.{key}",
                )

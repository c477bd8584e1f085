"""LoRA's scale: a factor on the product of A and B that no tensor of a checkpoint shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from projects.sa2va.errors import CheckpointError
from projects.sa2va.models import SegmentationModel

from .stored_config import read_stored_config

SCALE = ("lora_alpha", "use_rslora", "alpha_pattern")
"""Settings of peft's ``LoraConfig`` that decide it, beside the rank, which the shapes show."""
LORA_SCALE = "lora_scale"
"""Key in a checkpoint's meta data: these settings, where no config of ours stands for them."""
_ALPHA = re.compile(r"lora_alpha['\"]?\s*[=:]\s*(\d+)")


def scale_of(model: SegmentationModel) -> dict[str, Any]:
    """The settings of a model by name; empty for one without LoRA."""
    mllm = getattr(model, "mllm", None)
    peft = getattr(getattr(mllm, "model", None), "peft_config", {}).get("default")
    # peft trains token rows by a config of its own, which has no scale.
    return _settings(peft) if hasattr(peft, SCALE[0]) else {}


def alpha_in(text: object) -> int | None:
    """``lora_alpha`` in the config of another program, which is only looked through."""
    match = _ALPHA.search(str(text or ""))
    return int(match[1]) if match else None


def stored_scale(checkpoint: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What a checkpoint says of the scale: those of the settings that it names.

    Args:
        checkpoint: what :func:`~.store.read_checkpoint` gave.
        path: where it came from, for messages.

    Raises:
        CheckpointError: the config in a checkpoint of ours cannot be read.
    """
    meta = checkpoint["meta"]
    if LORA_SCALE in meta:
        return {key: meta[LORA_SCALE][key] for key in SCALE if key in meta[LORA_SCALE]}
    text = meta.get("cfg")
    # What was converted may hold the config of the program that it came from.
    if not text or checkpoint["layout"] != "trainable" or "converted" in meta:
        alpha = alpha_in(text)
        return {} if alpha is None else {"lora_alpha": alpha}
    from peft import LoraConfig

    model = read_stored_config(text, path, imports=False).get("model") or {}
    lora = (model.get("mllm") or {}).get("lora")
    if lora is None:
        return {}
    return _settings(LoraConfig(**{key: lora[key] for key in SCALE if key in lora}))


def check_scale(
    model: SegmentationModel, checkpoint: Mapping[str, Any], path: str, otherwise: str = ""
) -> list[str]:
    """Compares LoRA's scale in ``model`` with what a checkpoint says, which may be nothing.

    Args:
        model: that takes LoRA's weights of the checkpoint; one without LoRA has nothing to compare.
        checkpoint: what :func:`~.store.read_checkpoint` gave.
        path: where it came from, for messages.
        otherwise: what else to do about it, for the message.

    Returns:
        A note where the checkpoint does not say it.

    Raises:
        CheckpointError: it says another one, or its config cannot be read.
    """
    own = scale_of(model)
    if not own:
        return []
    stored = stored_scale(checkpoint, path)
    other = [key for key in stored if stored[key] != own[key]]
    if other:
        theirs, ours = (
            ", ".join(f"{key}={said[key]!r}" for key in other) for said in (stored, own)
        )
        keys = " and ".join(f"model.mllm.lora.{key}={stored[key]!r}" for key in other)
        raise CheckpointError(
            found=f"LoRA of {path} was trained with {theirs}, the config has {ours}",
            expected="the same scale: LoRA's weights mean nothing without it",
            fix=f"set {keys}{otherwise}",
        )
    if stored:
        return []
    alpha, rank = own["lora_alpha"], model.mllm.model.peft_config["default"].r
    return [
        f"the checkpoint does not say LoRA's alpha: used {alpha} (model.mllm.lora.lora_alpha), a "
        f"scale of {alpha / (rank**0.5 if own['use_rslora'] else rank):g}"
    ]


def _settings(peft: Any) -> dict[str, Any]:
    """Those of a LoraConfig, in plain types: a config's dicts are mmengine's."""
    values = {key: getattr(peft, key) for key in SCALE}
    return {key: dict(v) if isinstance(v, Mapping) else v for key, v in values.items()}

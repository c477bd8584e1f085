"""Models over the reference's tiny weights (F1), configs of them, and its training checkpoint."""

from __future__ import annotations

import json
import pprint
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from projects.sa2va.checkpoints import load_trained, read_checkpoint
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.trained import our_names
from tests.conftest import ROOT
from tests.models.reference_model import model_config

LORA = {"r": 8, "lora_alpha": 16}
SMALL = {"max_tiles": 1, "image_size": 256}  # of the processor: what one picture costs
BASES = ("models/sa2va_released_8b", "datasets/synthetic", "schedules/lora_adamw", "runtime")


_LLM = "mllm.model.language_model.base_model.model"
# Names in the reference's checkpoint: peft's copies of whole tables.
EMBEDDING = f"{_LLM}.model.embed_tokens.modules_to_save.default.weight"
HEAD = f"{_LLM}.lm_head.modules_to_save.default.weight"


def checkpoint_path(reference: Path) -> Path:
    """The reference's training checkpoint over F1."""
    return reference / "F7_checkpoint" / "iter_12192.pth"


def over(reference: Path, pretrained: str | Path | None = None, **changes: Any) -> Sa2VAModel:
    """A model in eval mode, by the product's own loaders, with LoRA and token rows.

    Args:
        reference: shared/reference.
        pretrained: a whole Sa2VA; None for F1.
        **changes: keys of the model's config, merged into ``mllm``, ``grounding``, ``processor``.
    """
    pretrained = pretrained or reference / "F1_model"
    mllm = {"config": None, "lora": dict(LORA), "train_token_rows": True}
    grounding = {} if pretrained == reference / "F1_model" else {"config": None}
    config = model_config(
        reference,
        pretrained=str(pretrained),
        mllm={**mllm, **changes.pop("mllm", {})},
        grounding={**grounding, **changes.pop("grounding", {})},
        **changes,
    )
    return Sa2VAModel(**config).eval()


def whole(reference: Path, folder: Path, **changes: Any) -> Sa2VAModel:
    """An export as the model that it is: nothing added, nothing trained."""
    mllm = {"lora": None, "train_token_rows": False, **changes.pop("mllm", {})}
    return over(reference, folder, mllm=mllm, **changes)


def trained_over(reference: Path, path: Path | None = None, **changes: Any) -> Sa2VAModel:
    """A model over F1 with the weights of a training checkpoint (F7 unless told)."""
    path = path or checkpoint_path(reference)
    model = over(reference, **changes)
    load_trained(model, read_checkpoint(path), path)
    return model


def weight(model: Sa2VAModel, name: str) -> Tensor:
    """The model's tensor of a name of weights/tables.py."""
    return model.state_dict()[our_names(model)[name]]


def copy_f1(reference: Path, folder: Path, **llm: Any) -> Path:
    """F1 with SAM2's sizes in its config.json, so that the folder says all of itself.

    Args:
        reference: shared/reference.
        folder: where to.
        **llm: keys of the language model's config.
    """
    shutil.copytree(reference / "F1_model", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    sizes = model_config(reference)["grounding"]["config"]
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"] |= llm
    (folder / "config.json").write_text(json.dumps({**config, "sam2_config": sizes, **llm}))
    return folder


def write_config(reference: Path, folder: Path, file: Path, **model: Any) -> Path:
    """A config as users write it: the released recipe, in float32, over ``folder``."""
    tokenizer = {"type": "pretrained", "path": str(reference / "F1_tokenizer")}
    mllm = {"dtype": "float32", "lora": {"_delete_": True, **LORA}, **model.pop("mllm", {})}
    keys = {
        "_base_": [str(ROOT / "configs" / "_base_" / f"{name}.py") for name in BASES],
        "processor": {"tokenizer": tokenizer, "max_tiles": 12, "reference_numerics": True},
        "model": {
            "pretrained": str(folder),
            "autocast": None,
            "mllm": mllm,
            "grounding": {"dtype": "float32"},
            **model,
        },
    }
    text = [f"{key} = {pprint.pformat(value, width=90)}\n" for key, value in keys.items()]
    file.write_text("".join(text))
    return file

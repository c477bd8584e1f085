"""Weights out: a whole Sa2VA as released or in transformers' layout, or what was trained by itself.

The released format is that of bytedance/Sa2VA (tools/convert_to_hf.py there): one folder with
config.json, safetensors under the reference's names and the tokenizer. LoRA is merged as peft does
it, but the sum is rounded once, in the dtype of the export.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from mmengine.logging import print_log
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from projects.sa2va.errors import CheckpointError, ConfigError, listing
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.pretrained import PROJECTOR_FOLDER, SAM2_FOLDER
from projects.sa2va.models.trained import our_names, trained_parameters
from projects.sa2va.weights import TensorFiles
from projects.sa2va.weights.key_map import KeyMap
from projects.sa2va.weights.published_configs import released_config, without_defaults
from projects.sa2va.weights.tables import (
    INTERNVL_NATIVE,
    NATIVE_PROJECTOR,
    SA2VA_RELEASED,
    SAM2_NATIVE,
)

from .foreign import PROVENANCE_FILE, TRAINED_FOLDER
from .whole_weights import ADAPTER, WholeWeights

# The published code that loads the released format; it builds SAM2-L whatever the weights are.
CODE_REPO = "ByteDance/Sa2VA-InternVL3-8B"
_CODE = {
    "AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfig",
    "AutoModel": "modeling_sa2va_chat.Sa2VAChatModel",
    "AutoModelForCausalLM": "modeling_sa2va_chat.Sa2VAChatModel",
}
_SHARD = "5GB"


def export_notes(model: Sa2VAModel, dtype: torch.dtype | None, lora: str) -> list[str]:
    """Notes on what an export would lose or repeat, for the user to read before trusting it."""
    notes = []
    trained = trained_parameters(model)
    moved = [name for name in trained if ".lora_B." in name]
    works = any(bool(trained[name].detach().any()) for name in moved)
    if moved and not works:
        notes.append(
            "every LoRA B is zero: LoRA changes nothing, so this is an untrained model or the "
            "wrong checkpoint"
        )
    if dtype is torch.bfloat16 and lora == "merge":
        wide = sum(_needs_more(parameter.detach()) for parameter in trained.values())
        if wide:
            notes.append(
                f"{wide} trained float32 tensors are rounded to bfloat16 (--dtype float32 keeps "
                "them, at twice the size)"
            )
        if works:
            notes.append(
                f"{len(moved)} layers become base + LoRA, rounded to bfloat16 (--dtype float32 "
                "keeps the sums, --lora keep the addends)"
            )
    if not model.grounding.unused:
        notes.append(
            "SAM2's video memory is not there (the base had none): the published code starts it "
            "at random; single images do not use it"
        )
    return notes


def _needs_more(tensor: Tensor) -> bool:
    """Whether bfloat16 cannot hold the values."""
    return not torch.equal(tensor.to(torch.bfloat16).to(tensor.dtype), tensor)


def export_sa2va(
    model: Sa2VAModel, out: Path, provenance: dict, dtype: torch.dtype | None, lora: str
) -> None:
    """Writes a released-format folder that the published code and this project load.

    Args:
        model: the joint model.
        out: folder to make.
        provenance: goes into provenance.json.
        dtype: of all weights.
        lora: ``merge``, or ``keep`` to write it into ``out/adapter`` over unmerged weights.

    Raises:
        CheckpointError: the folder exists or cannot be written.
        ConfigError: ``keep``, and the model has no LoRA.
    """
    if lora == "keep":
        _check_has_adapter(model)
    weights = WholeWeights(model, lora == "merge", dtype)

    def fill(folder: Path) -> None:
        _write(folder, weights, list(weights), SA2VA_RELEASED)
        _write_json(folder / "config.json", _released_config(model, dtype))
        _write_tokenizer(model, folder)
        if lora == "keep":
            _fill_adapter(model, folder / "adapter", provenance, dtype)

    _make_folder(out, fill, provenance)


def export_native(
    model: Sa2VAModel, out: Path, provenance: dict, dtype: torch.dtype | None, lora: str
) -> None:
    """Writes an InternVL in transformers' layout, SAM2 in ``sam2/`` and ``seg_projector/``.

    Args: as :func:`export_sa2va`.
    """
    if lora == "keep":
        _check_has_adapter(model)
    weights = WholeWeights(model, lora == "merge", dtype)

    def fill(folder: Path) -> None:
        for sub, prefix, table in (
            ("", "mllm.", INTERNVL_NATIVE),
            (SAM2_FOLDER, "grounding.", SAM2_NATIVE),
            (PROJECTOR_FOLDER, "seg_projector.", NATIVE_PROJECTOR),
        ):
            (folder / sub).mkdir(exist_ok=True)
            _write(folder / sub, weights, [n for n in weights if n.startswith(prefix)], table)
        for sub, part in (("", model.mllm._core), (SAM2_FOLDER, model.grounding.model)):
            config = part.config.to_dict()
            config["architectures"] = [type(part).__name__]
            if dtype is not None:
                config["dtype"] = str(dtype).removeprefix("torch.")
            if not sub:
                config["image_token_id"] = model.processor.image_token_id
            _write_json(folder / sub / "config.json", config)
        _write_tokenizer(model, folder)
        if lora == "keep":
            _fill_adapter(model, folder / "adapter", provenance, dtype)

    _make_folder(out, fill, provenance)


def export_adapter(model: Sa2VAModel, out: Path, provenance: dict) -> None:
    """Writes peft's adapter folder, and in ``trained/`` what trained outside of peft.

    Raises:
        ConfigError: the model has no LoRA.
    """
    _check_has_adapter(model)
    _make_folder(out, lambda folder: _fill_adapter(model, folder, provenance), provenance)


def _check_has_adapter(model: Sa2VAModel) -> None:
    if not hasattr(model.mllm.model, "peft_config"):
        raise ConfigError(
            found="a model without LoRA (model.mllm.lora=None)",
            expected="LoRA, which is what an adapter folder holds",
            fix="use --to sa2va or --to native without --lora keep, or --to trainable",
        )


def _fill_adapter(
    model: Sa2VAModel, folder: Path, provenance: dict, frozen_dtype: torch.dtype | None = None
) -> None:
    """Writes an adapter folder.

    Args:
        frozen_dtype: dtype of replaced frozen weights: that of the base written beside them, over
            which they then replace nothing.
    """
    # The base's tables are the base's: peft would add them because rows were added.
    model.mllm.model.save_pretrained(folder, save_embedding_layers=False)
    names = our_names(model)
    own = model.state_dict(keep_vars=True)
    trained = {id(p) for p in trained_parameters(model).values()}
    beside = {}
    for ours, name in names.items():
        is_trained = id(own[name]) in trained
        if not is_trained and name not in model.changed_frozen:
            continue
        if not ours.endswith(ADAPTER):
            tensor = own[name].detach().cpu().contiguous()
            beside[ours] = tensor if is_trained else tensor.to(frozen_dtype or tensor.dtype)
    (folder / TRAINED_FOLDER).mkdir()
    _save(beside, folder / TRAINED_FOLDER / "model.safetensors")
    _write_json(folder / PROVENANCE_FILE, provenance)


def _released_config(model: Sa2VAModel, dtype: torch.dtype | None) -> dict[str, Any]:
    processor = model.processor
    template = {
        "architectures": ["Sa2VAChatModel"],
        "auto_map": {key: f"{CODE_REPO}--{value}" for key, value in _CODE.items()},
        "model_type": "sa2va_chat",
        "template": "qwen_chat",
        "dynamic_image_size": processor.max_tiles > 1,
        "min_dynamic_patch": processor.min_tiles,
        "max_dynamic_patch": processor.max_tiles,
        "use_thumbnail": processor.use_thumbnail,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "dtype": str(dtype or torch.float32).removeprefix("torch."),
        # Not read by the published code, which builds SAM2-L; this project reads it.
        "sam2_config": without_defaults(model.grounding.model.config.to_dict()),
    }
    return released_config(model.mllm._core.config, template)


def _write(folder: Path, weights: WholeWeights, names: list[str], table: KeyMap) -> None:
    """Writes weights under the table's names in shards of 5 GB, and reads them back."""
    renamed = table.to_theirs(names)
    if renamed.unknown or renamed.incomplete:
        raise CheckpointError(
            found=f"{listing(renamed.unknown + renamed.incomplete, 5)} of the model",
            expected=f"weights that {table.name} has names for",
            fix="export to another format (--to native, --to trainable)",
        )
    pieces = renamed.by_target()
    empty: dict[str, Tensor] = {}
    for piece in renamed.pieces:
        shapes = piece.shapes(lambda name: tuple(weights.meta(name).shape))
        dtype = weights.meta(piece.sources[0]).dtype
        empty |= {n: torch.empty(s, dtype=dtype, device="meta") for n, s in shapes.items()}
    plan = split_torch_state_dict_into_shards(empty, max_shard_size=_SHARD)
    for index, (file, group) in enumerate(plan.filename_to_tensors.items(), 1):
        print_log(f"Writing {file} ({index} of {len(plan.filename_to_tensors)})", logger="current")
        # A clone: tensors that share memory (heads and tables, chunks) are refused by safetensors.
        tensors = {name: pieces[name].read(weights.__getitem__)[name].clone() for name in group}
        _save(tensors, folder / file)
        read = TensorFiles(folder / file)
        lost = [name for name in group if not torch.equal(read[name], tensors[name])]
        if lost:
            raise CheckpointError(
                found=f"{folder / file} does not read back as it was written: {listing(lost, 5)}",
                expected="the same bits",
                fix="check the disk, and export again",
            )
    if plan.is_sharded:
        index_file = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(folder / "model.safetensors.index.json", index_file)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read


def _write_tokenizer(model: Sa2VAModel, folder: Path) -> None:
    """Writes the tokenizer so that transformers 4, which the published code needs, reads it too.

    Its slow tokenizer reads vocab.json, merges.txt and added_tokens.json, and it knows the added
    tokens' settings from added_tokens_decoder; transformers 5 writes none of them.
    """
    tokenizer = model.processor.tokenizer
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))
    _write_json(folder / "added_tokens.json", tokenizer.get_added_vocab())
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for key in ("extra_special_tokens", "is_local", "local_files_only", "backend"):
        config.pop(key, None)
    tokens = tokenizer.added_tokens_decoder
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config["added_tokens_decoder"] = {
        str(index): {key: getattr(token, key) for key in keys} for index, token in tokens.items()
    }
    config["additional_special_tokens"] = [
        token.content
        for token in tokens.values()
        if token.special and token.content not in (tokenizer.pad_token, tokenizer.eos_token)
    ]
    config["add_prefix_space"] = bool(config.get("add_prefix_space"))
    _write_json(file, config)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, sort_keys=True, default=str) + "\n")


def check_out(out: Path) -> None:
    """Raises CheckpointError unless ``out`` can be made: not there yet, or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(
            found=f"{out} exists",
            expected="a new folder (or file): an export is never mixed with older files",
            fix="give another OUT, or remove it",
        )


def _make_folder(out: Path, fill: Callable[[Path], None], provenance: dict) -> None:
    """Fills a temporary folder and renames it, so that ``out`` is whole or not there."""
    check_out(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        _write_json(temporary / PROVENANCE_FILE, provenance)
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own: a full disk
        raise CheckpointError(
            found=f"{out} cannot be written: {error}",
            expected="room for the weights (about 16 GB for an 8B model in bfloat16)",
            fix="free some space or choose another OUT",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

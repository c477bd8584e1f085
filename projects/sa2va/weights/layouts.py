"""Which layout weights are in, told from the names of their tensors, never from file names."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projects.sa2va.errors import CheckpointError, listing

from . import tables
from .key_map import KeyMap, Renamed
from .tensor_files import TensorFiles


@dataclass(frozen=True)
class Layout:
    """A published way to name and store weights.

    Attributes:
        name: short name, as the tools print it.
        what: what it is, in words.
        marks: beginnings of names of which each must occur.
        table: its names and ours.
        model_types: what its config.json calls itself; empty where there is none.
    """

    name: str
    what: str
    marks: tuple[str, ...]
    table: KeyMap
    model_types: tuple[str, ...] = ()


# First match wins: the more specific ones come first.
LAYOUTS = (
    Layout(
        "sa2va",
        "a released Sa2VA",
        ("vision_model.", "language_model.", "text_hidden_fcs.", "grounding_encoder.sam2_model."),
        tables.SA2VA_RELEASED,
        ("sa2va_chat",),
    ),
    Layout(
        "reference-training",
        "a training checkpoint of the reference",
        ("mllm.model.", "text_hidden_fcs."),
        tables.REFERENCE_TRAINING,
    ),
    Layout(
        "trainable",
        "a training checkpoint of this project",
        ("mllm.model.", "seg_projector."),
        tables.OUR_TRAINING,
    ),
    Layout(
        "trainable",
        "a training checkpoint of a baseline of this project",
        ("network.",),
        tables.OUR_TRAINING,
    ),
    Layout(
        "trainable",
        "a training checkpoint of this project, of a MaskedImageModel",
        ("reconstruction_head.", "grounding.model."),
        tables.OUR_TRAINING,
    ),
    Layout(
        "internvl-chat",
        "InternVL as OpenGVLab publishes it",
        ("vision_model.", "language_model.", "mlp1."),
        tables.INTERNVL_CHAT,
        ("internvl_chat",),
    ),
    Layout(
        "internvl-hub",
        "InternVL in transformers' layout, as the hub's -hf folders",
        ("vision_tower.", "language_model.", "multi_modal_projector."),
        tables.INTERNVL_HUB,
        ("internvl",),
    ),
    Layout(
        "internvl-native",
        "InternVL in transformers' layout",
        ("model.vision_tower.", "model.language_model.", "model.multi_modal_projector."),
        tables.INTERNVL_NATIVE,
        ("internvl",),
    ),
    Layout(
        "sam2-meta",
        "SAM2 as Meta publishes it",
        ("image_encoder.trunk.", "sam_mask_decoder.", "sam_prompt_encoder."),
        tables.SAM2_META,
    ),
    Layout(
        "sam2-native",
        "SAM2 in transformers' layout",
        ("vision_encoder.backbone.", "mask_decoder.", "prompt_encoder."),
        tables.SAM2_NATIVE,
        ("sam2", "sam2_video"),
    ),
    Layout(
        "seg-projector",
        "the [SEG] projector of a native export",
        ("seg_projector.",),
        tables.NATIVE_PROJECTOR,
    ),
    Layout(
        "adapter",
        "a peft adapter of ours",
        ("base_model.model.",),
        tables.PEFT_ADAPTER,
    ),
)


def recognise(names: Collection[str], source: str | Path) -> Layout:
    """Finds the layout that weights with these names are in.

    Raises:
        CheckpointError: none that we know.
    """
    beginnings = {name[:end] for name in names for end in _ends(name)}
    for layout in LAYOUTS:
        if all(mark in beginnings for mark in layout.marks):
            return layout
    raise CheckpointError(
        found=f"{source} holds {len(names)} tensors under names such as "
        f"{listing(sorted(names)[:3]) or '(none)'}",
        expected="one of: " + "; ".join(layout.what for layout in LAYOUTS),
        fix="give another file; an incomplete one lacks the names that tell what it is",
    )


def _ends(name: str) -> list[int]:
    return [index + 1 for index, letter in enumerate(name) if letter == "."]


@dataclass
class Source:
    """Weights that have been recognised.

    Attributes:
        files: the tensors.
        layout: how they are named.
        renamed: the table's answer for all of them.
        config: the config.json beside them, or an empty dict.
    """

    files: TensorFiles
    layout: Layout
    renamed: Renamed
    config: dict[str, Any]


def open_source(path: str | Path) -> Source:
    """Opens a file or folder of weights, recognises it and renames its tensors.

    Raises:
        CheckpointError: damaged files, an unknown layout, or a config.json of something else.
    """
    files = TensorFiles(path)
    layout = recognise(files.keys(), path)
    config = read_config(Path(path)) if layout.model_types else {}
    in_folder = layout.model_types and Path(path).is_dir()
    if in_folder and config.get("model_type") not in layout.model_types:
        raise CheckpointError(
            found=f"config.json in {path} says model_type {config.get('model_type')!r}, and its "
            f"weights are those of {layout.what}",
            expected=f"model_type {' or '.join(layout.model_types)}",
            fix="download config.json and weights again, from one place",
        )
    renamed = layout.table.to_ours(files.keys())
    try:
        renamed.by_target()
    except ValueError as error:
        raise CheckpointError(
            found=f"{path} ({layout.what}) holds a weight twice: {error}",
            expected="each weight under one name",
            fix="download the weights again",
        ) from error
    return Source(files, layout, renamed, config)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; empty for a single file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not folder.is_dir():
        return {}
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            found=f"{file} cannot be read: {error}",
            expected="the config.json that is published with the weights",
            fix="download the folder again",
        ) from error
    return config

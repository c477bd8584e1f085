"""Starting a training from parts of another checkpoint: ``init_from`` of a config.

A part is one of ``weights/parts.py`` (the parameter table in the log names them). What a part
trains here must be exactly what it trained there; all other weights stay as the model was built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from projects.sa2va.errors import CheckpointError, ConfigError, listing, suggest
from projects.sa2va.models import SegmentationModel
from projects.sa2va.models.trained import trained_parameters
from projects.sa2va.weights.parts import PARTS, by_part
from projects.sa2va.weights.report import LoadReport, tensor_rows
from projects.sa2va.weights.tables import OUR_TRAINING

from .lora_scale import check_scale
from .store import choose_weights, read_checkpoint, sha256_of

ALL = "all"
# What trains over frozen weights, beside them or between them means nothing over others.
_OVER = {
    "LoRA": ("MLLM language model",),
    "token rows": ("MLLM embeddings", "MLLM head"),
    "MLLM projector": ("MLLM vision encoder", "MLLM language model"),
    "[SEG] projector": ("MLLM language model", "SAM2 mask decoder"),
    "SAM2 mask decoder": ("SAM2 image encoder", "SAM2 prompt encoder"),
    "high-resolution head": ("SAM2 image encoder", "SAM2 mask decoder"),
}

# Parts with a row for each token.
_BY_TOKEN = ("token rows", "MLLM embeddings", "MLLM head")


@dataclass(frozen=True)
class InitFrom:
    """The ``init_from`` of a config.

    Attributes:
        checkpoint: file or folder of a training run of this project, of any ``model.type``.
        parts: names of parts; ``all`` stands for all that train in this model.
    """

    checkpoint: str
    parts: tuple[str, ...] | str

    @classmethod
    def from_config(cls, value: Mapping[str, Any] | None) -> InitFrom | None:
        """Reads the config key; None where it is not set.

        Raises:
            ConfigError: no file, no parts, or a part of another name.
        """
        if not value:
            return None
        checkpoint, parts = value.get("checkpoint"), value.get("parts")
        if not isinstance(checkpoint, str) or not checkpoint:
            raise ConfigError(
                found=f"init_from.checkpoint={checkpoint!r}",
                expected="a file that tools/train.py wrote",
                fix="init_from=dict(checkpoint='work_dirs/.../best_*.pth', parts=[...])",
            )
        if parts == ALL:
            return cls(checkpoint, ALL)
        known = [part for part, _ in PARTS]
        # On a command line mmengine drops the blanks in lists.
        short = {part.replace(" ", ""): part for part in known}
        is_list = isinstance(parts, list | tuple) and len(parts) > 0
        parts = [short.get(str(p).replace(" ", ""), p) for p in parts] if is_list else parts
        wrong = [part for part in parts if part not in known] if is_list else [parts]
        if wrong or len(set(parts)) < len(parts):
            name = str(wrong[0]) if wrong else ""
            raise ConfigError(
                found=f"init_from.parts={parts!r}" + suggest(name, [*known, ALL]),
                expected=f"a list of parts, each once: {listing(known, 20)}; or {ALL!r} for all "
                "that train",
                fix="name parts as the parameter table does that training prints at start",
            )
        return cls(checkpoint, tuple(parts))


def read_initial(init: InitFrom, *, mmap: bool = False) -> dict[str, Any]:
    """Reads the checkpoint of ``init``, and checks that it holds the named parts.

    Args:
        init: what to take.
        mmap: as of :func:`~.store.read_checkpoint`.

    Raises:
        CheckpointError: as :func:`~.store.read_checkpoint`; a checkpoint of another program; a
            part that it does not hold.
    """
    checkpoint = read_checkpoint(init.checkpoint, mmap=mmap)
    if checkpoint["layout"] != "trainable":
        raise CheckpointError(
            found=f"init_from.checkpoint={init.checkpoint} was written by another program (layout: "
            f"{checkpoint['layout']})",
            expected="a checkpoint of tools/train.py, whose parts are known",
            fix="load_from takes it whole; or tools/convert.py IN OUT.pth --to trainable makes a "
            "checkpoint of this project of it",
        )
    held = by_part(_ours(checkpoint["state_dict"]))
    absent = [part for part in init.parts if part not in held] if init.parts != ALL else []
    if absent:
        raise CheckpointError(
            found=f"{init.checkpoint} holds no {listing(absent)}",
            expected="parts that were trained in that run: " + listing(held, 20),
            fix="correct init_from.parts, or give the checkpoint of a run that trained them",
        )
    return checkpoint


def load_parts(
    model: SegmentationModel, checkpoint: dict[str, Any], init: InitFrom
) -> tuple[LoadReport, dict[str, Any]]:
    """Puts the named parts into ``model``, strictly; averaged weights where the file has them.

    Args:
        model: as it was built.
        checkpoint: what :func:`read_initial` gave.
        init: what to take.

    Returns:
        The report of all parts: how they were built, and what the checkpoint replaced; and what
        the checkpoints of this run keep of it (``meta.init_from``).

    Raises:
        CheckpointError: a part that does not train here, or tensors of a part that are missing,
            left over or of another shape; frozen weights or added tokens under it that are
            others; or another scale of LoRA. Nothing is loaded then.
    """
    state, which = choose_weights(checkpoint, init.checkpoint)
    source = {ours: state[name] for ours, name in _ours(state).items()}
    trained = trained_parameters(model)
    target = {ours: trained[name] for ours, name in _ours(trained).items()}
    theirs, own = by_part(source), by_part(target)
    parts = list(own) if init.parts == ALL else list(init.parts)
    _check_trained(parts, own, init)
    _check_below(model, parts, own, checkpoint["meta"], init)
    names = [name for part in parts for name in own[part]]
    given = [name for part in parts for name in theirs.get(part, [])]
    problems = {
        "missing": sorted(set(names) - set(given)),
        "left over": sorted(set(given) - set(names)),
        "of another shape": [
            f"{name} {tuple(source[name].shape)} in the file, {tuple(target[name].shape)} here"
            for name in sorted(set(names) & set(given))
            if source[name].shape != target[name].shape
        ],
    }
    if any(problems.values()):
        wrong = {n.split(" ")[0] for found in problems.values() for n in found}
        raise CheckpointError(
            found=f"init_from: {init.checkpoint} does not fit {listing(by_part(wrong))}: "
            + "; ".join(f"{len(n)} {kind}: {listing(n, 5)}" for kind, n in problems.items() if n),
            expected="what these parts train in this config: the same tensors in the same shapes",
            fix="give the model the sizes of that run (its config is in the checkpoint: "
            "tools/print_config.py shows this one's), or take the part out of init_from.parts",
        )
    unsaid = []
    if "LoRA" in parts:
        otherwise = ", or take LoRA out of init_from.parts"
        unsaid = check_scale(model, checkpoint, init.checkpoint, otherwise)
    with torch.no_grad():
        for name in names:
            target[name].copy_(source[name])
    report = model.load_report()
    report.rows += tensor_rows({name: source[name] for name in names}, init.checkpoint)
    meta = checkpoint["meta"]
    kept = {
        "checkpoint": Path(init.checkpoint).name,
        "sha256": sha256_of(init.checkpoint),
        "iteration": meta.get("iter"),
        "model": meta.get("model"),
        "weights": which,
        "parts": parts,
    }
    report.notes += [
        f"{part} <- {init.checkpoint} ({kept['model']}, iteration {kept['iteration']}, {which} "
        f"weights, sha256 {kept['sha256'][:16]})"
        for part in parts
    ]
    report.notes += unsaid
    rest = [part for part in theirs if part not in parts]
    if rest:
        report.notes.append(f"not taken from {init.checkpoint}: {listing(rest, 20)}")
    return report, kept


def _ours(names: Mapping[str, Any]) -> dict[str, str]:
    """Our names (without peft's wrappers, which not every model has) to those given."""
    renamed = OUR_TRAINING.to_ours(names)
    return {p.targets[0]: p.sources[0] for p in renamed.pieces} | {n: n for n in renamed.unknown}


def _check_trained(parts: list[str], own: Mapping[str, Any], init: InitFrom) -> None:
    frozen = [part for part in parts if part not in own]
    if frozen:
        raise CheckpointError(
            found=f"init_from.parts names {listing(frozen)}, which does not train in this config",
            expected="parts that train, since checkpoints hold no others: " + listing(own, 20),
            fix="let it train (for the image encoder: model.grounding.train_image_encoder=True), "
            "or take it out of init_from.parts",
        )


def _check_below(
    model: SegmentationModel,
    parts: list[str],
    own: Mapping[str, Any],
    meta: Mapping[str, Any],
    init: InitFrom,
) -> None:
    """What trains over frozen weights, or for tokens of some id, needs the same ones.

    Weights that train here too are not compared: whatever they start from, they adapt.
    """
    stored = meta.get("base_fingerprint", {})
    frozen = {part: value for part, value in model.base_fingerprint.items() if part not in own}
    other: dict[str, list[str]] = {}
    for part in parts:
        below = [b for b in _OVER.get(part, ()) if b in frozen and stored.get(b) != frozen[b]]
        if part in _BY_TOKEN and meta.get("added_tokens") != model.added_tokens():
            below.append("added tokens")
        if below:
            other[part] = below
    if other:
        different = list(dict.fromkeys(b for below in other.values() for b in below))
        trained = [b for b in different if b in frozen and b not in stored]
        raise CheckpointError(
            found=f"init_from: {init.checkpoint} was trained over other frozen weights or tokens "
            f"than this model has: {listing(different, 20)}",
            expected=f"the base under {listing(other, 20)}: without it they mean nothing",
            fix="set model.mllm.pretrained and model.grounding.pretrained (or the seeds of random "
            "weights) and processor.tokenizer as in that run (its config is in the checkpoint), "
            + (f"let {listing(trained)} train here too, as there, " if trained else "")
            + f"or take {listing(other, 20)} out of init_from.parts",
        )

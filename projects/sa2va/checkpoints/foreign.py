"""Training checkpoints in other layouts, onto our model: the reference's, and peft adapters.

Source of the names: bytedance/Sa2VA, projects/sa2va/models/sa2va.py (``state_dict``), as peft and
mmengine write them. The reference trains whole copies of the embedding and the head
(``modules_to_save``); here the rows of the added tokens are taken out of them, and the rest is
kept where it differs from the base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projects.sa2va.errors import CheckpointError, listing
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.trained import (
    change_frozen,
    load_trained_state_dict,
    our_names,
    trained_parameters,
)
from projects.sa2va.weights import PartRow, TensorFiles
from projects.sa2va.weights.parts import EMBEDDING, HEAD, MEMORY, by_part, part_of
from projects.sa2va.weights.report import tensor_rows
from projects.sa2va.weights.tables import PEFT_ADAPTER, REFERENCE_TRAINING

from .lora_scale import LORA_SCALE, SCALE

TRAINED_FOLDER = "trained"  # of an adapter folder: what trained outside of peft
PROVENANCE_FILE = "provenance.json"
_CHUNK = 8192  # rows compared at a time: a whole table in float32 is 2 GB at 8B
_SAME = "equal to the base"


def is_tied(model: Sa2VAModel) -> bool:
    """Whether the head of the language model is its embedding."""
    names, state = our_names(model), model.state_dict(keep_vars=True)
    return state[names[f"{HEAD}.weight"]] is state[names[f"{EMBEDDING}.weight"]]


def read_adapter(path: str | Path) -> dict[str, Any]:
    """Reads a folder of ``tools/convert.py --to adapter``.

    Returns:
        ``layout``, ``state_dict`` under the names of ``weights/tables.py``, and ``meta`` with
        peft's settings of LoRA's scale.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    path = Path(path)
    adapter, beside = TensorFiles(path), TensorFiles(path / TRAINED_FOLDER)
    renamed = PEFT_ADAPTER.to_ours(adapter)
    try:
        peft = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        meta = json.loads((path / PROVENANCE_FILE).read_text(encoding="utf-8"))
        if peft["peft_type"] == "LORA":
            meta[LORA_SCALE] = {key: peft[key] for key in SCALE}
        if meta.get("iteration") is not None:
            meta["iter"] = meta["iteration"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            found=f"{path}: {error!r}",
            expected=f"adapter_config.json and {PROVENANCE_FILE} beside the adapter's weights",
            fix="export it again: tools/convert.py CHECKPOINT OUT --to adapter",
        ) from error
    if renamed.unknown:
        raise CheckpointError(
            found=f"{path}: tensors that are no LoRA and no token rows: "
            + listing(renamed.unknown, 5),
            expected="an adapter that tools/convert.py wrote",
            fix="export it again: tools/convert.py CHECKPOINT OUT --to adapter",
        )
    state = {piece.targets[0]: adapter[piece.sources[0]] for piece in renamed.pieces}
    return {"layout": "adapter", "meta": meta, "state_dict": {**state, **beside}}


def load_foreign(
    model: Sa2VAModel, checkpoint: Mapping[str, Any], path: str | Path
) -> tuple[list[PartRow], list[str]]:
    """Loads a checkpoint of the reference, or an adapter folder, into ``model``.

    Trained parts must be complete. Frozen weights that come along replace the base's where they
    differ, and are named in ``model.changed_frozen``.

    Args:
        model: built over the base weights of that training, with LoRA of the same rank.
        checkpoint: what ``read_checkpoint`` gave, ``layout`` not ``trainable``.
        path: where it came from.

    Returns:
        Rows of the load report, and notes.

    Raises:
        CheckpointError: a tensor missing, left over or of another shape; LoRA of another rank;
            tables that belong to another base or tokenizer.
    """
    tensors = dict(checkpoint["state_dict"])
    if checkpoint["layout"] == "reference-training":
        tensors = _rename(tensors, path)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            found=f"{path}: {len(broken)} tensors with values that are no numbers: "
            + listing(broken, 5),
            expected="finite weights: that training diverged, or the file is damaged",
            fix="give an earlier checkpoint",
        )
    names = our_names(model)
    notes = []
    unused = {name: tensors.pop(name) for name in list(tensors) if part_of(name) == MEMORY}
    found = dict(tensors)
    trained = trained_parameters(model)
    is_frozen = {name for name, own in names.items() if own not in trained}
    if checkpoint["layout"] == "reference-training":
        for table in (EMBEDDING, HEAD):
            notes += _take_rows(model, names, tensors, found, table, path)
    frozen = {names[n]: tensors.pop(n) for n in list(tensors) if n in is_frozen}
    state = {names.get(name, name): tensor for name, tensor in tensors.items()}
    load_trained_state_dict(model, state, str(path), fix=_advice(tensors))
    changed = set(change_frozen(model, frozen, str(path)))
    model.changed_frozen = sorted({*model.changed_frozen, *changed})
    model.grounding.unused.update(unused)
    rows = tensor_rows(found, str(path))
    for row in rows:
        same = [n for n in by_part(found)[row.part] if n in is_frozen and names[n] in frozen]
        same = [name for name in same if names[name] not in changed]
        if same:
            row.loaded, row.ignored = row.tensors - len(same), {_SAME: len(same)}
    return rows, notes


def _rename(state: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    renamed = REFERENCE_TRAINING.to_ours(state)
    wrong = renamed.unknown + renamed.incomplete
    if wrong:
        raise CheckpointError(
            found=f"{path}: {len(wrong)} tensors that the reference's training does not write, or "
            f"only a part of a group: {listing(wrong, 5)}",
            expected="LoRA, embedding and head, mlp1, SAM2 and text_hidden_fcs under the "
            "reference's names",
            fix="give the checkpoint as the reference's training wrote it",
        )
    tensors: dict[str, Tensor] = {}
    for piece in renamed.pieces:
        tensors.update(piece.read(state.__getitem__))
    return tensors


def _lora_rank(tensors: Mapping[str, Tensor]) -> int | None:
    return next((len(t) for name, t in tensors.items() if name.endswith(".lora_A.weight")), None)


def _advice(tensors: Mapping[str, Tensor]) -> str:
    rank = _lora_rank(tensors)
    lora = "None" if rank is None else f"dict(r={rank}, lora_alpha=<as in that training>)"
    return (
        f"set model.mllm.lora={lora}, model.mllm.train_projector and "
        "model.grounding.train_mask_decoder to what that training trained"
    )


def _take_rows(
    model: Sa2VAModel,
    names: Mapping[str, str],
    tensors: dict[str, Tensor],
    found: Mapping[str, Tensor],
    table: str,
    path: str | Path,
) -> list[str]:
    """Takes the added tokens' rows out of a whole table; drops the table if the rest is the base's.

    Args:
        model: the joint model.
        names: our names of its weights, and its own.
        tensors: what is to be loaded, under our names; changed here.
        found: the same as the checkpoint has them.
        table: ``EMBEDDING`` or ``HEAD``.
        path: the checkpoint, for messages.

    Returns:
        A note for the report.
    """
    weight, rows = f"{table}.weight", f"{table}.token_rows"
    if weight not in tensors:
        return []
    copy, own = tensors[weight], model.state_dict(keep_vars=True)
    base = own[names[weight]].detach()
    if copy.shape != base.shape:
        raise CheckpointError(
            found=f"{path}: {weight} {tuple(copy.shape)} in the file, {tuple(base.shape)} in the "
            "model",
            expected="the tokenizer and the base of that training: as many rows as tokens",
            fix="set model.pretrained or model.mllm.pretrained, processor.tokenizer and "
            "processor.added_tokens as in that training",
        )
    if table == HEAD and is_tied(model):
        embedding = found.get(f"{EMBEDDING}.weight")
        if embedding is None:  # a head that trained by itself differs from the base's one table
            embedding = base.to(copy)
        if not torch.equal(copy, embedding):
            raise CheckpointError(
                found=f"{path} holds a head that differs from its embedding, and the model's head "
                "is its embedding",
                expected="a model with a head of its own, as modules_to_save made it in training",
                fix="set model.mllm.tie_word_embeddings=False",
            )
        tensors.pop(weight)
        return []
    ids = model.processor.added_token_ids
    differ, largest, likeness = _compare(copy, base, ids)
    others = len(copy) - len(ids)
    if likeness < 0.5:
        raise CheckpointError(
            found=f"{path} was trained over other base weights: the rows of {weight} are not those "
            f"of the model (median cosine {likeness:.2f})",
            expected="the base that it was trained over; training moves a row, and does not "
            "replace it",
            fix="set model.pretrained, or model.mllm.pretrained, to the base of that training "
            "(pretrained_pth and path of its config)",
        )
    added = (copy[ids].float() - base[ids].to(copy).float()).abs().max()
    note = f"{weight}: {len(ids)} added rows (largest change {added:.3g})"
    if rows in names:
        tensors[rows] = copy[ids].clone()
    if differ == 0 and rows in names:
        tensors.pop(weight)
        return [f"{note}; the other {others} rows are the base's: kept as token rows"]
    return [
        f"{note}; {differ} of the other {others} rows differ from the base (largest change "
        f"{largest:.3g}): the table is kept whole"
    ]


def _compare(copy: Tensor, base: Tensor, added: list[int]) -> tuple[int, float, float]:
    """Rows besides ``added`` that differ, the largest difference, and the median cosine of all."""
    keep = torch.ones(len(copy), dtype=torch.bool)
    keep[added] = False
    differ, largest, cosines = 0, 0.0, []
    for start in range(0, len(copy), _CHUNK):
        chosen = keep[start : start + _CHUNK]
        one = copy[start : start + _CHUNK][chosen]
        other = base[start : start + _CHUNK].cpu()[chosen].to(copy.dtype)
        differ += int((one != other).any(dim=1).sum())
        one, other = one.float(), other.float()
        if len(one):
            largest = max(largest, float((one - other).abs().max()))
        cosines.append(torch.cosine_similarity(one, other, dim=1))
    return differ, largest, float(torch.cat(cosines).median())

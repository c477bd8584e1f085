"""What a file or folder of weights is, what is in it, and how two of them differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projects.sa2va.columns import columns
from projects.sa2va.errors import CheckpointError
from projects.sa2va.models.pretrained import PROJECTOR_FOLDER, SAM2_FOLDER
from projects.sa2va.weights.base import shapes_of
from projects.sa2va.weights.layouts import Source, open_source
from projects.sa2va.weights.parts import EMBEDDING, HEAD, PARTS, by_part
from projects.sa2va.weights.report import checksum, dtype_names
from projects.sa2va.weights.tables import OUR_TRAINING, REFERENCE_TRAINING

from .deepspeed_folder import is_deepspeed_folder
from .foreign import PROVENANCE_FILE
from .lora_scale import LORA_SCALE, alpha_in
from .store import AVERAGED, FORMAT, choose_weights, read_checkpoint, sha256_of

_TRAINING = {"trainable": OUR_TRAINING, "reference-training": REFERENCE_TRAINING}
_META = ("model", "iter", "epoch", "time", "experiment_name", "seed", "world_size", "git_commit")


@dataclass
class Weights:
    """Weights of any kind under our names.

    Attributes:
        path: file or folder.
        what: what it is, in words.
        names: our names of all tensors.
        get: reads one.
        facts: what else is known of it, by label.
        trained: whether it holds what was trained (and not base weights).
    """

    path: Path
    what: str
    names: list[str]
    get: Callable[[str], Tensor]
    facts: dict[str, str] = field(default_factory=dict)
    trained: bool = False


def open_weights(path: str | Path, weights: str | None = None) -> Weights:
    """Opens anything that this project reads: base weights, exports, training checkpoints.

    Args:
        path: file or folder.
        weights: ``averaged`` or ``raw`` ones of a training checkpoint; None: averaged where it
            has them, as a test takes them.

    Raises:
        CheckpointError: not there, damaged, or of no known layout; or without an average.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            found=f"no file or folder {path}",
            expected="a checkpoint, or a folder or file of published weights",
            fix="correct the path",
        )
    if is_deepspeed_folder(path):
        return _training(path, read_checkpoint(path), weights)
    source = open_source(path)
    if source.layout.name == "adapter":
        return _training(path, read_checkpoint(path), weights)
    if source.layout.name in _TRAINING:
        held = {"state_dict": source.files, "layout": source.layout.name}
        return _training(path, {**source.files.extra, **held}, weights)
    sources = [source]
    if (path / SAM2_FOLDER).is_dir() and (path / PROJECTOR_FOLDER).is_dir():
        sources += [open_source(path / SAM2_FOLDER), open_source(path / PROJECTOR_FOLDER)]
    owner: dict[str, Source] = {}
    for part in sources:
        owner |= dict.fromkeys(shapes_of(part), part)
    pieces = {name: part.renamed.by_target()[name] for part in sources for name in shapes_of(part)}
    what = source.layout.what if len(sources) == 1 else "a whole Sa2VA in transformers' layout"
    facts = {"files": ", ".join(file.name for part in sources for file in part.files.files)}
    facts |= _config_facts(source.config) | _provenance_facts(path)
    return Weights(
        path,
        what,
        list(owner),
        lambda name: pieces[name].read(owner[name].files.__getitem__)[name],
        facts,
    )


def _training(path: Path, checkpoint: Mapping[str, Any], weights: str | None) -> Weights:
    meta = dict(checkpoint.get("meta", {}))
    state, which = choose_weights(checkpoint, path, weights)
    layout = checkpoint["layout"]
    extra = dict(checkpoint.get("changed_frozen", {}))
    facts = {key: str(meta[key]) for key in _META if meta.get(key) is not None}
    if path.is_file():
        facts["sha256"] = sha256_of(path)
    if layout == "adapter":
        tensors = dict(state)
        names, get = list(tensors), tensors.__getitem__
        what = "a peft adapter folder of this project"
        facts |= _provenance_facts(path)
    else:
        renamed = _TRAINING[layout].to_ours([*state, *extra])
        if renamed.unknown:
            raise CheckpointError(
                found=f"{path}: {len(renamed.unknown)} tensors of unknown names: "
                + ", ".join(renamed.unknown[:5]),
                expected="the names that training writes",
                fix="give the checkpoint as training wrote it",
            )
        pieces = renamed.by_target()
        whole = {**{name: state[name] for name in state}, **extra}
        names = list(pieces)

        def get(name: str) -> Tensor:
            return pieces[name].read(whole.__getitem__)[name]

        what = {
            "trainable": "a training checkpoint of this project",
            "reference-training": "a training checkpoint of the reference",
        }[layout]
    kind = "DeepSpeed folder" if is_deepspeed_folder(path) else None
    facts |= {"stored as": kind} if kind else {}
    if layout == "trainable":
        facts["format"] = str(meta.get("format", f"none (expected {FORMAT})"))
        facts["resumable"] = "yes" if "optimizer" in checkpoint or kind else "no (weights only)"
        if AVERAGED in checkpoint:
            how = ", ".join(f"{key} {value}" for key, value in meta[AVERAGED].items())
            facts["weights"] = f"{which} ones above; it holds raw and averaged ones ({how})"
        for key in ("base_fingerprint", "added_tokens", "init_from", "data_splits"):
            if meta.get(key):
                facts[key.replace("_", " ")] = json.dumps(meta[key])
    if extra:
        facts["frozen tensors replaced"] = str(len(extra))
    facts |= _lora_facts(names, get, meta)
    whole_tables = [t for t in (EMBEDDING, HEAD) if f"{t}.weight" in names]
    if whole_tables:
        facts["whole tables"] = ", ".join(
            f"{t.removeprefix('mllm.')} {tuple(get(f'{t}.weight').shape)}" for t in whole_tables
        )
    return Weights(path, what, names, get, facts, trained=True)


def _lora_facts(
    names: list[str], get: Callable[[str], Tensor], meta: Mapping[str, Any]
) -> dict[str, str]:
    pairs = [name for name in names if name.endswith(".lora_B.weight")]
    if not pairs:
        return {"LoRA": "none"}
    rank = get(pairs[0]).shape[1]
    alpha = meta.get(LORA_SCALE, {}).get("lora_alpha") or alpha_in(meta.get("cfg")) or "not stored"
    zero = sum(not bool(get(name).any()) for name in pairs)
    text = f"rank {rank}, alpha {alpha}, {len(pairs)} layers"
    return {"LoRA": text + (f"; {zero} of them change nothing (B is zero)" if zero else "")}


def _config_facts(config: Mapping[str, Any]) -> dict[str, str]:
    text = config.get("llm_config") or config.get("text_config") or {}
    keys = ("hidden_size", "num_hidden_layers", "vocab_size", "tie_word_embeddings")
    facts = {f"language model {key}": str(text[key]) for key in keys if key in text}
    return {"model_type": str(config["model_type"]), **facts} if "model_type" in config else facts


def _provenance_facts(path: Path) -> dict[str, str]:
    file = path / PROVENANCE_FILE
    if not file.is_file():
        return {}
    try:
        stored = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        return {PROVENANCE_FILE: f"cannot be read ({error})"}
    return {f"made from, {key}": _text(value) for key, value in stored.items()}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "".join(f"\n  {item}" for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def describe(weights: Weights) -> str:
    """A page: what it is, its parts with sizes and checksums, and what is known of its making."""
    lines = [f"{weights.path}: {weights.what}", ""]
    head = ("part", "tensors", "values", "dtype", "checksum")
    rows = [head]
    total = 0
    for part, names in by_part(weights.names).items():
        # One at a time: a part of an 8B model is 13 GB.
        sizes = [(tensor.numel(), tensor.dtype) for tensor in map(weights.get, names)]
        count = sum(size for size, _ in sizes)
        total += count
        dtypes = dtype_names(dtype for _, dtype in sizes)
        rows.append((part, str(len(names)), f"{count:,}", dtypes, checksum(names, weights.get)))
    rows.append(("all", str(len(weights.names)), f"{total:,}", "", ""))
    lines += columns(rows, right=(1, 2))
    what = "trained" if weights.trained else "held"
    lines += ["", f"{what}: {', '.join(by_part(weights.names))}"]
    lines += [f"{label}: {value}" for label, value in weights.facts.items()]
    return "\n".join(lines)


@dataclass
class PartDifference:
    """How one part differs between two sets of weights.

    Attributes:
        part: its name.
        same: tensors with equal values.
        different: tensors with other values or shapes.
        only_a, only_b: tensors that one of them has.
        largest: largest absolute difference.
        relative: norm of the difference over the norm of the first.
    """

    part: str
    same: int = 0
    different: int = 0
    only_a: int = 0
    only_b: int = 0
    largest: float = 0.0
    relative: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.different or self.only_a or self.only_b)


def compare(a: Weights, b: Weights) -> list[PartDifference]:
    """Compares values (in float32, so that bfloat16 and float32 copies of a value are equal)."""
    order = {part: PartDifference(part) for part, _ in PARTS}
    groups = by_part({*a.names, *b.names})
    in_a, in_b = set(a.names), set(b.names)
    for part, names in groups.items():
        row = order.setdefault(part, PartDifference(part))
        difference = reference = 0.0
        for name in sorted(names):
            if name not in in_b or name not in in_a:
                row.only_a += name in in_a
                row.only_b += name in in_b
                continue
            one, other = a.get(name).float(), b.get(name).float()
            if one.shape != other.shape:
                row.different += 1
                row.largest = row.relative = float("inf")
                continue
            # Bit by bit too: NaN, where a training diverged, is the same as itself.
            equal = torch.equal(one, other) or _same_bits(one, other)
            row.same += equal
            row.different += not equal
            if not equal:
                delta = one - other
                row.largest = max(row.largest, float(delta.abs().nan_to_num(nan=torch.inf).max()))
                difference += float(delta.square().sum(dtype=torch.float64))
            reference += float(one.square().sum(dtype=torch.float64))
        if row.relative == 0.0 and difference and reference:
            row.relative = (difference / reference) ** 0.5
    return [row for part, row in order.items() if part in groups]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def describe_difference(a: Weights, b: Weights, rows: list[PartDifference]) -> str:
    """The comparison as a table, and a last line that says whether anything differs."""
    head = ("part", "equal", "different", "only in A", "only in B", "largest", "relative")
    table = [head] + [
        (
            row.part,
            str(row.same),
            str(row.different),
            str(row.only_a),
            str(row.only_b),
            f"{row.largest:.3g}",
            f"{row.relative:.3g}",
        )
        for row in rows
    ]
    lines = [f"A: {a.path} ({a.what})", f"B: {b.path} ({b.what})", ""]
    lines += columns(table, right=tuple(range(1, 7)))
    lines.append("")
    for label, chosen in (
        ("other values", [row.part for row in rows if row.different]),
        ("only in A", [row.part for row in rows if row.only_a]),
        ("only in B", [row.part for row in rows if row.only_b]),
    ):
        lines += [f"{label}: {', '.join(chosen)}"] if chosen else []
    if all(row.equal for row in rows):
        lines.append("no difference")
    if not any(row.same + row.different for row in rows):
        lines.append("note: they have no tensor in common, so no value was compared")
    return "\n".join(lines)

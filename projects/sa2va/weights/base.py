"""Base weights into transformers' modules: strictly, lazily, with a report by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from projects.sa2va.errors import CheckpointError, listing

from .key_map import Piece
from .layouts import Source
from .parts import MEMORY, by_part, part_of
from .report import PartRow, checksum, dtype_names
from .tables import SAM2_META
from .tables_sam2 import MEMORY_RULES

_NOT_USED = "video memory and object pointers: a single image needs none; kept for export"
_TIED = "the head is the embedding"


def shapes_of(source: Source) -> dict[str, tuple[int, ...]]:
    """Our names to shapes, for everything in ``source``; nothing is read.

    Raises:
        CheckpointError: tensors that the layout's table does not know, or only a part of a group.
    """
    renamed, entries = source.renamed, source.files.entries
    problems = [("not known to the table", renamed.unknown), ("missing", renamed.incomplete)]
    if any(names for _, names in problems):
        raise CheckpointError(
            found=f"{source.files.path} ({source.layout.what}): "
            + "; ".join(f"{len(n)} tensors {what}: {listing(n, 5)}" for what, n in problems if n),
            expected="exactly the weights that this layout is published with",
            fix="download the weights again; weights of another architecture cannot be used",
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for piece in renamed.pieces:
        try:
            shapes.update(piece.shapes(lambda name: entries[name].shape))
        except ValueError as error:
            raise _not_as_published(source, error) from error
    return shapes


def check_part(
    source: Source, prefix: str, expected: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Raises CheckpointError unless ``source`` holds exactly ``expected`` under ``prefix``.

    The video memory of SAM2 is there as a whole, or not at all.
    """
    found = {name: shape for name, shape in shapes_of(source).items() if name.startswith(prefix)}
    missing = sorted(expected.keys() - found.keys())
    memory = {name for name in found.keys() - expected.keys() if part_of(name) == MEMORY}
    extra = sorted(found.keys() - expected.keys() - memory)
    if memory:
        lost, unknown = _memory_problems(memory)
        missing, extra = missing + lost, extra + unknown
    other = [
        f"{name} {found[name]} in the file, {tuple(expected[name])} in the model"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != tuple(expected[name])
    ]
    problems = [("missing", missing), ("too many", extra), ("of another shape", other)]
    if any(names for _, names in problems):
        raise CheckpointError(
            found=f"{source.files.path} ({source.layout.what}) does not fit {what}: "
            + "; ".join(
                f"{len(names)} tensors {kind} ({listing(by_part(n.split()[0] for n in names))}): "
                f"{listing(names, 5)}"
                for kind, names in problems
                if names
            ),
            expected="every weight of the part, nothing else, in the shapes that its config gives",
            fix="download weights and config.json again, from one place and revision, or correct "
            "the config key of the sizes",
        )


def _memory_problems(names: set[str]) -> tuple[list[str], list[str]]:
    """What a video memory lacks, and what does not belong to one.

    Its sizes do not matter here, so it is complete when every rule of the table finds something.
    """
    renamed = SAM2_META.to_theirs(names)
    used = {id(piece.rule) for piece in renamed.pieces}
    required = [rule for rule in MEMORY_RULES if "SAM2.1 only" not in rule.reason]
    lost = [rule.our_names[0] for rule in required if id(rule) not in used]
    return lost, renamed.unknown


def read_part(source: Source, prefix: str) -> dict[str, Tensor]:
    """All tensors of ``source`` whose names with us begin with ``prefix``."""
    tensors: dict[str, Tensor] = {}
    for piece in source.renamed.pieces:
        if piece.targets[0].startswith(prefix):
            tensors.update(_read(source, piece))
    return tensors


def load_part(
    source: Source,
    prefix: str,
    model_class: Any,
    config: Any,
    dtype: torch.dtype,
    attn_implementation: str,
) -> tuple[nn.Module, list[PartRow], dict[str, Tensor]]:
    """Builds a transformers model and fills it from ``source``.

    A tensor is read when it is its turn and goes where it stays, so that host memory holds the
    model once.

    Args:
        source: recognised weights.
        prefix: ``mllm.`` or ``grounding.``.
        model_class: transformers model class.
        config: its config.
        dtype: dtype of all weights in the model.
        attn_implementation: attention backend of transformers.

    Returns:
        The model, a report row for each part, and the tensors that it has no place for (the video
        memory of SAM2) under our names.

    Raises:
        CheckpointError: missing, unexpected or differently shaped weights.
    """
    with torch.device("meta"):
        skeleton = model_class._from_config(config)
    expected = {prefix + name: tuple(t.shape) for name, t in skeleton.state_dict().items()}
    tied = _tied_names(skeleton, prefix)
    del skeleton
    in_file = source.renamed.by_target()
    expected = {n: s for n, s in expected.items() if n not in tied or n in in_file}
    check_part(source, prefix, expected, model_class.__name__)
    state = {
        # transformers takes a tensor of the right dtype as it is: then it would be a map of the
        # file, or one tensor under two names.
        target.removeprefix(prefix): tensor.clone()
        if isinstance(tensor, Tensor) and tensor.dtype == dtype
        else tensor
        for target, tensor in _lazily(source, [n for n in expected if n not in tied]).items()
    }
    model, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    lost = sorted({prefix + str(name) for name in info["missing_keys"]} - set(tied))
    if lost or info["mismatched_keys"]:  # checked above, so this is transformers' doing
        raise CheckpointError(
            found=f"transformers left {listing(lost)} {info['mismatched_keys'] or ''} unfilled",
            expected=f"every weight of {model_class.__name__}",
            fix="install the pinned versions: make setup",
        )
    rows = []
    own = [name for name in in_file if name.startswith(prefix)]
    for part, names in by_part(own).items():
        ignored = {}
        if part == MEMORY:
            ignored = {_NOT_USED: len(names)}
        elif set(names) & set(tied):
            ignored = {_TIED: len(names)}
        rows.append(part_row(source, part, names, ignored))
    rest = {n: t for n in own if part_of(n) == MEMORY for n, t in _read(source, in_file[n]).items()}
    return model, rows, rest


def part_row(
    source: Source, part: str, names: list[str], ignored: dict[str, int] | None = None
) -> PartRow:
    """The report's row for the tensors ``names`` of ``source``."""
    pieces = source.renamed.by_target()
    ignored = ignored or {}
    dtypes = {source.files.entries[s].dtype for name in names for s in pieces[name].sources}
    return PartRow(
        part=part,
        source=str(source.files.path),
        tensors=len(names),
        loaded=len(names) - sum(ignored.values()),
        ignored=ignored,
        dtype=dtype_names(dtypes),
        checksum=checksum(names, lambda name: _read(source, pieces[name])[name]),
    )


def _read(source: Source, piece: Piece) -> dict[str, Tensor]:
    try:
        return piece.read(source.files.__getitem__)
    except ValueError as error:
        raise _not_as_published(source, error) from error


def _not_as_published(source: Source, error: ValueError) -> CheckpointError:
    return CheckpointError(
        found=f"{source.files.path} ({source.layout.what}): {error}",
        expected="weights as this layout publishes them",
        fix="download the weights again",
    )


def _lazily(source: Source, names: list[str]) -> dict[str, Any]:
    """Tensors by our name, as slices that transformers reads itself where the layout allows it."""
    pieces = source.renamed.by_target()
    state: dict[str, Any] = {}
    for name in names:
        if name in state:
            continue
        piece = pieces[name]
        if piece.rule.op == "copy":
            state[name] = source.files.lazily(piece.sources[0])
        else:
            state.update(_read(source, piece))
    return {name: state[name] for name in names}


def _tied_names(skeleton: nn.Module, prefix: str) -> list[str]:
    """Names of the head where it is the embedding."""
    head = skeleton.get_output_embeddings()
    if head is None or not skeleton.config.tie_word_embeddings:
        return []
    return [f"{prefix}{name}.weight" for name, m in skeleton.named_modules() if m is head]


def is_tied(source: Source, head: str, embedding: str) -> bool:
    """Whether the head of a language model is its embedding: told from the weights.

    config.json alone cannot be trusted: transformers has read it from different levels.

    Args:
        source: recognised weights.
        head: our name of the head's weight.
        embedding: our name of the embedding's.

    Raises:
        CheckpointError: config.json says that they are one, and the weights hold two.
    """
    config = source.config
    texts = [config.get("text_config"), config.get("llm_config"), config]
    says = [c["tie_word_embeddings"] for c in texts if c and "tie_word_embeddings" in c]
    pieces = source.renamed.by_target()
    if head not in pieces:
        return not says or any(says)
    if not any(says):
        return False
    one, other = (_read(source, pieces[name])[name] for name in (head, embedding))
    if torch.equal(one, other):
        return True
    if not all(says):
        return False
    raise CheckpointError(
        found=f"{source.files.path}: config.json ties the head to the embedding "
        "(tie_word_embeddings), and the weights hold a different head",
        expected="a config.json that was written with these weights",
        fix="if the head was trained by itself, set tie_word_embeddings to false in config.json "
        "(at the top and in llm_config or text_config)",
    )

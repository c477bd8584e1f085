"""Renaming weights by tables of rules that work in both directions.

A rule pairs the names of one layout ("theirs") with the names of ours. Names are templates:
``{i}`` stands for a number, ``{p}`` for ``weight`` or ``bias``, ``{rest}`` for anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

_PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias", "rest": ".+"}

Op = Literal["copy", "split", "stack", "share", "ignore"]


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Args:
        theirs: name template, or several that belong together.
        ours: likewise.
        reason: why the names differ, or why a tensor is ignored.
        op: ``copy``: one tensor under two names. ``split``: theirs is cut into equal parts along
            dim 0. ``stack``: theirs are joined along dim 0. ``share``: theirs is under several
            names with us. ``ignore``: not read (``ours`` is empty).
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    reason: str
    op: Op = "copy"

    @cached_property
    def their_names(self) -> tuple[str, ...]:
        """``theirs`` as a tuple."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @cached_property
    def our_names(self) -> tuple[str, ...]:
        """``ours`` as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class Piece:
    """Tensors that a rule turns into other tensors; see :meth:`read`."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    rule: Rule
    forward: bool

    def read(self, get: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Fetches the sources and gives the targets.

        Raises:
            ValueError: parts of unequal size, or shared weights that differ.
        """
        tensors = [get(name) for name in self.sources]
        shapes = {name: tuple(t.shape) for name, t in zip(self.sources, tensors, strict=True)}
        self.shapes(shapes.__getitem__)
        op, forward = self.rule.op, self.forward
        if op == "copy":
            return {self.targets[0]: tensors[0]}
        if op == "share" and forward:
            return dict.fromkeys(self.targets, tensors[0])
        if op == "share":
            if any(not torch.equal(tensors[0], other) for other in tensors[1:]):
                raise ValueError(f"{', '.join(self.sources)} are one tensor and differ")
            return {self.targets[0]: tensors[0]}
        if (op == "split") == forward:
            parts = tensors[0].tensor_split(len(self.targets))
            return dict(zip(self.targets, parts, strict=True))
        return {self.targets[0]: torch.cat(tensors)}

    def shapes(self, shape: Callable[[str], tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes of the targets, without reading anything.

        Raises:
            ValueError: what is cut or joined has no equal parts.
        """
        first, *others = shapes = [tuple(shape(name)) for name in self.sources]
        op, forward = self.rule.op, self.forward
        if any(other != first for other in others):
            raise ValueError(f"{', '.join(self.sources)} have shapes {shapes}, which must be equal")
        if op in ("copy", "share"):
            return dict.fromkeys(self.targets, first)
        if not first:
            raise ValueError(f"{self.sources[0]} is a single number")
        if (op == "split") == forward:
            parts = len(self.targets)
            if first[0] % parts:
                raise ValueError(
                    f"{self.sources[0]} has {first[0]} rows, not a multiple of {parts}"
                )
            return dict.fromkeys(self.targets, (first[0] // parts, *first[1:]))
        return {self.targets[0]: (first[0] * len(shapes), *first[1:])}


@dataclass
class Renamed:
    """What a table made of a list of names.

    Attributes:
        pieces: what is read.
        ignored: names that the table says to leave out, with the reason.
        unknown: names that no rule knows.
        incomplete: names that a rule needs beside others that are there.
    """

    pieces: list[Piece] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    def by_target(self) -> dict[str, Piece]:
        """Target name to the piece that gives it.

        Raises:
            ValueError: two pieces give the same target.
        """
        found: dict[str, Piece] = {}
        for piece in self.pieces:
            for target in piece.targets:
                if target in found:
                    raise ValueError(f"{found[target].sources} and {piece.sources} are {target}")
                found[target] = piece
        return found


class KeyMap:
    """A table of rules between one layout and ours; the first rule that matches a name wins."""

    def __init__(self, name: str, rules: Iterable[Rule]) -> None:
        self.name = name
        self.rules = tuple(rules)

    def to_ours(self, names: Iterable[str]) -> Renamed:
        """Renames weights of the other layout into our names."""
        return self._rename(names, self._their_patterns, forward=True)

    def to_theirs(self, names: Iterable[str]) -> Renamed:
        """Renames our weights into the other layout's names."""
        return self._rename(names, self._our_patterns, forward=False)

    @cached_property
    def _their_patterns(self) -> list[tuple[Rule, re.Pattern]]:
        return [(rule, _pattern(t)) for rule in self.rules for t in rule.their_names]

    @cached_property
    def _our_patterns(self) -> list[tuple[Rule, re.Pattern]]:
        return [
            (rule, _pattern(t))
            for rule in self.rules
            if rule.op != "ignore"
            for t in rule.our_names
        ]

    def _rename(
        self, names: Iterable[str], patterns: list[tuple[Rule, re.Pattern]], forward: bool
    ) -> Renamed:
        result = Renamed()
        known = set(names)
        done: set[str] = set()
        for name in sorted(known):
            if name in done:
                continue
            rule, values = _first_match(name, patterns)
            if rule is None:
                result.unknown.append(name)
                continue
            if rule.op == "ignore":
                result.ignored[name] = rule.reason
                continue
            theirs, ours = (_fill(names, values) for names in (rule.their_names, rule.our_names))
            sources, targets = (theirs, ours) if forward else (ours, theirs)
            done.update(sources)
            absent = [source for source in sources if source not in known]
            if absent:
                result.incomplete += absent
            else:
                result.pieces.append(Piece(sources, targets, rule, forward))
        return result


def _first_match(
    name: str, patterns: list[tuple[Rule, re.Pattern]]
) -> tuple[Rule | None, Mapping[str, str]]:
    for rule, pattern in patterns:
        match = pattern.fullmatch(name)
        if match:
            return rule, match.groupdict()
    return None, {}


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", template)
    text = re.escape(parts[0])
    seen: set[str] = set()
    for name, literal in zip(parts[1::2], parts[2::2], strict=True):
        text += f"(?P={name})" if name in seen else f"(?P<{name}>{_PLACEHOLDERS[name]})"
        text += re.escape(literal)
        seen.add(name)
    return re.compile(text)


def _fill(templates: tuple[str, ...], values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(re.sub(r"\{(\w+)\}", lambda m: values[m[1]], name) for name in templates)

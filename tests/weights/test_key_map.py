"""Renaming in both directions, with random tables and names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from projects.sa2va.weights.key_map import KeyMap, Piece, Rule

MIDDLES = ("", ".{i}", ".{p}", ".{i}.x{j}.{p}", ".{i}.{i}", ".{rest}", ".{i}.{rest}")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)


@st.composite
def values(draw: Any) -> dict[str, str]:
    """What the placeholders of one name stand for."""
    return {
        "i": str(draw(st.integers(0, 120))),
        "j": str(draw(st.integers(0, 9))),
        "p": draw(st.sampled_from(["weight", "bias"])),
        "rest": ".".join(draw(st.lists(st.sampled_from(["a", "7", "b_c"]), min_size=1))),
    }


@st.composite
def tables(draw: Any) -> tuple[KeyMap, dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """A table, tensors under its names, and each name's group."""
    rules, tensors, groups = [], {}, {}
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    for k in range(draw(st.integers(1, 5))):
        op = draw(st.sampled_from(["copy", "split", "stack", "share"]))
        parts = 1 if op == "copy" else draw(st.integers(2, 4))
        middle = draw(st.sampled_from(MIDDLES))
        one, many = f"one{k}{middle}", tuple(f"many{k}.{n}{middle}" for n in range(parts))
        theirs, ours = (many, one) if op == "stack" else (one, many)
        rules.append(Rule(theirs, ours, "made up", op))
        for given_values in draw(st.lists(values(), min_size=1, max_size=3)):
            rows = draw(st.integers(1, 3)) * (parts if op == "split" else 1)
            shape = (rows, *draw(st.lists(st.integers(1, 3), max_size=2)))
            dtype = draw(st.sampled_from(DTYPES))
            names = tuple(name.format(**given_values) for name in rules[-1].their_names)
            for name in names:
                numbers = torch.randint(-99, 99, shape, generator=generator)
                tensors[name], groups[name] = numbers.to(dtype), names
    return KeyMap("random", rules), tensors, groups


def read(pieces: list[Piece], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for piece in pieces:
        new = piece.read(tensors.__getitem__)
        shapes = piece.shapes(lambda name: tuple(tensors[name].shape))
        assert {name: tuple(t.shape) for name, t in new.items()} == shapes
        assert tuple(new) == piece.targets and not found.keys() & new.keys()
        found |= new
    return found


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(tables())
def test_there_and_back_is_bit_equal(made) -> None:
    table, theirs, _ = made
    renamed = table.to_ours(theirs)
    assert not (renamed.unknown or renamed.incomplete or renamed.ignored)
    ours = read(renamed.pieces, theirs)
    assert renamed.by_target().keys() == ours.keys()
    back = table.to_theirs(ours)
    assert not (back.unknown or back.incomplete or back.ignored)
    again = read(back.pieces, ours)
    assert again.keys() == theirs.keys()
    assert all(same(again[name], theirs[name]) for name in theirs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables(), st.data())
def test_a_name_that_lacks_its_group_is_incomplete(made, data) -> None:
    table, theirs, groups = made
    lost = data.draw(st.sampled_from(sorted(theirs)))
    names = theirs.keys() - {lost}
    renamed = table.to_ours(names)
    others = set(groups[lost]) - {lost}
    assert renamed.incomplete == ([lost] if others else [])
    read_names = {name for piece in renamed.pieces for name in piece.sources}
    assert read_names == names - others, "the rest of the group is not read, all else is"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables(), st.data())
def test_ours_that_lack_their_group_are_incomplete(made, data) -> None:
    table, theirs, _ = made
    ours = read(table.to_ours(theirs).pieces, theirs)
    lost = data.draw(st.sampled_from(sorted(ours)))
    piece = next(p for p in table.to_theirs(ours).pieces if lost in p.sources)
    renamed = table.to_theirs(ours.keys() - {lost})
    assert renamed.incomplete == ([lost] if len(piece.sources) > 1 else [])
    assert not {name for p in renamed.pieces for name in p.targets} & set(piece.targets)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables(), st.lists(st.text("abc.{}12", min_size=1), unique=True))
def test_unknown_names_are_named_and_change_nothing_else(made, names) -> None:
    table, theirs, _ = made
    strangers = sorted(f"stranger.{name}" for name in names)
    renamed = table.to_ours([*theirs, *strangers])
    assert renamed.unknown == strangers
    assert renamed.pieces == table.to_ours(theirs).pieces


@pytest.mark.parametrize("name", ["a.b.weight.", "xa.1.weight", "a.1.weightt", "a.b.weight", "a.1"])
def test_a_pattern_covers_the_whole_name(name: str) -> None:
    table = KeyMap("x", [Rule("a.{i}.{p}", "b.{i}.{p}", "r")])
    assert table.to_ours([name]).unknown == [name]


def test_letters_of_a_template_are_no_pattern() -> None:
    table = KeyMap("x", [Rule("a.b+", "c", "r")])
    assert table.to_ours(["axb+", "a.bb"]).unknown == ["a.bb", "axb+"]
    assert table.to_ours(["a.b+"]).by_target().keys() == {"c"}


def test_a_placeholder_that_stands_twice_is_one_value() -> None:
    table = KeyMap("x", [Rule("a.{i}.{i}", "b.{i}", "r")])
    renamed = table.to_ours(["a.1.1", "a.1.2"])
    assert [p.targets for p in renamed.pieces] == [("b.1",)] and renamed.unknown == ["a.1.2"]


@pytest.mark.parametrize("specific_first", [True, False])
def test_the_first_rule_wins(specific_first: bool) -> None:
    special, general = Rule("a.x", "b.special", "r"), Rule("a.{rest}", "b.{rest}", "r")
    rules = [special, general] if specific_first else [general, special]
    found = KeyMap("x", rules).to_ours(["a.x", "a.y"]).by_target()
    assert found.keys() == ({"b.special", "b.y"} if specific_first else {"b.x", "b.y"})


def test_ignored_names_come_with_their_reason_and_never_back() -> None:
    table = KeyMap("x", [Rule("a.{i}", "", "nobody needs it", "ignore"), Rule("b", "c", "r")])
    renamed = table.to_ours(["a.1", "b"])
    assert renamed.ignored == {"a.1": "nobody needs it"}
    assert [piece.targets for piece in renamed.pieces] == [("c",)]
    assert table.to_theirs(["", "c"]).unknown == [""]


def test_two_names_for_one_weight_are_an_error() -> None:
    table = KeyMap("x", [Rule("new.{i}", "ours.{i}", "r"), Rule("old.{i}", "ours.{i}", "r")])
    renamed = table.to_ours(["new.1", "old.1", "old.2"])
    with pytest.raises(ValueError, match=r"new\.1.*old\.1.*ours\.1"):
        renamed.by_target()
    assert table.to_ours(["new.1", "old.2"]).by_target().keys() == {"ours.1", "ours.2"}


def piece(op: str, forward: bool) -> Piece:
    many, one = ("m.0", "m.1", "m.2"), ("o",)
    sources, targets = (one, many) if (op in ("split", "share")) == forward else (many, one)
    theirs, ours = (sources, targets) if forward else (targets, sources)
    return Piece(sources, targets, Rule(theirs, ours, "r", op), forward)


def test_the_order_of_the_parts_is_kept() -> None:
    table = {"o": torch.arange(6.0).reshape(6, 1)}
    parts = piece("split", True).read(table.__getitem__)
    assert [t.flatten().tolist() for t in parts.values()] == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(piece("stack", True).read(parts.__getitem__)["o"], table["o"])


@pytest.mark.parametrize("different", [torch.tensor([1.0, 3.0]), torch.tensor([1.0])])
def test_shared_weights_that_differ(different: Tensor) -> None:
    tensors = {"m.0": torch.tensor([1.0, 2.0]), "m.1": torch.tensor([1.0, 2.0]), "m.2": different}
    with pytest.raises(ValueError, match=r"m\.0, m\.1, m\.2"):
        piece("share", False).read(tensors.__getitem__)


@pytest.mark.parametrize(
    ("made", "shapes", "message"),
    [
        (piece("split", True), {"o": (7, 2)}, "o has 7 rows, not a multiple of 3"),
        (piece("split", True), {"o": ()}, "o is a single number"),
        (piece("stack", False), {"o": (4,)}, "o has 4 rows"),
        (piece("stack", True), {"m.0": (2, 2), "m.1": (1, 2), "m.2": (0, 2)}, "must be equal"),
        (piece("stack", True), {"m.0": (1, 2), "m.1": (1, 2), "m.2": (1, 3)}, "must be equal"),
        (piece("stack", True), {"m.0": (), "m.1": (), "m.2": ()}, "single number"),
        (piece("split", False), {"m.0": (2,), "m.1": (3,), "m.2": (4,)}, "must be equal"),
    ],
)
def test_parts_that_are_not_equal(made: Piece, shapes: dict, message: str) -> None:
    """Told by the shapes alone, before anything is read, and by reading."""
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        made.shapes(shapes.__getitem__)
    with pytest.raises(ValueError, match=message):
        made.read(tensors.__getitem__)

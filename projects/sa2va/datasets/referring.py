"""Vessels by their names: the whole tree, single segments, groups of them, and what is not there.

The categories of a COCO file are the segments. **Absent means not labelled**: a frame is labelled
for the artery that its view is meant for, so a segment may be visible and yet count as absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from ..errors import ConfigError, DataError, listing, suggest
from ..processing.phrases import phrase_key, spellings
from .base import Question
from .coco import CocoVesselDataset
from .records import Findings, Obj, Record

KINDS = ("tree", "segment", "group")
"""Kinds of phrases, in the order in which a frame's phrases are listed."""
QUESTIONS = (*KINDS, "absent", "several")
"""Kinds of questions that training draws."""
MIX = {"tree": 1.0, "segment": 3.0, "group": 1.0, "absent": 2.0, "several": 2.0}


@DATASETS.register_module()
class ReferringVesselDataset(CocoVesselDataset):
    """Frames of a COCO instances file whose categories are asked for by name.

    A phrase is the tree (everything labelled), a segment (a category) or a group (several
    categories). It is there if any of its categories is labelled in the frame, and absent if none
    is; so a group and its segments never contradict each other.

    Training draws questions from (seed, epoch, index) until ``max_phrases_per_sample`` phrases are
    asked, none twice: first the kind of each question by ``mix``, of those that still have a
    phrase, then its phrases, all of a kind being equally likely. A question about several phrases
    takes each from those that are there or from the absent ones with even odds. With
    ``processor.image_only`` every phrase is asked in every step, absent ones with an empty mask.

    Testing asks each phrase by itself; the truth of an absent one is an empty mask.

    Args:
        ann_file, image_dir, category_phrase: see :class:`CocoVesselDataset`.
        phrase: the tree's; None: it is not asked for.
        groups: names of categories (their ``name`` in the file) by phrase.
        exclude: names of categories that are no vessels, or never labelled: neither asked for nor
            part of a tree.
        unlabelled: images without annotation: ``error`` or ``drop``.
        mix: how often training asks which kind of question (:data:`QUESTIONS`), in any unit; kinds
            that are not named are not asked.
        several: fewest and most phrases in a question about several.
        ask: kinds of phrases (:data:`KINDS`) that testing asks for.
        absent: how many absent phrases testing asks in each frame, the same in every run: ``all``
            or a number.
        **common: see :class:`VesselDataset`; without ``phrases``.

    Attributes:
        kinds: kind of each phrase, in order.

    Raises:
        ConfigError: groups, mix or another argument that cannot be; a category that the file does
            not have; one phrase for two things.
        DataError: as :class:`CocoVesselDataset`.
    """

    def __init__(
        self,
        ann_file: str | Path,
        image_dir: str | Path,
        phrase: str | None = "blood vessel",
        groups: Mapping[str, Sequence[str]] | None = None,
        exclude: Sequence[str] = (),
        category_phrase: str = "description",
        unlabelled: str = "error",
        mix: Mapping[str, float] | None = None,
        several: Sequence[int] = (2, 4),
        ask: Sequence[str] = KINDS,
        absent: str | int = "all",
        **common: Any,
    ) -> None:
        self.tree = phrase
        # Sorted: draws must not depend on the order in which a config was written or dumped.
        self.groups = {name: groups[name] for name in sorted(groups or {})}
        self.exclude = list(exclude)
        self.mix = _mix(mix, tree=phrase is not None, groups=bool(groups))
        self.several = _range(several)
        self.ask = _kinds(ask)
        if absent != "all" and not (_is_whole(absent) and absent >= 0):
            raise ConfigError(
                f"absent={absent!r}",
                "'all', or how many absent phrases are asked in each frame",
                "correct `absent` of the data set",
            )
        self.absent = absent
        self.kinds: dict[str, str] = {}
        self._excluded: set[Any] = set()
        self._group_ids: dict[str, set[Any]] = {}
        super().__init__(
            ann_file,
            image_dir,
            mode="category",
            category_phrase=category_phrase,
            unlabelled=unlabelled,
            **common,
        )

    @property
    def metainfo(self) -> dict[str, Any]:
        return {**super().metainfo, "phrase_kinds": dict(self.kinds)}

    def load_records(self) -> list[Record]:
        """Reads the file; see :class:`VesselDataset`."""
        records = super().load_records()
        if self.test_mode:
            for record in records:
                record.objects = self._asked_in_test(record)
        elif not self.processor.image_only:
            mute = [r.name for r in records if not self._kinds_left(self._pools(r), self._most)]
            if mute:
                raise DataError(
                    f"{len(mute)} frames that `mix` has no question for: {listing(mute, 3)}",
                    "something to ask about every training frame",
                    "add 'tree' or 'absent' to `mix` of the data set, or raise "
                    "`max_phrases_per_sample`",
                )
        return records

    @property
    def _most(self) -> int:
        """Phrases of a training conversation."""
        return self.max_phrases_per_sample or len(self.kinds)

    def _pools(self, record: Record) -> dict[str, list[str]]:
        """The phrases of each kind that are there, and those that are absent."""
        there = {obj.phrase for obj in record.objects}
        pools: dict[str, list[str]] = {kind: [] for kind in (*KINDS, "absent")}
        for phrase, kind in self.kinds.items():
            pools[kind if phrase in there else "absent"].append(phrase)
        return pools

    def labelled(self, index: int) -> list[Obj]:
        objects = self.records[index].objects
        segments = [obj for obj in objects if self.kinds[obj.phrase] == "segment"]
        # In testing other kinds may be asked for alone; then they are what there is.
        return [obj for obj in segments or objects if _is_there(obj)]

    def draw_questions(self, record: Record, rng: np.random.Generator) -> list[Question]:
        """See :meth:`VesselDataset.draw_questions` and the class."""
        objects = {obj.phrase: obj for obj in record.objects}
        if self.processor.image_only:
            return [[(phrase, objects.get(phrase, Obj(phrase)))] for phrase in self.kinds]
        pools, most = self._pools(record), self._most
        questions: list[Question] = []
        while most and (kinds := self._kinds_left(pools, most)):
            weights = np.array([self.mix[kind] for kind in kinds])
            kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
            if kind == "several":
                phrases = self._draw_several(pools, most, rng)
            else:
                phrases = [_take(pools[kind], rng)]
            most -= len(phrases)
            questions.append([(phrase, objects.get(phrase)) for phrase in phrases])
        return questions

    def _kinds_left(self, pools: Mapping[str, list[str]], most: int) -> list[str]:
        """Kinds of questions that can still be asked, of at most ``most`` phrases."""
        left = [kind for kind in pools if pools[kind] and self.mix.get(kind)]
        parts = sum(len(pools[kind]) for kind in ("segment", "group", "absent"))
        if self.mix.get("several") and min(most, parts) >= self.several[0]:
            left.append("several")
        return left

    def _draw_several(
        self, pools: Mapping[str, list[str]], most: int, rng: np.random.Generator
    ) -> list[str]:
        """Segments and groups of one question, in random order of what is there and what is not."""
        parts = sum(len(pools[kind]) for kind in ("segment", "group", "absent"))
        low, high = self.several
        count = int(rng.integers(low, min(high, most, parts) + 1))
        phrases = []
        for _ in range(count):
            there = [kind for kind in ("segment", "group") if pools[kind]]
            absent = bool(pools["absent"]) and (not there or rng.random() < 0.5)
            # Each phrase that is there is equally likely, whatever its kind.
            sizes = np.array([len(pools[kind]) for kind in there], float)
            kind = "absent" if absent else there[int(rng.choice(len(there), p=sizes / sizes.sum()))]
            phrases.append(_take(pools[kind], rng))
        return phrases

    def _asked_in_test(self, record: Record) -> list[Obj]:
        objects = {obj.phrase: obj for obj in record.objects}
        wanted = [phrase for phrase, kind in self.kinds.items() if kind in self.ask]
        absent = [phrase for phrase in wanted if phrase not in objects]
        if self.absent != "all":
            # By the file's name, so that a frame is asked the same whatever else is in the split.
            digest = hashlib.sha256(record.name.encode("utf-8", "surrogateescape")).digest()
            rng = np.random.default_rng(list(digest))
            count = min(int(self.absent), len(absent))
            absent = [absent[i] for i in rng.permutation(len(absent))[:count]]
        asked = objects.keys() | set(absent)
        return [objects.get(phrase, Obj(phrase)) for phrase in wanted if phrase in asked]

    def _category_phrases(self, categories: list[dict], findings: Findings) -> dict[Any, str]:
        """The phrase of each category; also names and checks all other phrases."""
        phrases = super()._category_phrases(categories, findings)
        names = {str(category.get("name")): category.get("id") for category in categories}
        for name in self.exclude:
            self._check_category(name, names, "exclude")
        excluded = {names[name] for name in self.exclude}
        segments = {phrase: "segment" for id_, phrase in phrases.items() if id_ not in excluded}
        trees = {} if self.tree is None else {self.tree: "tree"}
        for group, members in self.groups.items():
            if isinstance(members, str) or not members:
                raise ConfigError(
                    f"group {group!r} of {members!r}",
                    "the names of its categories, at least one",
                    f"correct groups[{group!r}] of the data set",
                )
            for name in members:
                self._check_category(name, names, f"group {group!r}")
                if name in self.exclude:
                    raise ConfigError(
                        f"category {name!r} in group {group!r} and in exclude",
                        "categories that are either asked for or left out",
                        "take it out of one of them in the config of the data set",
                    )
        groups = dict.fromkeys(self.groups, "group")
        named: dict[str, tuple[str, str]] = {}
        for own in (*trees.items(), *groups.items(), *segments.items()):
            other = named.setdefault(phrase_key(own[0]), own)
            if other != own:
                raise ConfigError(
                    f"{spellings([other[0], own[0]])}: the phrase of a {other[1]} and of a "
                    f"{own[1]}",
                    "a phrase of its own for each, different by more than case and white space: an "
                    "answer could mean either",
                    "rename it in `groups` (a segment in its file), or set another `phrase` of the "
                    "data set",
                )
        self.kinds = {**trees, **segments, **groups}
        for phrase in self.kinds:
            self._check_phrase(phrase, "the phrases of the data set", ConfigError)
        if self.mix.get("several"):
            self._check_together([phrase for phrase in self.kinds if phrase != self.tree])
        self._excluded = excluded
        self._group_ids = {
            group: {names[name] for name in members} for group, members in self.groups.items()
        }
        return phrases

    def _check_together(self, phrases: Sequence[str]) -> None:
        try:
            self.processor.templates.question_for(phrases)
        except DataError as error:
            raise ConfigError(
                "a phrase that cannot be asked with others in one question: " + error.found,
                error.expected,
                f"{error.fix}; or take 'several' out of `mix` of the data set",
            ) from error

    def _check_category(self, name: str, names: Mapping[str, Any], where: str) -> None:
        if name not in names:
            raise ConfigError(
                f"unknown category {name!r} in {where}{suggest(name, names)}",
                f"a category's name in {self.ann_file.name}: {listing(names, 40)}",
                "correct `groups` or `exclude` of the data set",
            )

    def _objects(self, annotations: list[tuple[Any, Obj]], phrases: dict[Any, str]) -> list[Obj]:
        """All phrases that are there: tree, segments and groups, in the order of ``kinds``."""
        kept = [(category, obj) for category, obj in annotations if category not in self._excluded]
        found = {obj.phrase: obj for obj in super()._objects(kept, phrases)}
        if kept and self.tree is not None:
            found[self.tree] = _united(self.tree, [obj for _, obj in kept])
        for group, members in self._group_ids.items():
            if parts := [obj for category, obj in kept if category in members]:
                found[group] = _united(group, parts)
        return [found[phrase] for phrase in self.kinds if phrase in found]


def _united(phrase: str, parts: Sequence[Obj]) -> Obj:
    return Obj(
        phrase, [p for obj in parts for p in obj.polygons], [r for o in parts for r in o.rle]
    )


def _is_there(obj: Obj) -> bool:
    return bool(obj.polygons or obj.rle)


def _take(pool: list[str], rng: np.random.Generator) -> str:
    """One of the phrases, which is then no longer in the pool."""
    return pool.pop(int(rng.integers(len(pool))))


def _mix(mix: Mapping[str, float] | None, tree: bool, groups: bool) -> dict[str, float]:
    """The weights of the kinds of questions that there are."""
    possible = {"tree": tree, "group": groups}
    if mix is None:
        return {kind: share for kind, share in MIX.items() if possible.get(kind, True)}
    for kind, share in mix.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if kind not in QUESTIONS or not (number and 0 <= share < float("inf")):
            raise ConfigError(
                f"{kind}={share!r} in `mix` of the data set{suggest(kind, QUESTIONS)}",
                f"numbers of 0 or more for {', '.join(QUESTIONS)}",
                "correct `mix` of the data set",
            )
        if share and not possible.get(kind, True):
            need = {"tree": "`phrase`", "group": "`groups`"}[kind]
            raise ConfigError(
                f"{kind}={share!r} in `mix` of a data set without {need}",
                "only kinds of questions that there are phrases for",
                f"set {need} of the data set, or take {kind!r} out of `mix`",
            )
    if not any(mix.values()):
        raise ConfigError(
            f"mix={dict(mix)!r}",
            "at least one kind of question with a share above 0",
            "correct `mix` of the data set",
        )
    return dict(mix)


def _range(several: Sequence[int]) -> tuple[int, int]:
    known = isinstance(several, list | tuple) and len(several) == 2
    if not known or not all(map(_is_whole, several)) or not 2 <= several[0] <= several[1]:
        raise ConfigError(
            f"several={several!r}",
            "fewest and most phrases in a question about several, from 2",
            "set `several` of the data set to (2, 4)",
        )
    return int(several[0]), int(several[1])


def _kinds(ask: Sequence[str]) -> tuple[str, ...]:
    wrong = [ask] if isinstance(ask, str) else [kind for kind in ask if kind not in KINDS]
    if wrong or not ask:
        raise ConfigError(
            f"ask={ask!r}",
            f"a list of {', '.join(KINDS)}",
            "correct `ask` of the data set",
        )
    return tuple(ask)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

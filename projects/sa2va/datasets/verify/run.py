"""Checks all splits of a config and collects every finding; nothing is ever changed."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from ...config import dataset_configs
from ...errors import ConfigError, DataError, listing, suggest
from ..base import VesselDataset
from ..hashes import in_parallel
from ..leakage import NearPair, find_near_pairs, is_allowed
from ..patients import PatientIds
from ..records import Problem, collecting
from .findings import SEVERITIES, Finding, FrameRef
from .frames import TWICE, FrameFacts, read_frame

_FAR = 5.0
"""Robust standard deviations (1.4826 MAD) of the logarithm, from which a frame is far off."""
_FAR_FACTOR = 1.5
"""Factor that it must be off besides: a uniform data set has a tiny deviation."""
_POLARITY_GREY, _POLARITY_SHARE = 5.0, 0.9


@dataclass
class Checked:
    """The result.

    Attributes:
        datasets: what could be opened, by split.
        facts: of each record of them.
        findings: gravest kinds first.
    """

    datasets: dict[str, VesselDataset] = field(default_factory=dict)
    facts: dict[str, list[FrameFacts]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def count(self, severity: str) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def label_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a data set's config with a tokenizer that needs no download: labels need none."""
    plain = copy.deepcopy(dict(config))
    plain["processor"] = {**plain.get("processor", {}), "tokenizer": {"type": "byte_level"}}
    return plain


def verify(
    cfg: Mapping[str, Any],
    splits: Sequence[str] | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Checked:
    """Checks the data sets of a config.

    Args:
        cfg: a loaded config.
        splits: which of its splits; None: all.
        workers: threads that read frames; None takes one a processor, at most 16.
        progress: show bars.

    Raises:
        ConfigError: no data sets, or an unknown split.
    """
    configs = dataset_configs(cfg)
    wrong = [split for split in splits or () if split not in configs]
    if wrong or not configs:
        raise ConfigError(
            f"no split {listing(wrong)}{suggest(wrong[0], configs)}" if wrong else "no data sets",
            f"splits of the config: {listing(configs)}" if configs else "train_dataloader.dataset",
            "correct --split" if wrong else "give a config with data sets",
        )
    checked = Checked()
    for split, config in configs.items():
        if not splits or split in splits:
            _open(split, config, checked)
    for split, dataset in checked.datasets.items():
        checked.facts[split] = in_parallel(
            lambda index, dataset=dataset: read_frame(dataset, index),
            len(dataset),
            f"reading {split}",
            workers,
            progress,
        )
        _frame_findings(split, checked)
    _intensities(checked)
    _duplicates(checked, cfg.get("allow_near_duplicates", ()))
    _patients(checked)
    checked.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return checked


# ------------------------------------------------------------------------------------- opening


def _open(split: str, config: Mapping[str, Any], checked: Checked) -> None:
    """Builds a data set, going on past what its reader finds."""
    config = label_config(config)
    dataset = None
    with collecting() as problems:
        try:
            dataset = DATASETS.build(config).on_disk()
        except DataError as error:
            problems.append(Problem(error.found, error.expected, error.fix, "split"))
    names = _OutputNames(config, dataset)
    for problem in problems:
        frames = () if problem.image is None else (names.frame(split, problem.image),)
        text = f"{split}: {problem.found}"
        checked.findings.append(
            Finding(problem.kind, names.hide(text), frames, problem.regions, text)
        )
    if dataset is not None:
        checked.datasets[split] = dataset


class _OutputNames:
    """Output names of frames, and texts without file names where patients are configured."""

    def __init__(self, config: Mapping[str, Any], dataset: VesselDataset | None) -> None:
        patient = config.get("patient")
        self.ids = PatientIds(patient, config.get("data_root", "")) if patient else None
        self.known: dict[str, int] = {}
        self.frame_ids: list[str] = []
        self.folder = ""
        if dataset is not None:
            self.known = {record.name: i for i, record in enumerate(dataset.records)}
            self.frame_ids = dataset.frame_ids
            self.folder = f"{dataset.image_root}/"

    def frame(self, split: str, image: str) -> FrameRef:
        index = self.known.get(image)
        if index is not None:
            return FrameRef(split, self.frame_ids[index], index)
        return FrameRef(split, self._hidden(image) or Path(image).stem)

    def _hidden(self, name: str) -> str:
        """The pseudonym of a file name; empty where the text is no name of a patient's file."""
        raw = self.ids.find(name) if self.ids else None
        return self.ids.frame_names([name], [raw])[0] if raw else ""

    def hide(self, text: str) -> str:
        text = text.replace(self.folder, "") if self.folder else text
        if self.ids is None:
            return text
        # Paths may hold blanks, so the longest known names go first, then single words.
        for name in sorted(self.known, key=len, reverse=True):
            text = text.replace(name, self.frame_ids[self.known[name]])

        def replaced(word: re.Match[str]) -> str:
            return self._hidden(Path(word[0]).name) or self._hidden(word[0]) or word[0]

        return re.sub(r"[^\s,:;()'\"]+", replaced, text)


# ------------------------------------------------------------------------------------ one frame


def _frame_findings(split: str, checked: Checked) -> None:
    dataset = checked.datasets[split]
    broken = {
        (frame.split, frame.name)
        for finding in checked.findings
        if finding.kind in ("file", "label_size")
        for frame in finding.frames
    }

    def add(kind: str, index: int, text: str, regions: Iterable[np.ndarray] = ()) -> None:
        frame = FrameRef(split, dataset.frame_ids[index], index)
        drawn = tuple(tuple(xy.ravel().tolist()) for xy in regions)
        local = f"{split}/{dataset.records[index].name}: {text}"
        checked.findings.append(
            Finding(kind, f"{split}/{frame.name}: {text}", (frame,), drawn, local)
        )

    for index, facts in enumerate(checked.facts[split]):
        record = dataset.records[index]
        if facts.error is not None:
            # Its path is in the message; the reader may have told it already.
            if (split, dataset.frame_ids[index]) not in broken:
                text = facts.error.found.replace(str(record.image_path), "the image")
                for obj in record.objects:
                    text = text.replace(str(obj.mask_path), "the mask")
                add("file", index, text)
            continue
        if facts.empty and record.objects:
            add("empty_mask", index, f"nothing is labelled for {listing(facts.empty, 3)}")
        for phrase in facts.mostly:
            add("mostly_labelled", index, f"{facts.vessel_fraction:.0%} is {phrase}")
        if facts.no_pixel:
            add(
                "no_pixel", index, f"{len(facts.no_pixel)} polygons without a pixel", facts.no_pixel
            )
        for iou, share, regions in facts.pairs:
            if iou >= TWICE:
                add("drawn_twice", index, f"two regions with IoU {iou:.2f}", regions)
            else:
                add("overlap", index, f"a region lies to {share:.0%} in another", regions)
        if facts.turned:
            add("exif", index, "its EXIF tag turns it")
        if facts.deviation < 1.0:
            add("flat", index, f"grey value {facts.mean:.0f} everywhere")


# ------------------------------------------------------------------------------- all the frames


def _readable(checked: Checked) -> list[tuple[str, int, FrameFacts]]:
    return [
        (split, index, facts)
        for split, rows in checked.facts.items()
        for index, facts in enumerate(rows)
        if facts.error is None
    ]


def _ref(checked: Checked, split: str, index: int) -> FrameRef:
    return FrameRef(split, checked.datasets[split].frame_ids[index], index)


def _intensities(checked: Checked) -> None:
    """Frames whose brightness, contrast or polarity is far from that of all others."""
    rows = [row for row in _readable(checked) if row[2].deviation >= 1.0]
    for what, name in (("mean", "mean grey value"), ("deviation", "spread of grey values")):
        values = np.array([getattr(facts, what) for *_, facts in rows])
        if not len(values):
            continue
        middle = float(np.median(values))
        off = np.abs(np.log(values / middle))
        limit = max(_FAR * 1.4826 * float(np.median(off)), np.log(_FAR_FACTOR))
        for (split, index, _), value, far in zip(rows, values, off > limit, strict=True):
            if far:
                frame = _ref(checked, split, index)
                text = f"{split}/{frame.name}: {name} {value:.0f}, the median is {middle:.0f}"
                checked.findings.append(Finding("intensity", text, (frame,)))
    marked = [row for row in rows if abs(row[2].contrast or 0.0) >= _POLARITY_GREY]
    dark = [row for row in marked if row[2].contrast < 0]
    bright = [row for row in marked if row[2].contrast > 0]
    for few, many, word in ((bright, dark, "brighter"), (dark, bright, "darker")):
        if not few or len(many) < _POLARITY_SHARE * len(marked):
            continue
        for split, index, facts in few:
            frame = _ref(checked, split, index)
            text = (
                f"{split}/{frame.name}: the labelled region is {abs(facts.contrast):.0f} grey "
                f"levels {word} than its surroundings, unlike in {len(many)} other frames"
            )
            checked.findings.append(Finding("polarity", text, (frame,)))


def _duplicates(checked: Checked, allow: bool | Sequence[str]) -> None:
    by_hash: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, index, facts in _readable(checked):
        # Language-only samples may ask several questions about one image.
        if checked.datasets[split].records[index].objects:
            by_hash[facts.pixels].append((split, index))
    for where in by_hash.values():
        for a, b in combinations(where, 2):
            _add_pair(checked, "same_within" if a[0] == b[0] else "same_across", a, b)
    # The readable frames alone: `numbers` leads back to their records.
    numbers = {
        split: [n for n, frame in enumerate(facts) if frame.error is None]
        for split, facts in checked.facts.items()
    }
    pixels, perceptual = (
        {s: [getattr(checked.facts[s][n], name) for n in rows] for s, rows in numbers.items()}
        for name in ("pixels", "perceptual")
    )

    def small(split: str, row: int) -> np.ndarray:
        return checked.facts[split][numbers[split][row]].small.astype(np.float32)

    def original(side: tuple[str, int]) -> tuple[str, int]:
        return side[0], numbers[side[0]][side[1]]

    for pair in find_near_pairs(pixels, perceptual, small):
        a, b = original(pair.left), original(pair.right)
        names = [f"{s}/{checked.datasets[s].frame_ids[i]}" for s, i in (a, b)]
        kind = "near_allowed" if is_allowed(names, allow) else "near_across"
        _add_pair(checked, kind, a, b, f" (correlation {pair.similarity:.3f})")
    for group in _groups(find_near_pairs(pixels, perceptual, small, within=True)):
        frames = tuple(_ref(checked, *original(side)) for side in group)
        text = f"{frames[0].split}: {len(frames)} frames alike: {listing(f.name for f in frames)}"
        checked.findings.append(Finding("near_within", text, frames))


def _groups(pairs: Iterable[NearPair]) -> list[list[tuple[str, int]]]:
    """Frames that are connected by pairs, in order."""
    group: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for pair in pairs:
        left, right = group.get(pair.left, [pair.left]), group.get(pair.right, [pair.right])
        if left is not right:
            left = left + right
            for side in left:
                group[side] = left
    unique = {id(members): sorted(members) for members in group.values()}
    return sorted(unique.values())


def _add_pair(
    checked: Checked, kind: str, a: tuple[str, int], b: tuple[str, int], note: str = ""
) -> None:
    frames = _ref(checked, *a), _ref(checked, *b)
    sign = "=" if kind.startswith("same") else "~"
    names = f" {sign} ".join(f"{frame.split}/{frame.name}" for frame in frames)
    local = f" {sign} ".join(f"{s}/{checked.datasets[s].records[i].name}" for s, i in (a, b))
    checked.findings.append(Finding(kind, names + note, frames, (), local + note))


def _patients(checked: Checked) -> None:
    where: dict[str, dict[str, int]] = defaultdict(dict)
    for split, dataset in checked.datasets.items():
        if any(record.patient_raw is None for record in dataset.records):
            text = f"{split}: whether it shares patients with other splits cannot be checked"
            checked.findings.append(Finding("no_patients", text))
        for index, record in enumerate(dataset.records):
            if record.patient_raw is not None:
                where[record.patient_raw].setdefault(split, index)
    for found in where.values():
        for a, b in combinations(found, 2):
            frames = _ref(checked, a, found[a]), _ref(checked, b, found[b])
            alias = checked.datasets[a].patients[found[a]]
            checked.findings.append(Finding("patient_across", f"{alias} in {a} and {b}", frames))

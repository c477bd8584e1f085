"""The scalars of a training run, joined over the times that it was resumed.

A work dir has a folder for each start, ``<timestamp>/vis_data/scalars.json``: one JSON a line,
training lines with ``iter`` and ``loss``, validation lines with ``step`` and metrics alone. A start
that goes on from iteration n replaces what earlier ones logged after n; one that begins anew
replaces all of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

SCALARS = "scalars.json"
_PATTERN = f"*/vis_data/{SCALARS}"
_NO_METRICS = frozenset(("step", "iter", "time", "data_time"))


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
        name: its timestamp.
        first, last: iterations that it logged.
        replaced: lines of earlier starts that it takes the place of.
        cut: whether its last line was only half written.
    """

    name: str
    first: int
    last: int
    replaced: int
    cut: bool


@dataclass(frozen=True)
class TrainingLog:
    """What one work dir logged.

    Attributes:
        name: the work dir's own name.
        train: lines of training, by iteration.
        val: lines of validation, by iteration.
        starts: in the order of time.
    """

    name: str
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    starts: list[Start]

    def curve(self, key: str, validation: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Iterations and values of ``key``, float64 [N] each; null is ``nan``."""
        lines = [line for line in (self.val if validation else self.train) if key in line]
        values = [math.nan if line[key] is None else float(line[key]) for line in lines]
        return np.array([line["step"] for line in lines], float), np.array(values, float)

    def names(self, validation: bool = False) -> list[str]:
        """Names of what was logged, in the order of their first appearance."""
        lines = self.val if validation else self.train
        names = dict.fromkeys(name for line in lines for name in line)
        return [name for name in names if name not in (_NO_METRICS if validation else ("step",))]

    @property
    def losses(self) -> list[str]:
        """``loss`` first, then its parts."""
        parts = [name for name in self.names() if name.startswith("loss") and name != "loss"]
        return ["loss", *parts]


def read_log(work_dir: str | Path) -> TrainingLog:
    """Reads a work dir, one of its timestamp folders, or a scalars.json.

    Raises:
        DataError: no training was logged there, or a line is no JSON.
    """
    given = Path(work_dir)
    files = _files(given)
    train: dict[int, dict[str, Any]] = {}
    val: dict[int, dict[str, Any]] = {}
    starts = []
    for path in files:
        lines, cut = _read(path)
        if not lines:
            continue
        first, last = lines[0]["step"], lines[-1]["step"]
        # A start that goes on may validate the iteration it was saved at, then train on from it.
        trained = min((line["step"] for line in lines if "loss" in line), default=math.inf)
        validated = min((line["step"] for line in lines if "loss" not in line), default=math.inf)
        replaced = 0
        for kept, begin in ((train, trained), (val, min(trained, validated))):
            for step in [step for step in kept if step >= begin]:
                del kept[step]
                replaced += 1
        for line in lines:
            (train if "loss" in line else val)[line["step"]] = line
        starts.append(Start(path.parents[1].name, first, last, replaced, cut))
    if not train:
        raise DataError(
            found=f"no training was logged in {given}",
            expected="a work dir of tools/train.py, whose <timestamp>/vis_data/scalars.json has "
            "lines with a loss",
            fix="give the folder that was --work-dir; a run shorter than "
            "default_hooks.logger.interval iterations logs nothing",
        )
    by_step = [[lines[step] for step in sorted(lines)] for lines in (train, val)]
    return TrainingLog(given.resolve().name, *by_step, starts)


def _files(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    own = given / "vis_data" / SCALARS
    found = [own] if own.is_file() else sorted(given.glob(_PATTERN))
    if not found:
        raise DataError(
            found=f"{given} holds no {_PATTERN}",
            expected="a work dir of tools/train.py",
            fix="give the folder that was --work-dir",
        )
    return found


def _read(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines of a file, and whether its last one was cut off."""
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            known = isinstance(line, Mapping) and isinstance(line.get("step"), int)
        except ValueError:
            if number == len(texts):  # the run was killed while it wrote
                return lines, True
            known = False
        if not known:
            raise DataError(
                found=f"{path}, line {number}: {text[:80]!r}",
                expected="a JSON object with a whole number as step, as training writes it",
                fix="remove that line",
            )
        lines.append(line)
    return lines, False

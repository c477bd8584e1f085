"""What a sweep runs: a Python file in the style of the configs.

    config = "../../projects/sa2va/configs/sa2va_demo.py"      # relative to this file
    rows = {
        "lora_r8": {},
        "lora_r4": {"options": {"model.mllm.lora.r": 4, "model.mllm.lora.lora_alpha": 8}},
        "slow_decoder": {"config": "my_slow_decoder.py"},
    }
    seeds = [0, 1, 2]
    tune = {"split": "val", "metric": "dice"}
    metrics = ["dice", "cldice"]
    baseline = "lora_r8"

``grid = {"model.mllm.lora.r": [4, 8], ...}`` in place of ``rows`` makes a row of each combination.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import load_config
from ..datasets.referring import KINDS
from ..engine.tuning import POSTPROCESS
from ..errors import ConfigError, listing, suggest
from ..evaluation.compare_phrases import PHRASE_MEANS
from ..evaluation.metrics import METRIC_NAMES
from ..evaluation.phrases import UNKNOWN_KIND
from ..evaluation.threshold_choice import AVERAGES
from ..evaluation.threshold_sweep import SWEEP_METRICS

KEYS = (
    *("config", "rows", "grid", "seeds", "tune", "test_split", "checkpoint", "metrics"),
    *("baseline", "bootstrap"),
)
PHRASE_METRICS = tuple(kind + mean for kind in (*KINDS, UNKNOWN_KIND) for mean in PHRASE_MEANS)
CHECKPOINTS = ("best", "last")
_ROW_KEYS = ("config", "options")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,79}")
_HOW = "docs/sweeps.md lists the keys of a sweep"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: also that of its folder.
        config: config file.
        options: overrides, from a key with dots to its value.
    """

    name: str
    config: Path
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Tuning:
    """Arguments of tools/tune_threshold.py; the threshold is chosen on ``split``."""

    split: str = "val"
    metric: str = "dice"
    average: str = "frames"
    postprocess: str = "none"


@dataclass(frozen=True)
class Spec:
    """A sweep.

    Attributes:
        name: of the file.
        rows: in the order of the table.
        seeds: of the training runs of each row.
        tune: how the threshold is chosen; None: it is the config's.
        test_split: ``test`` or ``val``: what the table is about.
        checkpoint: ``best`` or ``last`` of the training run is tested.
        metrics: of the table.
        baseline: row that the others are compared with, or None.
        bootstrap: resamples of the intervals.
    """

    name: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0,)
    tune: Tuning | None = None
    test_split: str = "test"
    checkpoint: str = "best"
    metrics: tuple[str, ...] = ("dice",)
    baseline: str | None = None
    bootstrap: int = 2000

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            ConfigError: there is none.
        """
        named = {row.name: row for row in self.rows}
        if name not in named:
            raise ConfigError(
                found=f"no row {name!r} in {self.name}{suggest(name, named)}",
                expected=f"one of {listing(named, 40)}",
                fix="correct --only",
            )
        return named[name]


def read_spec(path: str | Path) -> Spec:
    """Reads a sweep file; the configs that it names are not read yet.

    Raises:
        ConfigError: it cannot be read, a key is unknown, or a value is not of its kind.
    """
    path = Path(path)
    content = load_config(path, check=False).to_dict()
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise ConfigError(
            found=f"{path}: unknown key {unknown[0]!r}{suggest(unknown[0], KEYS)}",
            expected=f"a key of a sweep: {', '.join(KEYS)}",
            fix=f"correct it; {_HOW}",
        )
    return _Reader(path, content).spec()


@dataclass
class _Reader:
    path: Path
    content: dict[str, Any]
    taken: dict[str, Row] = field(default_factory=dict)

    def spec(self) -> Spec:
        self._rows()
        metrics = self._names("metrics", ["dice"], (*METRIC_NAMES, *PHRASE_METRICS))
        baseline = self.content.get("baseline")
        if baseline is not None and baseline not in self.taken:
            self._fail(
                "baseline", baseline, f"None, or one of {listing(self.taken, 40)}",
                suggest(str(baseline), self.taken),
            )  # fmt: skip
        bootstrap = self._whole("bootstrap", self.content.get("bootstrap", 2000), 100)
        tune = self._tuning(self.content.get("tune"))
        test_split = self._one_of("test_split", self.content.get("test_split", "test"))
        if tune is not None and tune.split == test_split:
            self._fail(
                "test_split", test_split, "frames on which no threshold was chosen",
                fix="test_split='test', or tune=None",
            )  # fmt: skip
        checkpoint = self._one_of("checkpoint", self.content.get("checkpoint", "best"), CHECKPOINTS)
        return Spec(
            name=self.path.stem,
            rows=tuple(self.taken.values()),
            seeds=self._seeds(self.content.get("seeds", [0])),
            tune=tune,
            test_split=test_split,
            checkpoint=checkpoint,
            metrics=metrics,
            baseline=baseline,
            bootstrap=bootstrap,
        )

    # ------------------------------------------------------------------------------------ rows

    def _rows(self) -> None:
        rows, grid = self.content.get("rows"), self.content.get("grid")
        if (rows is None) == (grid is None):
            found = "neither rows nor grid" if rows is None else "rows and grid"
            raise ConfigError(
                found=f"{self.path}: {found}",
                expected="rows={'name': {'options': {...}}}, or grid={'key': [values]}",
                fix=f"give one of the two; {_HOW}",
            )
        if grid is not None:
            self._grid(grid)
            return
        if not isinstance(rows, Mapping) or not rows:
            self._fail("rows", rows, "a dict from a name to dict(config=..., options=...)")
        for name, row in rows.items():
            if not isinstance(row, Mapping):
                self._fail(f"rows[{name!r}]", row, "dict(config=..., options={'key': value})")
            for key in row:
                if key not in _ROW_KEYS:
                    raise ConfigError(
                        found=f"{self.path}: rows[{name!r}] has the key {key!r}"
                        f"{suggest(key, _ROW_KEYS)}",
                        expected="config, options",
                        fix=f"overrides stand in options: {{'options': {{{key!r}: ...}}}}",
                    )
            options = row.get("options", {})
            if not isinstance(options, Mapping):
                self._fail(f"rows[{name!r}]['options']", options, "a dict from keys to values")
            self._add(str(name), row.get("config", self.content.get("config")), options)

    def _grid(self, grid: Any) -> None:
        if not isinstance(grid, Mapping) or not grid:
            self._fail("grid", grid, "a dict from a key with dots to a list of values")
        for key, values in grid.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                self._fail(f"grid[{key!r}]", values, "a list of one value or more")
        short = _short_names(list(grid))
        for values in itertools.product(*grid.values()):
            options = dict(zip(grid, values, strict=True))
            name = ",".join(f"{short[key]}={_plain(value)}" for key, value in options.items())
            self._add(name, self.content.get("config"), options)

    def _add(self, name: str, config: Any, options: Mapping[str, Any]) -> None:
        if not _NAME.fullmatch(name):
            self._fail(
                "the name of a row", name,
                "letters, digits and . _ = , + - (at most 80, a letter or digit first): it "
                "names a folder",
                fix="rename it; a grid of long values is written as rows",
            )  # fmt: skip
        if name.lower() in {taken.lower() for taken in self.taken}:
            self._fail("the name of a row", name, "names that differ, not in case alone")
        if not isinstance(config, str):
            self._fail("config", config, f"the path of a config file for the row {name!r}")
        if "randomness.seed" in options:
            self._fail(
                f"options of {name!r}", "randomness.seed", "no seed among the options",
                fix="list it in seeds",
            )  # fmt: skip
        self.taken[name] = Row(name, self.path.parent / config, dict(options))

    # ---------------------------------------------------------------------------------- values

    def _seeds(self, seeds: Any) -> tuple[int, ...]:
        if not isinstance(seeds, (list, tuple)) or not seeds:
            self._fail("seeds", seeds, "a list of one whole number or more, such as [0, 1, 2]")
        for seed in seeds:
            self._whole("seeds", seed, 0)
        if len(set(seeds)) < len(seeds):
            self._fail("seeds", seeds, "seeds that differ: equal ones give equal runs")
        return tuple(seeds)

    def _tuning(self, tune: Any) -> Tuning | None:
        if tune is None:
            return None
        choices = {
            "split": ("val",),
            "metric": SWEEP_METRICS,
            "average": AVERAGES,
            "postprocess": POSTPROCESS,
        }
        if not isinstance(tune, Mapping):
            self._fail("tune", tune, f"None, or a dict of {', '.join(choices)}")
        for key, value in tune.items():
            if key not in choices:
                self._fail("tune", key, f"one of {', '.join(choices)}", suggest(key, choices))
            self._one_of(f"tune[{key!r}]", value, choices[key])
        return Tuning(**tune)

    def _names(self, key: str, default: list[str], known: Sequence[str]) -> tuple[str, ...]:
        values = self.content.get(key, default)
        if not isinstance(values, (list, tuple)) or not values or len(set(values)) < len(values):
            self._fail(key, values, f"a list of different names out of {', '.join(known)}")
        return tuple(self._one_of(key, value, known) for value in values)

    def _one_of(self, key: str, value: Any, known: Sequence[str] = ("test", "val")) -> str:
        if value not in known:
            self._fail(key, value, f"one of {', '.join(known)}", suggest(str(value), known))
        return value

    def _whole(self, key: str, value: Any, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self._fail(key, value, f"a whole number, {least} or more")
        return value

    def _fail(
        self, key: str, value: Any, expected: str, hint: str = "", fix: str = ""
    ) -> None:  # fmt: skip
        raise ConfigError(
            found=f"{self.path}: {key} is {value!r}{hint}",
            expected=expected,
            fix=fix or f"correct it; {_HOW}",
        )


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ends of the keys, at dots, that tell them apart."""
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [f".{other}" for other in keys if other != key]
        found[key] = next(
            (end for end in ends if not any(o.endswith(f".{end}") for o in others)), key
        )
    return found


def _plain(value: Any) -> str:
    """A value as part of a row's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-") or "none"

"""The steps of one run (a row with a seed): their commands, and what they leave behind.

    <work dir>/<row>/config.py          the row's config with its overrides, as it was at the start
    <work dir>/<row>/sweep.json         what else decides its results
    <work dir>/<row>/seed_<n>/train/    work dir of tools/train.py
    <work dir>/<row>/seed_<n>/val/      results that the threshold is chosen from
    <work dir>/<row>/seed_<n>/test/     results of the table
    <work dir>/<row>/seed_<n>/*.log     what each step printed
    <work dir>/<row>/seed_<n>/steps.json    finished steps: seconds, files and their sizes

The config is frozen, so that a file edited while a sweep runs changes none of its runs.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from ..analysis import read_log
from ..config import dump_config, load_config
from ..errors import ConfigError, DataError, listing
from ..evaluation.chosen_threshold import threshold_file_of
from ..evaluation.writer import strict
from ..files import make_writable, write_atomic
from .spec import PHRASE_METRICS, Spec
from .validate import differences

TOOLS = Path(__file__).resolve().parents[3] / "tools"
_RECORD, _SETTINGS, _CONFIG = "steps.json", "sweep.json", "config.py"
_TRAINED = re.compile(r"^.*\ball +[\d,]+ +([\d,]+) ", re.MULTILINE)  # the table of parameters


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        row: its name.
        seed: of the training.
        folder: of all its files.
        spec: the sweep.
        last: iterations of the training.
        best: start of the name of the best checkpoint.
        gpus: processes of the training, one a card.
        tools: folder of the command lines.
    """

    row: str
    seed: int
    folder: Path
    spec: Spec
    last: int
    best: str
    gpus: int = 1
    tools: Path = TOOLS

    @classmethod
    def of(
        cls, spec: Spec, row: str, seed: int, cfg: Config, work_dir: Path, gpus: int = 1,
        tools: Path = TOOLS,
    ) -> Job:  # fmt: skip
        """The run of ``row`` with ``seed`` below ``work_dir``."""
        best = str(cfg.default_hooks.checkpoint.get("save_best")).replace("/", "_")
        folder = work_dir / row / f"seed_{seed}"
        last = cfg.train_cfg.max_iters
        return cls(row, seed, folder, spec, last, f"best_{best}_iter_", gpus, tools)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row}, seed {self.seed}"

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of its steps, in order."""
        tune = () if self.spec.tune is None else ("val", "tune")
        return ("train", *tune, "test")

    def log(self, step: str) -> Path:
        """What the step printed."""
        return self.folder / f"{step}.log"

    def checkpoint(self) -> Path | None:
        """The checkpoint that is tested; None while it is not there."""
        folder = self.folder / "train"
        if self.spec.checkpoint == "last":
            path = folder / f"iter_{self.last}.pth"
            return path if path.exists() else None
        # The newest: a run that was killed may not have come to delete the one before.
        found = folder.glob(f"{self.best}*.pth")
        return max(found, key=lambda path: int(path.stem.removeprefix(self.best)), default=None)

    def command(self, step: str) -> list[str]:
        """The command of a step; before training, the best checkpoint's number is a ``*``."""
        config, seed = str(self.folder.parent / _CONFIG), str(self.seed)
        pattern = f"iter_{self.last}.pth" if self.spec.checkpoint == "last" else f"{self.best}*.pth"
        checkpoint = self.checkpoint() or self.folder / "train" / pattern
        if step == "train":
            train = ["--work-dir", str(self.folder / "train"), "--seed", seed, "--resume", "auto"]
            return [*self._start("train", config), *train]
        if step == "tune":
            tune = self.spec.tune
            return [
                *self._python("tune_threshold"), str(self.folder / "val"), "--split", tune.split,
                "--metric", tune.metric, "--average", tune.average,
                "--postprocess", tune.postprocess, "--force",
            ]  # fmt: skip
        # Choosing a threshold reads maps alone; means over phrases follow from Dice.
        own = [metric for metric in self.spec.metrics if metric not in PHRASE_METRICS]
        metrics = ["fast"] if step == "val" or not own else own
        split = self.spec.tune.split if step == "val" else self.spec.test_split
        threshold = "config"
        if step == "test" and self.spec.tune is not None:
            threshold = str(threshold_file_of(checkpoint))
        out = str(self.folder / step)
        return [
            *self._start("test", config), "--checkpoint", str(checkpoint), "--split", split,
            "--threshold", threshold, "--work-dir", out, "--out", out, "--metrics", *metrics,
        ]  # fmt: skip

    def _python(self, tool: str) -> list[str]:
        return [sys.executable, str(self.tools / f"{tool}.py")]

    def _start(self, tool: str, config: str) -> list[str]:
        if self.gpus == 1:
            return [*self._python(tool), config]
        return ["bash", str(self.tools / "dist.sh"), tool, config, str(self.gpus)]

    # -------------------------------------------------------------------------------- records

    def _stored(self) -> dict[str, dict[str, Any]]:
        path = self.folder / _RECORD
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def ended(self) -> dict[str, dict[str, Any]] | None:
        """All steps, where the results of the test are whole; checkpoints may be gone by then."""
        stored = self._stored()
        is_whole = "test" in stored and self._is_whole(stored["test"]["files"])
        return stored if is_whole else None

    def record(self) -> dict[str, dict[str, Any]]:
        """The finished steps, as long as all before them are finished and their files whole."""
        stored = self._stored()
        found = {}
        for step in self.steps:
            if step not in stored or not self._is_whole(stored[step]["files"]):
                break
            found[step] = stored[step]
        return found

    def finish(self, step: str, seconds: float) -> None:
        """Records a step whose command ended well, and drops the records of those after it.

        Raises:
            DataError: what it should have written is not there.
        """
        files = self._files(step)
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise DataError(
                found=f"{self.name}: {step} ended well and left no "
                f"{listing(missing) or 'checkpoint'}",
                expected="the files of the step",
                fix=f"read {self.log(step)}",
            )
        sizes = {str(file.relative_to(self.folder)): file.stat().st_size for file in files}
        done = {"seconds": seconds, "files": sizes}
        if step == "train":
            done |= training_facts(self.folder / "train", self.log("train"))
        before = self.record()
        kept = {name: before[name] for name in self.steps[: self.steps.index(step)]}
        write_json(self.folder / _RECORD, {**kept, step: done})

    def _files(self, step: str) -> list[Path]:
        checkpoint = self.checkpoint()
        if checkpoint is None:
            return []
        if step == "train":
            return [checkpoint]
        if step == "tune":
            return [threshold_file_of(checkpoint)]
        return [self.folder / step / "metrics.json"]

    def _is_whole(self, files: Mapping[str, int]) -> bool:
        paths = {self.folder / name: size for name, size in files.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def training_facts(work_dir: Path, log: Path) -> dict[str, float | int | str | None]:
    """What a training run logged of its cost; None where it did not.

    Args:
        work_dir: of the training.
        log: what it printed.

    Returns:
        ``training_seconds`` (iterations alone, without validation and start, over all times that it
        was resumed), ``peak_gib`` (what torch held of the card, the highest of all processes) and
        ``trained_parameters``; ``not_logged`` says why there are no curves.
    """
    counts = _TRAINED.findall(log.read_text(encoding="utf-8", errors="replace"))
    facts: dict[str, float | int | str | None] = {
        "training_seconds": None,
        "peak_gib": None,
        "trained_parameters": int(counts[-1].replace(",", "")) if counts else None,
    }
    try:
        curves = read_log(work_dir)
    except DataError as error:
        # A run shorter than default_hooks.logger.interval is a run all the same.
        return {**facts, "not_logged": error.found}
    steps, times = curves.curve("time")
    if len(times):
        facts["training_seconds"] = float((np.diff(steps, prepend=0.0) * times).sum())
    _, held = curves.curve("memory/reserved")
    if len(held):
        facts["peak_gib"] = float(np.nanmax(held))
    return facts


def check_begun(spec: Spec, name: str, cfg: Config, work_dir: Path, gpus: int) -> bool:
    """Whether a row was begun below ``work_dir``.

    Raises:
        ConfigError: it was begun with another spec.
    """
    folder = work_dir / name
    if not (folder / _SETTINGS).is_file():
        return False
    before = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    now = _settings(spec, gpus)
    changed = differences(load_config(folder / _CONFIG), cfg) + [
        f"{key} = {now[key]!r} (was {before.get(key)!r})"
        for key in now
        if before.get(key) != now[key]
    ]
    if changed:
        raise ConfigError(
            found=f"row {name!r} was begun in {work_dir} with another spec: {listing(changed, 5)}",
            expected="one spec for all runs of a row: else its seeds are not of one experiment",
            fix="take the change back, give the row another name, choose another --work-dir, or "
            f"remove {folder}",
        )
    return True


def freeze(spec: Spec, name: str, cfg: Config, work_dir: Path, gpus: int) -> None:
    """Writes what decides the results of a row, or compares it with what is there.

    Raises:
        ConfigError: the row was begun with another spec.
        SetupError: the folder cannot be written to.
    """
    folder = make_writable(work_dir / name, "--work-dir")
    if not check_begun(spec, name, cfg, work_dir, gpus):
        dump_config(cfg, folder / _CONFIG)
        # Written last, so that it stands for both.
        write_json(folder / _SETTINGS, _settings(spec, gpus))


def _settings(spec: Spec, gpus: int) -> dict[str, Any]:
    """What decides the results of a row besides its config and seeds."""
    return {
        "gpus_per_run": gpus,
        "tune": None if spec.tune is None else asdict(spec.tune),
        "test_split": spec.test_split,
        "checkpoint": spec.checkpoint,
        "metrics": list(spec.metrics),
    }


def write_json(path: Path, content: Any) -> None:
    """Strict JSON, whole or not at all."""
    text = json.dumps(strict(content), indent=1, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))

"""Chooses the threshold of a checkpoint from the stored maps of a run on validation frames.

No model is run. The sweep goes over 0.01 to 0.99. Where that takes labellings or skeletons, it goes
over every 0.05 first, then over every 0.01 around the best. Post-processing is tuned jointly:
``components`` over :data:`MIN_AREAS` and the thresholds, ``hysteresis`` over all pairs of a lower
and an upper threshold; the threshold alone is always among the candidates.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from projects.sa2va.checkpoints import DATA_SPLITS_FILE, RAW, read_checkpoint, sha256_of
from projects.sa2va.datasets.leakage import training_record
from projects.sa2va.errors import CheckpointError, ConfigError, DataError
from projects.sa2va.evaluation.chosen_threshold import (
    ChosenThreshold,
    threshold_file_of,
    write_threshold,
)
from projects.sa2va.evaluation.diagrams import curve_diagram
from projects.sa2va.evaluation.run_folder import StoredRun, read_report
from projects.sa2va.evaluation.scoring import ScoringPool
from projects.sa2va.evaluation.threshold_choice import Curve, Target, curve
from projects.sa2va.evaluation.threshold_sweep import Candidate, SweepJob, SweepWork, grid
from projects.sa2va.evaluation.writer import strict
from projects.sa2va.figures import png_figure
from projects.sa2va.files import write_atomic

POSTPROCESS = ("none", "components", "hysteresis")
MIN_AREAS = (0, 10, 20, 50, 100, 200, 500)
"""Smallest pieces that are tried, in px."""
CURVE_FILES = ("threshold_curve.csv", "threshold_curve.json", "threshold_curve.png")
VALIDATION_RUN = "tools/test.py CONFIG --checkpoint FILE --split val --out RUN"
_COARSE = grid([0.01, *np.arange(0.05, 0.96, 0.05), 0.99])
_FINE = np.arange(-0.04, 0.041, 0.01)
_WORTH_A_POOL = 100  # rows; the processes import for seconds
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Tuned:
    """What was found, and the file that holds it."""

    curve: Curve
    chosen: ChosenThreshold


def tune(
    folder: str | Path,
    target: Target,
    *,
    postprocess: str = "none",
    min_areas: Sequence[int] = MIN_AREAS,
    split: str = "val",
    config: str | Path | None = None,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    resamples: int = 2000,
    workers: int | None = None,
    progress: bool = True,
) -> Tuned:
    """Sweeps the thresholds of a stored run and writes the choice.

    Args:
        folder: results folder of ``tools/test.py --split val``, with its maps.
        target: what is maximised.
        postprocess: 'none', 'components' or 'hysteresis', tuned together with the threshold.
        min_areas: smallest pieces that are tried, in px; of 'components'.
        split: the split that the run must be of; never 'test'.
        config: in place of ``config.py`` in the folder.
        checkpoint: where it lies now, if not where it was tested.
        out: the threshold file; beside the checkpoint by default.
        force: replace a threshold file that is there.
        resamples: of the band; 0 for none.
        workers: processes; 0 for none, None decides.
        progress: show a bar.

    Raises:
        ConfigError: an argument is wrong, or the file is there already.
        DataError: the run is of a test split, is not valid, or is not whole.
        CheckpointError: the checkpoint is not the one of the run.
    """
    if postprocess not in POSTPROCESS:
        raise ConfigError(
            found=f"postprocess {postprocess!r}",
            expected="one of " + ", ".join(POSTPROCESS),
            fix=f"--postprocess {POSTPROCESS[1]}",
        )
    report = read_report(folder)
    check_split(report, folder, split)
    weights = find_checkpoint(report, folder, checkpoint)
    path = _choose_path(weights, out, force)
    check_held_out(report, folder, weights)
    run = StoredRun.open(folder, config)
    search = _Search(run, target, postprocess, tuple(min_areas), workers, progress, resamples)
    found = search.run_all()
    _write_curve(Path(folder), found, target, report)
    about = {
        "split": report["split"],
        "split_name": report["split_name"],
        "checkpoint": weights
        and {
            "file": weights.name,
            "sha256": report["checkpoint"]["sha256"],
            "weights": report["checkpoint"].get("weights", RAW),
        },
        "model": run.model,
        "run": Path(folder).resolve().name,
        "answer_mode": report.get("answer_mode"),
        "presence_threshold": report.get("presence_threshold"),
        "probabilities": _map_format(run),
        "frames": training_record(run.dataset),
    }
    return Tuned(found, write_threshold(path, found, target, about=about))


# ------------------------------------------------------------------------------------- refusals


def check_split(
    report: Mapping[str, Any], folder: str | Path, split: str, command: str = VALIDATION_RUN
) -> None:
    """Refuses to choose a threshold on any split but ``split``, on a test split, or if not valid.

    Args:
        report: metrics.json.
        folder: where it lies.
        split: the name that the split must have; never 'test'.
        command: what makes such a run, for the message.

    Raises:
        DataError: the run is of another split, or is not valid.
    """
    name = report.get("split_name")
    if split == "test" or name != split:
        raise DataError(
            found="a threshold would be tuned on a test split"
            if "test" in (split, name)
            else f"{folder} is of the split {name!r}",
            expected=f"a run on the split {'val' if split == 'test' else split!r}: a threshold "
            "that is chosen on the frames it is tested on makes the result too good",
            fix=f"{command}, then tune on RUN",
        )
    if not report["valid"]:
        raise DataError(
            found=f"{folder} is marked valid=false: {'; '.join(report['invalid_because'])}",
            expected="results that can be used",
            fix="see docs/errors.md, 'All metrics are 1.0'",
        )


def find_checkpoint(
    report: Mapping[str, Any], folder: str | Path, given: str | Path | None
) -> Path | None:
    """The checkpoint of the run, unchanged; None where the run had none.

    Args:
        report: metrics.json.
        folder: where it lies.
        given: where the checkpoint lies now, if not where it was tested.

    Raises:
        CheckpointError: it is not there, or is not the one that was tested.
    """
    tested = report.get("checkpoint")
    if tested is None:
        if given is not None:
            raise CheckpointError(
                found=f"--checkpoint {given}, and {folder} was tested without one",
                expected="the checkpoint of the run",
                fix="leave --checkpoint out",
            )
        return None
    path = Path(given if given is not None else tested["source"])
    if not path.exists() or sha256_of(path) != tested["sha256"]:
        raise CheckpointError(
            found=f"{path} " + ("has changed since the test" if path.exists() else "is not there"),
            expected=f"the checkpoint of {folder}, sha256 {tested['sha256'][:16]}",
            fix="--checkpoint FILE where it moved, or tools/test.py again",
        )
    return path


def _choose_path(weights: Path | None, out: str | Path | None, force: bool) -> Path:
    if weights is None and out is None:
        raise ConfigError(
            found="a run without a checkpoint beside which the threshold could be written",
            expected="--out FILE.json, to be given to tools/test.py --threshold",
            fix="--out FILE.json",
        )
    path = Path(out) if out is not None else threshold_file_of(weights)
    if path.suffix != ".json" or not path.parent.is_dir() or (path.exists() and not force):
        raise ConfigError(
            found=f"{path} exists" if path.exists() else f"--out {path}",
            expected="a new .json file in a folder that is there",
            fix="--force to replace it, or --out FILE.json",
        )
    return path


def check_held_out(report: Mapping[str, Any], folder: str | Path, weights: Path | None) -> None:
    """Refuses frames that are the training or the test split under another name.

    Args:
        report: metrics.json.
        folder: where it lies.
        weights: the checkpoint, which knows the splits of its training; None: the run's config
            alone is asked.

    Raises:
        DataError: they are.
    """
    known = [("test", report.get("test_split"), "the config of the run")]
    if weights is not None:
        meta = read_checkpoint(weights, mmap=True)["meta"]
        places = [(meta.get("data_splits"), weights.name)]
        file = weights.parent / DATA_SPLITS_FILE
        if file.is_file():
            places.append((json.loads(file.read_text(encoding="utf-8")), file.name))
        for splits, place in places:
            for name in ("train", "test"):
                known.append((name, ((splits or {}).get(name) or {}).get("hash"), place))
    for name, digest, place in known:
        if digest is not None and digest == report["split"]:
            raise DataError(
                found=f"the frames of {folder} are the {name} split of {place} "
                f"({digest[:16]}), called {report['split_name']!r}",
                expected="validation frames, which are neither trained on nor tested on",
                fix="put the validation split right in the config, and test with --split val again",
            )


# ----------------------------------------------------------------------------------- the search


@dataclass
class _Search:
    run: StoredRun
    target: Target
    postprocess: str
    min_areas: tuple[int, ...]
    workers: int | None
    progress: bool
    resamples: int

    def run_all(self) -> Curve:
        """All passes over the run."""
        if self.postprocess == "none" and not self.target.skeletons:
            every = [Candidate(cut) for cut in grid(np.arange(0.01, 1, 0.01))]
            return self._curve(every, *self._sweep(every, "sweep"))
        coarse = self._candidates(_COARSE, _COARSE)
        parts, rows = self._sweep(coarse, "coarse sweep")
        best = self._curve(coarse, parts, rows, resamples=0).choice
        near, lows = grid(best.threshold + _FINE), grid((best.low or best.threshold) + _FINE)
        fine = [c for c in self._candidates(near, lows) if c not in set(coarse)]
        more, _ = self._sweep(fine, "fine sweep")
        return self._curve([*coarse, *fine], np.concatenate([parts, more], axis=1), rows)

    def _candidates(self, cuts: Sequence[float], lows: Sequence[float]) -> list[Candidate]:
        plain = [Candidate(cut) for cut in cuts]
        if self.postprocess == "components":
            areas = [area for area in self.min_areas if area > 1]
            return [*plain, *(Candidate(cut, None, area) for area in areas for cut in cuts)]
        if self.postprocess == "hysteresis":
            return [*plain, *(Candidate(c, low) for low in lows for c in cuts if low < c)]
        return plain

    def _curve(
        self,
        candidates: Sequence[Candidate],
        parts: np.ndarray,
        rows: Sequence[tuple[str, str | None]],
        resamples: int | None = None,
    ) -> Curve:
        number = self.resamples if resamples is None else resamples
        return curve(candidates, parts, rows, self.target, resamples=number)

    def _sweep(
        self, candidates: Sequence[Candidate], title: str
    ) -> tuple[np.ndarray, list[tuple[str, str | None]]]:
        """Parts [R, K, 7] of all rows, and their frames and patients."""
        work = SweepWork(tuple(candidates), self.target.skeletons)
        total, rows, found = len(self.run.report["per_frame"]), [], []
        pool = self._pool(work, total)
        shown = tqdm(self.run.rows(), title, total, disable=not self.progress, unit="row")
        try:
            for row in shown:
                rows.append((row.frame, row.patient))
                job = SweepJob(row.probability, row.truth)
                if pool is None:
                    found.append(work(job))
                else:
                    pool.submit(job)
            if pool is not None:
                found = pool.finish()
        finally:
            if pool is not None:
                pool.close()
        return np.stack(found), rows

    def _pool(self, work: SweepWork, rows: int) -> ScoringPool | None:
        workers = self.workers
        if workers is None:
            slow = self.target.skeletons or self.postprocess != "none"
            cores = min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
            workers = cores if slow and rows >= _WORTH_A_POOL and cores > 1 else 0
        return ScoringPool(work, workers) if workers else None


# ------------------------------------------------------------------------------------ the files


def _map_format(run: StoredRun) -> str:
    """'npz' or 'png': what the maps were saved as."""
    stem = run.report["per_frame"][0]["file"]
    return "npz" if (run.folder / "probabilities" / f"{stem}.npz").is_file() else "png"


def _write_curve(folder: Path, found: Curve, target: Target, report: Mapping[str, Any]) -> None:
    """Writes the curve into the run's folder, as table, as JSON and as picture."""
    records = found.records()
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(records[0]))
    table.writeheader()
    table.writerows(strict(records))
    content = strict(
        {
            "target": asdict(target),
            "choice": asdict(found.choice),
            "value": float(found.values[found.best]),
            "interval": found.interval(found.best),
            "threshold_interval": found.threshold_interval,
            "plateau": found.plateau,
            "bootstrap": found.bootstrap,
            "notes": found.notes,
            "split": report["split"],
            "split_name": report["split_name"],
            "curve": records,
        }
    )
    pretty = json.dumps(content, indent=1, allow_nan=False) + "\n"
    drawn = png_figure(*curve_diagram(content))
    files = (text.getvalue().encode(), pretty.encode(), drawn)
    for name, data in zip(CURVE_FILES, files, strict=True):
        write_atomic(folder / name, lambda file, data=data: file.write(data))

"""Whether runs differ: paired on the same frames, patient by patient.

For two runs A and B and one metric, d is the difference B - A of a frame (and phrase); frames where
either is undefined are left out of it and counted. The unit is the patient (the frame where no
patient ids are known): its d is the mean over its frames, and

* ``difference`` is the mean of d over patients, with a bootstrap interval over patients;
* ``p`` is two-sided, of the permutation test that flips the signs of patients (under the null
  hypothesis A and B are interchangeable in each): all 2^n of them where these are few, else drawn,
  with (b + 1) / (m + 1) so that p is never 0 (Phipson & Smyth 2010);
* ``p_holm`` is corrected for all metrics and pairs of runs (Holm 1979);
* ``effect_size`` is Cohen's d_z, mean over standard deviation of the d of patients, undefined where
  they are all equal; ``improved`` and ``worsened`` are the shares of patients for whom B is better
  or worse.

Runs with several phrases also have ``segment_dice_over_phrases`` and the like
(:mod:`.compare_phrases`).

Runs are comparable if they were scored on the same frames against the same masks by the same
rules. If not, the comparison is refused. Thresholds may differ, each chosen on its validation data.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, listing, suggest
from ..models.outputs import DEFAULT_PRESENCE_THRESHOLD
from .bootstrap import Interval, draw_weights, percentile_interval
from .compare_phrases import lower_is_better, pair_values, phrase_metrics
from .postprocess import PostProcess
from .run_folder import read_report
from .run_means import RunMeans, run_means

_EXACT_UP_TO = 12  # 2^12 sign patterns are still few
_CHUNK = 4096
_TIE = 1e-12


@dataclass(frozen=True)
class Run:
    """A run to compare: its ``name`` and its metrics.json (``report``)."""

    name: str
    report: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path, name: str | None = None) -> Run:
        """Reads a results folder; ``name`` is the folder's by default."""
        return cls(name or Path(folder).name, read_report(folder))

    @classmethod
    def read_all(cls, folders: Sequence[str]) -> list[Run]:
        """Reads results folders; names are the folders' own, or their paths where these agree."""
        paths = [os.path.normpath(folder) for folder in folders]
        short = [os.path.basename(path) for path in paths]
        names = short if len(set(short)) == len(short) else paths
        return [cls.read(folder, name) for folder, name in zip(folders, names, strict=True)]

    @cached_property
    def rows(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        """Records by frame and phrase."""
        return {(row["frame"], row["phrase"]): row for row in self.report["per_frame"]}


@dataclass(frozen=True)
class Difference:
    """One metric of one pair of runs; the module's docstring defines each number.

    Attributes:
        metric: its name.
        a, b: names of the runs.
        mean_a, mean_b: over patients, of the frames that both define.
        difference: mean of B - A over patients; ``nan`` if no frame defines it in both.
        interval: of the difference, or None.
        p, p_holm: ``nan`` where there is no difference to test.
        effect_size: Cohen's d_z.
        improved, worsened: shares of patients.
        units: number of patients (or frames).
        left_out: frames where the metric is undefined in A or B.
    """

    metric: str
    a: str
    b: str
    mean_a: float
    mean_b: float
    difference: float
    interval: Interval | None
    p: float
    p_holm: float
    effect_size: float
    improved: float
    worsened: float
    units: int
    left_out: int


@dataclass(frozen=True)
class Comparison:
    """All differences.

    Attributes:
        unit: 'patient' or 'frame'.
        units: how many of them there are.
        resamples, seed: of bootstrap and permutations.
        notes: what a reader must know, one line each.
        differences: by pair of runs, then by metric.
    """

    unit: str
    units: int
    resamples: int
    seed: int
    notes: list[str]
    differences: list[Difference]


def compare_runs(
    runs: Sequence[Run],
    metrics: Sequence[str] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compares every pair of ``runs``.

    Args:
        runs: two or more; the earlier one of a pair is A.
        metrics: names; all that the runs have by default.
        resamples, seed, level: of bootstrap and permutations.

    Raises:
        DataError: the runs are not comparable, or one is not valid.
        ConfigError: fewer than two runs, two of one name, or an unknown metric.
    """
    names = [run.name for run in runs]
    if len(runs) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            found=f"{len(runs)} run(s): {listing(names)}",
            expected="two or more results folders, of names that differ",
            fix="tools/compare.py RUN_A RUN_B",
        )
    for run in runs[1:]:
        check_comparable(runs[0], run)
    of_phrases = phrase_metrics(runs[0].report)
    known = [*runs[0].report["metrics"], *of_phrases]
    for name in metrics or ():
        if name not in known:
            raise ConfigError(
                found=f"metric {name!r}{suggest(name, known)}",
                expected=f"one of {listing(known, 40)}",
                fix="correct --metrics, or score the runs again with it",
            )
    keys = sorted(runs[0].rows)
    groups, unit = patient_groups(runs[0], keys)
    rng = np.random.default_rng(seed)
    found = []
    for a, b in itertools.combinations(runs, 2):
        for metric in metrics or known:
            if metric in of_phrases:
                # What A's report says of the phrases holds for B: the truth is the same.
                pairs = [pair_values(metric, runs[0].report, run.rows, keys) for run in (a, b)]
                values = np.array(pairs)
            else:
                rows = [[_value(run.rows[key][metric]) for key in keys] for run in (a, b)]
                values = np.array(rows)
            means = run_means(metric, values, groups, keys)
            left_out = int(np.isnan(values).any(axis=0).sum())
            found.append(
                _difference(metric, (a.name, b.name), means, left_out, resamples, rng, level)
            )
    return Comparison(
        unit, int(groups.max()) + 1, resamples, seed, _notes(runs, unit), _holm(found)
    )


def check_comparable(a: Run, b: Run) -> None:
    """Refuses two runs whose difference would mean something else than that of their models.

    Raises:
        DataError: other frames, phrases, masks, patients, metrics or rules, or results that are
            not valid; the message says which.
    """
    for run in (a, b):
        if not run.report["valid"]:
            raise _refusal(
                f"{run.name} is marked valid=false: {listing(run.report['invalid_because'])}",
                "results that can be reported",
            )
    one, other = a.rows, b.rows
    if one.keys() != other.keys():
        only_a, only_b = sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys())
        raise _refusal(
            f"{a.name} and {b.name} were scored on different frames: {len(only_a)} rows only in "
            f"the first ({listing(only_a, 3)}), {len(only_b)} only in the second "
            f"({listing(only_b, 3)})",
            "the same frames and phrases",
        )
    for what, key in (("masks", "truth"), ("patients", "patient"), ("pixel spacing", "spacing_mm")):
        unlike = [frame for frame in one if one[frame][key] != other[frame][key]]
        if unlike:
            raise _refusal(
                f"{a.name} and {b.name} have different {what} for {len(unlike)} of {len(one)} "
                f"rows: {listing(sorted(unlike), 3)}",
                f"the same {what}",
            )
    rules = ("split", "threshold_rule", "centreline_tolerance_px", "metrics")
    for key in rules:
        if a.report.get(key) != b.report.get(key):
            raise _refusal(
                f"{key} of {a.name} is {a.report.get(key)!r}, of {b.name} {b.report.get(key)!r}",
                f"the same {key}",
            )
    kinds = [_postprocess_kinds(run) for run in (a, b)]
    if kinds[0] != kinds[1]:
        raise _refusal(
            f"after the cut, masks of {a.name} have {listing(kinds[0]) or 'nothing'} done to them, "
            f"of {b.name} {listing(kinds[1]) or 'nothing'}",
            "the same kinds of post-processing",
        )
    kinds = [_threshold_kind(run) for run in (a, b)]
    if kinds[0] != kinds[1]:
        raise _refusal(
            f"the threshold of {a.name} comes from {kinds[0]!r}, of {b.name} from {kinds[1]!r}",
            "thresholds that were found in the same way",
        )


def _threshold_kind(run: Run) -> Any:
    source = run.report.get("threshold_source")
    return source.get("kind") if isinstance(source, Mapping) else source


def _postprocess_kinds(run: Run) -> list[str]:
    return PostProcess(**(run.report.get("postprocess") or {})).kinds()


def _refusal(found: str, expected: str) -> DataError:
    return DataError(
        found=found,
        expected=f"{expected} in all runs: else their difference is not that of the models",
        fix="score the runs again alike: tools/score.py RUN --metrics all --out FOLDER, or "
        "tools/test.py with one config",
    )


def _value(stored: float | None) -> float:
    return math.nan if stored is None else stored


def patient_groups(run: Run, keys: list[tuple[str, str]]) -> tuple[np.ndarray, str]:
    """The patient's number of each row (a frame without one is a patient of its own)."""
    patients = [run.rows[key]["patient"] for key in keys]
    owners = [
        key[0] if owner is None else (owner,) for key, owner in zip(keys, patients, strict=True)
    ]
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    unit = "patient" if any(owner is not None for owner in patients) else "frame"
    return np.array([numbers[owner] for owner in owners]), unit


def _notes(runs: Sequence[Run], unit: str) -> list[str]:
    notes = []
    if unit == "frame":
        notes.append(
            "no patient ids: frames count as independent; if patients have several frames, "
            "intervals are too narrow and p too small"
        )
    settings = {
        key: {run.name: run.report.get(key) for run in runs} for key in ("answer_mode", "threshold")
    }
    settings["presence_threshold"] = {
        run.name: _presence_threshold(run)
        for run in runs
        if run.report.get("answer_mode") == "choice"
    }
    for key, values in settings.items():
        if len(set(map(str, values.values()))) > 1:
            notes.append(
                f"{key} differs: " + listing(f"{name}: {value}" for name, value in values.items())
            )
    return notes


def _presence_threshold(run: Run) -> float:
    value = run.report.get("presence_threshold")
    return DEFAULT_PRESENCE_THRESHOLD if value is None else float(value)  # older runs: no such key


def _difference(
    metric: str,
    names: tuple[str, str],
    of_runs: RunMeans,
    left_out: int,
    resamples: int,
    rng: np.random.Generator,
    level: float,
) -> Difference:
    """``of_runs`` are the means of A and B."""
    means = of_runs.contributions()
    d = means[1] - means[0]
    better = -d if lower_is_better(metric) else d
    mean = float(d.mean()) if len(d) else math.nan
    spread = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    interval = None
    if len(d) > 1:
        weights = draw_weights(len(d), resamples, int(rng.integers(2**32)))
        drawn = of_runs.resampled(weights)
        interval = percentile_interval(drawn[1] - drawn[0], level)
    return Difference(
        metric=metric,
        a=names[0],
        b=names[1],
        mean_a=float(means[0].mean()) if len(d) else math.nan,
        mean_b=float(means[1].mean()) if len(d) else math.nan,
        difference=mean,
        interval=interval,
        p=sign_flip_p(d, resamples, rng),
        p_holm=math.nan,
        effect_size=mean / spread if spread > _TIE else math.nan,
        improved=float((better > _TIE).mean()) if len(d) else math.nan,
        worsened=float((better < -_TIE).mean()) if len(d) else math.nan,
        units=len(d),
        left_out=left_out,
    )


def sign_flip_p(d: np.ndarray, resamples: int, rng: np.random.Generator) -> float:
    """Two-sided p-value of the mean of ``d`` [n] under random signs.

    Exact for up to 12 values, from ``resamples`` drawn sign patterns beyond. ``nan`` if n is 0.
    """
    if not len(d):
        return math.nan
    observed = abs(d.sum()) - _TIE * np.abs(d).sum()  # so that rounding breaks no tie
    if len(d) <= _EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(d))))
        return float((np.abs(signs @ d) >= observed).mean())
    extreme = 0
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        signs = rng.integers(0, 2, (count, len(d))) * 2.0 - 1
        extreme += int((np.abs(signs @ d) >= observed).sum())
    return (extreme + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; ``nan`` stays and does not count as a test."""
    order = sorted((p, k) for k, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = list(p_values), 0.0
    for rank, (p, k) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[k] = highest
    return corrected


def _holm(differences: list[Difference]) -> list[Difference]:
    corrected = holm([item.p for item in differences])
    return [
        Difference(**{**vars(item), "p_holm": p})
        for item, p in zip(differences, corrected, strict=True)
    ]

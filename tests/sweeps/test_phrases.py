"""Means over phrases in the table of a sweep."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.errors import ConfigError
from projects.sa2va.evaluation import compare
from projects.sa2va.evaluation.bootstrap import draw_weights
from projects.sa2va.evaluation.compare import Run, compare_runs
from projects.sa2va.evaluation.metrics import choose_metrics
from projects.sa2va.sweeps.spec import PHRASE_METRICS
from projects.sa2va.sweeps.steps import Job
from projects.sa2va.sweeps.table import Finished, Line, compute
from tests.evaluation.test_phrases import SEGMENTS, scored

METRICS = ("segment_dice_over_phrases", "segment_dice_over_pairs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Three runs over the same segments: two seeds of one row, one of another."""
    root: Path = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        scored(root / str(seed), SEGMENTS, seed)
    return [Run.read(root / str(seed)) for seed in range(3)]


def lines(finished: dict[str, list[Run]], *metrics: str) -> dict[tuple[str, str], Line]:
    spec = SimpleNamespace(metrics=metrics, baseline="base", bootstrap=200)
    rows = {row: [Finished(None, run, {}) for run in own] for row, own in finished.items()}
    return {(line.row, line.metric): line for line in compute(spec, rows)[0]}


def test_means_and_differences_are_those_of_the_runs(runs: list[Run]) -> None:
    found = lines({"base": runs[:2], "other": runs[2:]}, *METRICS)
    kind = [run.report["phrases"]["means"]["segment"] for run in runs]
    own = [one["dice_over_phrases"]["value"] for one in kind]
    base, other = (found[row, METRICS[0]] for row in ("base", "other"))
    assert base.mean.seed_values == pytest.approx(own[:2])
    assert other.mean.value == pytest.approx(own[2])
    assert other.gap.value == pytest.approx(own[2] - (own[0] + own[1]) / 2)
    assert other.gap.interval[0] <= other.gap.value <= other.gap.interval[1]
    single = lines({"base": runs[:1], "other": runs[2:]}, METRICS[1])["other", METRICS[1]]
    pair = compare_runs([runs[0], runs[2]], [METRICS[1]], resamples=100).differences[0]
    assert single.gap.value == pytest.approx(pair.difference)


def test_the_test_of_a_run_is_asked_for_metrics_that_it_knows() -> None:
    """Means over phrases follow from Dice; tools/test.py has no metric of that name."""
    for metrics, expected in ((METRICS, ["fast"]), ((*METRICS, "dice"), ["dice"])):
        spec = SimpleNamespace(
            metrics=metrics, tune=None, test_split="test", checkpoint="last", bootstrap=200
        )
        command = Job("row", 0, Path("folder"), spec, 4, "best_").command("test")
        asked = command[command.index("--metrics") + 1 :]
        assert asked == expected
        choose_metrics(asked[0] if asked == ["fast"] else asked)


@st.composite
def unlike_pairs(draw: st.DrawFn) -> list[dict]:
    """Rows of up to 5 patients and 3 phrases, of which any may be absent in any frame."""
    frames = draw(st.lists(st.integers(0, 4), min_size=2, max_size=6))
    return [
        {
            "frame": f"f{number}",
            "patient": f"P{patient}",
            "phrase": phrase,
            "counts": {"tp": int(draw(st.booleans())), "fn": 0},
            "truth": "",
            "spacing_mm": None,
        }
        for number, patient in enumerate(frames)
        for phrase in "abc"
    ]


def synthetic(name: str, pairs: list[dict], seed: int) -> Run:
    dice = np.random.default_rng(seed).random(len(pairs)).tolist()
    rows = [{**pair, "dice": value} for pair, value in zip(pairs, dice, strict=True)]
    phrases = {
        "means": {"segment": {}},
        "by_phrase": [{"phrase": phrase, "kind": "segment"} for phrase in "abc"],
    }
    report = {"valid": True, "metrics": ["dice"], "per_frame": rows, "phrases": phrases}
    return Run(name, report)


def loops(one: Run, patients: list[str]) -> float:
    """The mean over phrases of ``patients``, each with all its frames as often as it is named."""
    found: dict[str, list[float]] = {}
    for patient in patients:
        for row in one.rows.values():
            if row["patient"] == patient and row["counts"]["tp"]:
                found.setdefault(row["phrase"], []).append(row["dice"])
    return float(np.mean([np.mean(own) for own in found.values()]))


@settings(max_examples=40, deadline=None)
@given(unlike_pairs())
def test_table_and_comparison_agree_with_loops(pairs: list[dict]) -> None:
    """With the same draws of patients, whose phrases differ in number."""
    a, b = (synthetic(name, pairs, seed) for seed, name in enumerate("ab"))
    with mock.patch.object(compare, "draw_weights", lambda n, times, _: draw_weights(n, times, 0)):
        items = compare_runs([a, b], METRICS, resamples=200).differences
    table = lines({"base": [a], "other": [b]}, *METRICS)
    for item in items:
        line = table["other", item.metric]
        gap = (line.gap.value, line.gap.units, line.gap.left_out)
        assert gap == pytest.approx((item.difference, item.units, item.left_out), nan_ok=True)
        assert line.mean.value == pytest.approx(item.mean_b, nan_ok=True)
        assert (line.gap.interval is None) == (item.interval is None)
        if item.interval is not None:
            assert line.gap.interval == pytest.approx(item.interval, abs=1e-12)
    # In the order of their first frame, as they are numbered; those without a pair are not drawn.
    with_some = {row["patient"] for row in pairs if row["counts"]["tp"]}
    patients = [p for p in dict.fromkeys(row["patient"] for row in pairs) if p in with_some]
    if len(patients) > 1:
        drawn = [
            np.repeat(patients, times.astype(int)) for times in draw_weights(len(patients), 200, 0)
        ]
        means = [loops(b, list(own)) for own in drawn]
        gaps = [mean - loops(a, list(own)) for mean, own in zip(means, drawn, strict=True)]
        line = table["other", METRICS[0]]
        assert line.mean.interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)
        assert line.gap.interval == pytest.approx(np.quantile(gaps, [0.025, 0.975]), abs=1e-12)


def test_a_kind_that_was_not_asked_for(runs: list[Run]) -> None:
    assert set(METRICS) < set(PHRASE_METRICS)
    with pytest.raises(ConfigError, match=r"group_dice_over_pairs.*segment_dice_over_phrases"):
        lines({"base": runs[:1]}, "group_dice_over_pairs")

"""Means over phrases in the table of a sweep."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from projects.sa2va.errors import ConfigError
from projects.sa2va.evaluation.compare import Run, compare_runs
from projects.sa2va.sweeps.spec import PHRASE_METRICS
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


def test_a_kind_that_was_not_asked_for(runs: list[Run]) -> None:
    assert set(METRICS) < set(PHRASE_METRICS)
    with pytest.raises(ConfigError, match=r"group_dice_over_pairs.*segment_dice_over_phrases"):
        lines({"base": runs[:1]}, "group_dice_over_pairs")

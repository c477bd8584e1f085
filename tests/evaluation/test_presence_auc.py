"""AUC of presence: against scipy, over pairs that are repeated by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from projects.sa2va.evaluation import FrameResult, Row
from projects.sa2va.evaluation.bootstrap import cluster_rows, draw_weights
from projects.sa2va.evaluation.presence_auc import auc, presence_auc
from projects.sa2va.evaluation.presence_report import (
    auc_table,
)
from projects.sa2va.evaluation.summary import mean_defined

from .masks import same
from .presence_runs import (
    LEVELS,
    many,
    pair,
)
from .test_phrases import KINDS


def reference_auc(scores: list[float], labelled: list[bool]) -> float:
    positives = [s for s, own in zip(scores, labelled, strict=True) if own]
    negatives = [s for s, own in zip(scores, labelled, strict=True) if not own]
    if not positives or not negatives:
        return math.nan
    return mannwhitneyu(positives, negatives).statistic / len(positives) / len(negatives)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(LEVELS), st.booleans(), st.integers(0, 3)), min_size=1, max_size=9
    )
)
def test_auc_is_the_mann_whitney_statistic_of_the_drawn_pairs(pairs):
    scores, labelled, drawn = (list(column) for column in zip(*pairs, strict=True))
    weights = np.array([np.ones(len(pairs)), drawn])
    found = auc(np.array(scores), np.array(labelled), weights)
    repeated = [(s, own) for s, own, times in pairs for _ in range(times)]
    wanted = [
        reference_auc(scores, labelled),
        reference_auc([s for s, _ in repeated], [own for _, own in repeated]),
    ]
    assert all(same(a, b, 1e-12) for a, b in zip(found.tolist(), wanted, strict=True))


def three(rows: list[Row], frequency: dict[str, float]) -> list[float]:
    """The three AUC, by loops and scipy."""
    labelled = [not row.counts.empty_truth for row in rows]
    within = []
    for phrase in frequency:
        own = [row for row in rows if row.phrase == phrase]
        presence = [row.presence for row in own]
        within.append(reference_auc(presence, [not row.counts.empty_truth for row in own]))
    return [
        reference_auc([row.presence for row in rows], labelled),
        reference_auc([frequency[row.phrase] for row in rows], labelled),
        mean_defined(within),
    ]


def test_three_auc_and_their_intervals(monkeypatch):
    monkeypatch.setattr("projects.sa2va.evaluation.presence_auc._NUMBERS_AT_ONCE", 200)  # chunks
    frames = many()
    found = presence_auc(frames, resamples=30, seed=3)
    rows = [row for frame in frames for row in frame.rows]
    frequency = {
        phrase: np.mean([not row.counts.empty_truth for row in rows if row.phrase == phrase])
        for phrase in KINDS
    }
    scores = [found.presence, found.frequency, found.within_phrase]
    assert [score.value for score in scores] == pytest.approx(three(rows, frequency))
    assert (found.pairs, found.phrases) == (len(rows), len(KINDS))
    assert found.labelled == sum(not row.counts.empty_truth for row in rows)
    assert found.both == sum(0 < value < 1 for value in frequency.values())
    clusters = [own for _, own in cluster_rows(frames)]
    drawn = [
        three(
            [r for w, own in zip(weights, clusters, strict=True) for r in own * int(w)], frequency
        )
        for weights in draw_weights(len(clusters), 30, 3)
    ]
    for score, sampled in zip(scores, np.array(drawn).T, strict=True):
        assert score.interval == pytest.approx(tuple(np.nanquantile(sampled, [0.025, 0.975])))
    assert "0." in auc_table(found) and presence_auc(frames).presence.interval is None


def test_auc_of_one_class_is_undefined():
    frames = [FrameResult(0, "f", None, "", (pair("a", 0.5, 1, 0, 0, 9), pair("b", 0.2, 1, 0, 0)))]
    found = presence_auc(frames, resamples=10)
    assert math.isnan(found.presence.value) and math.isnan(found.within_phrase.value)
    assert found.both == 0

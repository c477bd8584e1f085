"""The sweep counts what the test would count at each threshold, to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from projects.sa2va.evaluation.geometry import MaskGeometry
from projects.sa2va.evaluation.metrics import Scorer
from projects.sa2va.evaluation.threshold_sweep import Candidate, SweepJob, SweepWork, grid, score

from .masks import same, vessels

CUTS = grid(np.arange(0.01, 1, 0.01))
PLAIN = tuple(Candidate(cut) for cut in (0.99, 0.3, 0.01, 0.5, 0.7))
DONE = (
    *(Candidate(cut, None, area) for cut in (0.3, 0.5) for area in (0, 2, 4, 30)),
    *(Candidate(cut, low) for low in (0.1, 0.3) for cut in (0.5, 0.7, 0.99)),
    Candidate(0.7, 0.3, 4),
)


@st.composite
def jobs(draw) -> SweepJob:
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    # On the thresholds, and beside them in float32.
    levels = np.array([0, 0.1, 0.3, 0.5, 0.7, 0.99, 1], np.float32)
    levels = np.concatenate([levels, np.nextafter(levels[1:], np.float32(0))])
    probability = levels[draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 12)))]
    return SweepJob(probability, draw(hnp.arrays(bool, shape)))


def check(job: SweepJob, candidates, skeletons: bool) -> None:
    parts = SweepWork(tuple(candidates), skeletons)(job)
    for candidate, row in zip(candidates, parts, strict=True):
        scorer = Scorer(candidate.threshold, postprocess=candidate.postprocess)
        scores = scorer.score(job.probability, MaskGeometry(job.truth))
        counts, values = scores.counts, scores.values()
        assert list(row[:3]) == [counts.tp, counts.tp + counts.fp, counts.tp + counts.fn]
        for name in ("dice", "iou", *(["cldice"] if skeletons else [])):
            assert same(float(score(row, name)), values[name]), (candidate, name)
        lengths = scores.parts["centreline"][[0, 1, 3, 4]]
        assert list(row[3:]) == (list(lengths) if skeletons else [0] * 4)


@given(jobs())
def test_the_histogram_counts_what_each_cut_counts(job):
    check(job, PLAIN, skeletons=False)


@given(jobs(), st.booleans())
@settings(max_examples=40)
def test_pieces_count_what_each_mask_counts(job, skeletons):
    check(job, (*PLAIN, *DONE), skeletons)


def test_it_also_holds_for_vessels():
    rng = np.random.default_rng(0)
    truth = vessels(3)
    noise = rng.random(truth.shape)
    probability = np.clip(0.5 * truth + 0.7 * noise**2, 0, 1).astype(np.float32)
    candidates = [Candidate(0.4), Candidate(0.4, None, 8), Candidate(0.7, 0.4), Candidate(0.6)]
    check(SweepJob(probability, truth), candidates, skeletons=True)


def test_every_threshold_of_the_sweep_gives_another_mask():
    """A tuning whose threshold is ignored gives one score at all of them."""
    probability = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    parts = SweepWork(tuple(map(Candidate, CUTS)))(SweepJob(probability, probability > 0.37))
    assert len(CUTS) == 99 and len(np.unique(parts[:, 1])) == 99
    assert CUTS[int(np.argmax(score(parts, "dice")))] == 0.37


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.floats(0.1, 5))
def test_f_beta_is_the_weighted_harmonic_mean(both, only_ours, only_theirs, beta):
    parts = np.array([both, both + only_ours, both + only_theirs, 0, 0, 0, 0])
    found = float(score(parts, "fbeta", beta))
    if both:
        precision, recall = both / (both + only_ours), both / (both + only_theirs)
        expected = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
        assert found == pytest.approx(expected)
    else:
        assert found == 0 or (np.isnan(found) and only_ours == only_theirs == 0)
    assert same(float(score(parts, "fbeta", 1.0)), float(score(parts, "dice")), 1e-12)


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match="no metric 'hd95'"):
        score(np.zeros(7), "hd95")

"""The operating curve: against pairs emptied by hand, and a model that really chooses."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.evaluation import FrameResult, VesselMetric
from projects.sa2va.evaluation.compare import Run
from projects.sa2va.evaluation.phrases import MEAN_NAMES, phrase_scores
from projects.sa2va.evaluation.presence import (
    MOST_POINTS,
    SHOWN,
    Pairs,
    check_beside,
    operating_curve,
    pairs_of,
    put_beside,
)
from projects.sa2va.evaluation.presence_report import (
    beside_table,
)
from projects.sa2va.evaluation.run_folder import read_report
from tests.models.test_answering import PHRASES, choosing, inputs_of, picture

from .masks import same
from .presence_runs import (
    LEVELS,
    SEGMENTS,
    by_hand,
    many,
    of_segments,
    pair,
    run_of,
    without_presence,
)
from .test_phrases import KINDS

__all__ = ["choosing"]


@st.composite
def chosen(draw) -> list[FrameResult]:
    """A few frames with a few pairs each, some of them absent, some without a mask."""
    pixels, frames = st.sampled_from([0, 0, 1, 3]), []
    for index in range(draw(st.integers(1, 5))):
        asked = draw(st.lists(st.sampled_from(list(KINDS)), min_size=2, unique=True))
        levels = [draw(st.sampled_from(LEVELS)) for _ in asked]
        rows = [
            pair(phrase, level, draw(pixels), draw(pixels), draw(pixels), 9)
            for phrase, level in zip(asked, levels, strict=True)
        ]
        patient = draw(st.sampled_from(["P", "Q", None]))
        frames.append(FrameResult(index, f"f{index}", patient, "", tuple(rows)))
    return frames


@settings(max_examples=60, deadline=None)
@given(chosen(), st.sampled_from([*LEVELS, 0.3, 0.9]))
def test_scores_at_a_threshold_are_those_without_the_masks_below_it(frames, threshold):
    run = run_of(frames)
    cut = by_hand(frames, threshold)
    if not any(row.phrase in SEGMENTS for frame in frames for row in frame.rows):
        return
    pairs = Pairs(run, "segment", KINDS)
    found = pairs.scores(threshold, resamples=20)
    for name, value in of_segments(cut).items():
        assert same(found[name].value, value, 1e-12)
    own = phrase_scores(cut, KINDS, resamples=20).means["segment"]
    assert {n: s.interval for n, s in found.items()} == {n: s.interval for n, s in own.items()}
    # The run of a comparison has the same masks.
    again = Pairs(pairs.run_at(threshold), "segment", KINDS).scores()
    assert all(same(again[name].value, found[name].value, 0) for name in MEAN_NAMES)


@settings(max_examples=40, deadline=None)
@given(chosen(), st.floats(0, 1))
def test_the_curve_falls_and_its_rates_are_reached(frames, rate):
    pairs = Pairs(run_of(frames), "segment", KINDS)
    if not len(pairs.presences):
        return
    curve = operating_curve(pairs)
    assert {point.threshold for point in curve} == {*SHOWN, *pairs.presences, 1.0}
    for low, high in itertools.pairwise(curve):
        for name, sign in zip(MEAN_NAMES, (-1, -1, -1, 1), strict=True):
            gap = high.scores[name].value - low.scores[name].value
            assert math.isnan(gap) or sign * gap >= 0
    reached = [p.threshold for p in curve if p.scores["false_positive_rate"].value <= rate]
    if math.isnan(curve[0].scores["false_positive_rate"].value):
        return
    found = pairs.smallest_threshold(rate)
    if found is None:
        assert reached == []
        return
    # Every presence is on the curve; below the next one nothing changes.
    assert found == min(t for t in reached if t in {0.0, 1.0, *pairs.presences})
    assert not any(min(reached) < presence < found for presence in pairs.presences)


def test_many_presences_are_thinned_out():
    frames = many(frames=120)
    pairs = pairs_of(run_of(frames))
    assert len(np.unique(pairs.presences)) > MOST_POINTS
    thresholds = [point.threshold for point in operating_curve(pairs)]
    assert thresholds == sorted(set(thresholds)) and set(SHOWN) < set(thresholds)
    assert set(thresholds) <= {*SHOWN, 1.0, *pairs.presences}
    assert MOST_POINTS / 2 < len(thresholds) <= MOST_POINTS + len(SHOWN) + 1


REFUSED = {
    "forced": ({"answer_mode": "forced"}, "answer_mode 'forced', which gives no presence"),
    "usual": ({"presence_threshold": 0.5}, "at 0.5: what it took to be absent has no mask"),
    "older": ({"presence_threshold": None}, "without a presence_threshold"),
    "single": ({"phrases": None}, "asks for one phrase alone"),
    "invalid": ({"valid": False, "invalid_because": ["copies"]}, "valid=false"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_curve_cannot_be_made_of_is_refused(case):
    changes, message = REFUSED[case]
    with pytest.raises(DataError, match="RUN") as refused:
        pairs_of(run_of(many(), **changes))
    assert message in refused.value.found
    if case in ("forced", "usual", "older"):
        assert "model.presence_threshold=0" in refused.value.fix


def test_rows_without_presence_and_kinds_without_a_curve_are_refused():
    frames = many()
    half = [
        replace(frame, rows=tuple(replace(row, presence=None) for row in frame.rows))
        if frame.index
        else frame
        for frame in frames
    ]
    with pytest.raises(DataError, match="no presence in 55 of its rows"):
        pairs_of(run_of(half))
    with pytest.raises(ConfigError, match=r"--kind segmnt \(did you mean 'segment'\?\)"):
        pairs_of(run_of(frames), "segmnt")
    always = [
        replace(f, rows=(pair("tree", 0.9, 2, 1, 1, 9), *f.rows[1:]), patient=None) for f in frames
    ]
    with pytest.raises(DataError, match="labelled in 12 pairs of RUN, and not in 0") as refused:
        pairs_of(run_of(always), "tree")
    assert refused.value.fix.startswith("another --kind (segment, group), or")
    assert pairs_of(run_of(always)).kind == "segment"


def test_runs_beside_it_are_met_at_their_false_positive_rate():
    """A run that does not choose, and one whose curve is drawn, too."""
    frames = many()
    pairs = pairs_of(run_of(frames))
    plain = without_presence(by_hand(many(seed=1), 0.2))
    unet = run_of(plain, "U-Net", answer_mode="none", presence_threshold=None)
    found = put_beside(pairs, unet, resamples=50)
    point = of_segments(plain)
    assert {n: s.value for n, s in found.point.items()} == pytest.approx(point)
    assert found.threshold is None and found.curve == []
    own = of_segments(by_hand(frames, found.same_rate.threshold))
    assert own["false_positive_rate"] <= point["false_positive_rate"]
    gap = own["dice_over_phrases"] - point["dice_over_phrases"]
    usual = of_segments(by_hand(frames, 0.5))["dice_over_phrases"]
    assert found.difference.difference == pytest.approx(gap) and own["dice_over_phrases"] != usual
    low, high = found.difference.interval
    assert low < gap < high

    other = put_beside(pairs, run_of(many(seed=2), "other"))
    middle = of_segments(by_hand(many(seed=2), 0.5))
    assert other.threshold == 0.5 and len(other.curve) > 10
    assert {n: s.value for n, s in other.point.items()} == pytest.approx(middle)
    same_run = put_beside(pairs, run_of(frames, "same"))
    rates = [
        own["false_positive_rate"].value for own in (same_run.point, same_run.same_rate.scores)
    ]
    # The smallest threshold of that rate may be below 0.5, never above.
    assert rates[0] == rates[1] and same_run.difference.difference >= 0
    table = beside_table("RUN", [found, other])
    assert "U-Net" in table and "other, presence >= 0.5" in table and f"{gap:+.3f} [" in table
    assert "held fixed in the bootstrap" in table

    with pytest.raises(DataError, match="split of RUN"):
        put_beside(pairs, run_of(plain, "U-Net", answer_mode="none", split="1" * 64))
    with pytest.raises(DataError, match="scored on different frames"):
        put_beside(pairs, run_of(plain[1:], "U-Net", answer_mode="none"))


BESIDE = {
    "older": ({"phrases": None}, "U-Net has no scores by phrase", "tools/score.py"),
    "other kinds": (
        {"kinds": {**KINDS, "c": "group"}},
        "'segment' are a, b, c in RUN, and a, b in U-Net",
        "test U-Net again",
    ),
    "no kinds": ({"kinds": {}}, "are a, b, c in RUN, and none in U-Net", "test U-Net again"),
}


@pytest.mark.parametrize("case", BESIDE)
def test_runs_without_the_same_phrases_are_refused(case):
    changes, found, fix = BESIDE[case]
    pairs = pairs_of(run_of(many()))
    other = run_of(without_presence(many()), "U-Net", answer_mode="none", **changes)
    for refuse in (check_beside, put_beside):
        with pytest.raises(DataError) as refused:
            refuse(pairs, other)
        assert found in refused.value.found and fix in refused.value.fix
        assert "--metrics" not in str(refused.value)
    # Kinds that are not looked at may differ.
    kinds = {**KINDS, "tree": "group"}
    check_beside(pairs, run_of(without_presence(many()), "U-Net", kinds, answer_mode="none"))


def test_a_rate_that_no_threshold_reaches_has_no_difference():
    """An absent pair that is sure to be there keeps its mask up to the last threshold."""
    rows = (pair("a", 1.0, 0, 3, 0, 9), pair("b", 0.3, 3, 0, 0, 9))
    frames = [FrameResult(k, f"f{k}", None, "", rows) for k in range(3)]
    pairs = pairs_of(run_of(frames))
    assert pairs.smallest_threshold(0.5) is None and pairs.smallest_threshold(1) == 0
    other = run_of(by_hand(frames, 1.1), "empty", answer_mode="none")
    found = put_beside(pairs, other)
    assert found.same_rate is None and found.difference is None
    assert "none" in beside_table("RUN", [found])
    lower = [replace(f, rows=(replace(rows[0], presence=0.9), rows[1])) for f in frames]
    assert pairs_of(run_of(lower)).smallest_threshold(0.5) == 1


def test_a_run_at_zero_is_every_other_run(choosing, monkeypatch, tmp_path):
    """The tiny model tested at 0, and then really at another threshold."""
    images = [picture(k) for k in range(2)]
    phrases = PHRASES[:4]
    inputs = inputs_of(choosing, images, [[(phrase,) for phrase in phrases]] * 2)
    truth = torch.zeros(2, 4, 64, 64, dtype=torch.uint8)
    truth[:, ::2, 10:40, 20:50] = 1
    truth[1, 0] = 0

    def tested(threshold: float) -> Run:
        monkeypatch.setattr(choosing, "presence_threshold", threshold)
        found = choosing(inputs=inputs, mode="predict")
        folder = tmp_path / str(threshold)
        metric = VesselMetric(threshold=0.5, out_dir=folder, pictures=None, bootstrap=30)
        metric.dataset_meta = {"frames": 2, "phrase_kinds": dict.fromkeys(phrases, "segment")}
        metric.set_provenance({**choosing.answering(), "split": "0" * 64})
        for index, prediction in enumerate(found):
            meta = {"index": index, "frame": f"f{index}", "patient": None, "phrases": phrases}
            batch = {"truth": [truth[index]], "meta": [{**meta, "image_path": ""}]}
            metric.process(batch, [prediction])
        metric.evaluate(2)
        return Run("RUN", read_report(folder))

    every = pairs_of(tested(0))
    assert all(row.seg_emitted for frame in every.frames for row in frame.rows)
    levels = np.unique(every.presences)
    for threshold in (0.5, float(levels[1]), float(levels[-2])):
        real = tested(threshold)
        seen = {record["seg_emitted"] for record in real.report["per_frame"]}
        assert seen == {True, False}
        found = every.scores(threshold, resamples=30)
        for name, score in real.report["phrases"]["means"]["segment"].items():
            assert found[name].value == pytest.approx(score["value"], abs=1e-12)
            assert found[name].interval == pytest.approx(score["interval"], abs=1e-12)

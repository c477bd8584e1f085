"""The operating curve: against pairs emptied by hand, scipy, and a model that really chooses."""

from __future__ import annotations

import csv
import io
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.evaluation import Counts, FrameResult, Row, Scorer, Scores, VesselMetric
from projects.sa2va.evaluation.bootstrap import cluster_rows, draw_weights
from projects.sa2va.evaluation.compare import Run
from projects.sa2va.evaluation.overlap import OVERLAP_NAMES
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
from projects.sa2va.evaluation.presence_auc import auc, presence_auc
from projects.sa2va.evaluation.presence_report import (
    auc_table,
    beside_notes,
    beside_table,
    curve_csv,
    curve_table,
    few_absent_notes,
    few_frames_notes,
    operating_diagram,
)
from projects.sa2va.evaluation.report import Report
from projects.sa2va.evaluation.run_folder import read_report
from projects.sa2va.evaluation.summary import mean_defined
from projects.sa2va.evaluation.writer import strict
from projects.sa2va.figures import png_figure
from tests.models.test_answering import PHRASES, choosing, inputs_of, picture

from .masks import same
from .test_phrases import KINDS, written_out

__all__ = ["choosing"]
SEGMENTS = tuple(phrase for phrase, kind in KINDS.items() if kind == "segment")
LEVELS = [0.0, 0.1, 0.25, 0.5, 0.5000001, 0.8, 1.0]  # few, so that there are ties


def pair(phrase: str, presence: float | None, *counts: int) -> Row:
    return Row(phrase, Scores(Counts(*counts)), True, "", phrase, presence=presence)


def run_of(
    frames: list[FrameResult],
    name: str = "RUN",
    kinds: dict[str, str] = KINDS,
    **changes: Any,
) -> Run:
    """A run as metrics.json has it."""
    provenance = {"answer_mode": "choice", "presence_threshold": 0, "split": "0" * 64}
    report = Report.of(frames, Scorer(0.5, OVERLAP_NAMES), phrase_kinds=kinds)
    content = strict(report.content({**provenance, "split_name": "val"}, []))
    return Run(name, {**content, **changes})


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


def many(seed: int = 0, frames: int = 12, noise: float = 0.4) -> list[FrameResult]:
    """Frames in which every phrase is asked and presence says something about the truth.

    Masks and truth depend on the frame alone; presence on ``seed``, too.
    """
    masks, own = np.random.default_rng(7), np.random.default_rng(seed)
    found = []
    for index in range(frames):
        rows = []
        for number, phrase in enumerate(KINDS):
            there = masks.random() < 0.3 + 0.1 * number
            counts = masks.integers(1, 9, 3)
            own_counts = counts if there else (0, counts[1], 0)
            level = float(np.clip(0.3 + 0.4 * there + noise * own.normal(), 0, 1))
            rows.append(pair(phrase, level, *map(int, own_counts), 9))
        found.append(FrameResult(index, f"f{index}", f"P{index // 2}", "", tuple(rows)))
    return found


def by_hand(frames: list[FrameResult], threshold: float) -> list[FrameResult]:
    """Masks of pairs below the threshold taken out."""
    found = []
    for frame in frames:
        rows = []
        for row in frame.rows:
            if row.presence < threshold:
                tp, fp, fn, tn = row.counts.array().tolist()
                row = replace(row, scores=Scores(Counts(0, 0, tp + fn, fp + tn)))
            rows.append(row)
        found.append(replace(frame, rows=tuple(rows)))
    return found


def of_segments(frames: list[FrameResult]) -> dict[str, float]:
    return written_out([row for f in frames for row in f.rows if row.phrase in SEGMENTS])


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


def without_presence(frames: list[FrameResult]) -> list[FrameResult]:
    return [
        replace(frame, rows=tuple(replace(row, presence=None) for row in frame.rows))
        for frame in frames
    ]


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


def with_masks(absent: list[tuple[float, bool]]) -> list[FrameResult]:
    """Frames with a labelled pair, and an absent one of a presence that has a mask or not."""
    return [
        FrameResult(
            *(k, f"f{k}", None, ""),
            (pair("a", level, 0, 3 * has_mask, 0, 9), pair("b", 0.9, 3, 0, 0, 9)),
        )
        for k, (level, has_mask) in enumerate(absent)
    ]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([(0.5, False)] * 10 + [(0.5, True)] * 10, "it marks less even when everything is drawn"),
        ([(0.5, False)] * 6 + [(0.5, True)] * 14, "it marks less even"),
        ([(0.5, True)] * 20, "many pairs share a presence"),
        ([(k / 20, True) for k in range(20)], None),
        ([(0.5, False)] * 5 + [(0.5, True)] * 15, None),  # 0.05 below, and no more
    ],
)
def test_a_rate_far_below_that_of_the_other_is_noted(own, message):
    theirs = with_masks([(0.5, True)] * 16 + [(0.5, False)] * 4)
    other = run_of(without_presence(theirs), "U-Net", answer_mode="none")
    found = put_beside(pairs_of(run_of(with_masks(own))), other)
    notes = beside_notes("RUN", [found])
    assert len(notes) == (message is not None)
    if message is not None:
        rate = found.same_rate.scores["false_positive_rate"].value
        assert message in notes[0]
        assert f"RUN has a false-positive rate of {rate:.3f} where U-Net has 0.800" in notes[0]


def test_phrases_that_are_hardly_ever_labelled_are_noted():
    def labelled(times: dict[str, int]) -> Pairs:
        rows = [
            tuple(pair(p, 0.5, *((3, 0, 0) if k < n else (0, 1, 0)), 9) for p, n in times.items())
            for k in range(8)
        ]
        frames = [FrameResult(k, f"f{k}", None, "", own) for k, own in enumerate(rows)]
        return pairs_of(run_of(frames), "segment")

    # The group is of another kind; what is labelled nowhere is not in the mean.
    (note,) = few_frames_notes(labelled({"a": 4, "b": 5, "c": 1, "ab": 2}), True)
    assert "2 of 3 phrases of the kind 'segment' are labelled in fewer than 5 frames (a, c)" in note
    assert "need not lie around it" in note
    assert few_frames_notes(labelled({"a": 5, "b": 8, "c": 0, "ab": 2}), True) == []
    (note,) = few_frames_notes(labelled({"a": 4, "b": 5, "c": 0}), False)
    assert "1 of 3" in note and "interval" not in note


def test_frames_that_were_asked_about_a_part_of_the_phrases_are_noted():
    frames = many()
    assert few_absent_notes(pairs_of(run_of(frames))) == []
    part = [
        replace(f, rows=tuple(r for r in f.rows if r.phrase != "c" or f.index > 2)) for f in frames
    ]
    own = [row for f in part for row in f.rows if row.phrase in SEGMENTS]
    absent = sum(row.counts.empty_truth for row in own)
    (note,) = few_absent_notes(pairs_of(run_of(part)))
    assert "3 of 12 frames were asked about fewer than all 3 phrases of the kind 'segment'" in note
    assert f"over {absent} absent pairs" in note and "val_dataloader.dataset.absent=all" in note
    # Phrases of another kind do not matter.
    trees = [replace(f, rows=tuple(r for r in f.rows if r.phrase != "tree")) for f in frames[:3]]
    assert few_absent_notes(pairs_of(run_of(trees + frames[3:]))) == []


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


def test_the_files_hold_the_curve():
    pairs = pairs_of(run_of(many()))
    curve = operating_curve(pairs, resamples=20)
    rows = list(csv.DictReader(io.StringIO(curve_csv("segment", curve).decode())))
    assert [float(row["threshold"]) for row in rows] == [point.threshold for point in curve]
    assert [row["threshold"] for row in rows if row["default"] == "True"] == ["0.5"]
    assert {row["kind"] for row in rows} == {"segment"}
    for row, point in zip(rows, curve, strict=True):
        for name, score in point.scores.items():
            found = [float(row[name + end]) for end in ("", "_low", "_high")]
            assert found == [score.value, *score.interval]
    text = curve_table(curve)
    assert len(text.splitlines()) == len(SHOWN) + 1 and "0.50 (default)" in text
    beside = put_beside(pairs, run_of(many(seed=2), "other"))
    alone, both = (
        png_figure(*operating_diagram("RUN", "segment", curve, own)) for own in ([], [beside])
    )
    assert alone.startswith(b"\x89PNG") and both != alone
    # Nothing absent, and no interval: cells are empty.
    frames = [FrameResult(0, "f", None, "", (pair("a", 0.4, 1, 0, 0), pair("b", 0.6, 1, 0, 0)))]
    curve = operating_curve(Pairs(run_of(frames), "segment", KINDS))
    bare = curve_csv("segment", curve).decode()
    assert bare.splitlines()[1].endswith(",,,,0.0,,,False")


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

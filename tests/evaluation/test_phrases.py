"""Scores by phrase: against their definitions written out, and where they are shown."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.errors import DataError
from projects.sa2va.evaluation import Counts, FrameResult, Row, VesselMetric, vessel_metric
from projects.sa2va.evaluation.bootstrap import draw_weights
from projects.sa2va.evaluation.compare import Run, compare_runs
from projects.sa2va.evaluation.compare_phrases import lower_is_better
from projects.sa2va.evaluation.html_files import RunFiles
from projects.sa2va.evaluation.html_report import html_report, write_html_report
from projects.sa2va.evaluation.metrics import Scores
from projects.sa2va.evaluation.phrases import phrase_scores
from projects.sa2va.evaluation.summary import mean_defined
from projects.sa2va.models.outputs import Prediction

from .masks import same

KINDS = {"tree": "tree", "a": "segment", "b": "segment", "c": "segment", "ab": "group"}
NOTHING = Counts(0, 0, 0, 9)


def row(phrase: str, counts: Counts) -> Row:
    return Row(phrase, Scores(counts), not counts.empty_prediction, "", f"{phrase}.x")


@st.composite
def runs(draw) -> list[FrameResult]:
    """A few frames with a few pairs each, of which many are absent or missed."""
    pixels = st.sampled_from([0, 0, 1, 3])
    frames = []
    for index in range(draw(st.integers(1, 5))):
        asked = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, unique=True))
        rows = [row(p, Counts(draw(pixels), draw(pixels), draw(pixels), 9)) for p in asked]
        patient = draw(st.sampled_from(["P", "Q", None]))
        frames.append(FrameResult(index, f"f{index}", patient, "", tuple(rows)))
    return frames


def written_out(rows: list[Row]) -> dict[str, float]:
    """The definitions over the rows of one kind."""
    present = [r for r in rows if r.counts.tp + r.counts.fn]
    absent = [r for r in rows if not r.counts.tp + r.counts.fn]
    dice = [(r.phrase, r.scores.values()["dice"]) for r in present]
    by_phrase = [
        np.mean([value for own, value in dice if own == phrase])
        for phrase in {own for own, _ in dice}
    ]
    return {
        "dice_over_phrases": mean_defined(by_phrase),
        "dice_over_pairs": mean_defined(value for _, value in dice),
        "false_positive_rate": mean_defined(float(r.counts.tp + r.counts.fp > 0) for r in absent),
        "miss_rate": mean_defined(float(r.counts.tp + r.counts.fp == 0) for r in present),
    }


@settings(max_examples=60, deadline=None)
@given(runs())
def test_scores_are_as_defined(frames):
    found = phrase_scores(frames, KINDS)
    rows = [r for frame in frames for r in frame.rows]
    assert [r.phrase for r in found.phrases] == [p for p in KINDS if p in {r.phrase for r in rows}]
    for one in found.phrases:
        own = written_out([r for r in rows if r.phrase == one.phrase])
        assert same(one.scores["dice"].value, own["dice_over_pairs"], 1e-12)
        assert same(one.scores["false_positive_rate"].value, own["false_positive_rate"], 1e-12)
        assert same(one.scores["miss_rate"].value, own["miss_rate"], 1e-12)
        assert one.present + one.absent == sum(r.phrase == one.phrase for r in rows)
    for kind, scores in found.means.items():
        own = written_out([r for r in rows if KINDS[r.phrase] == kind])
        for name, score in scores.items():
            assert same(score.value, own[name], 1e-12) and score.interval is None
    (alone,) = phrase_scores(frames).means.values()
    assert all(same(alone[n].value, v, 1e-12) for n, v in written_out(rows).items())


@settings(max_examples=15, deadline=None)
@given(runs())
def test_intervals_draw_patients_again(frames):
    """Each resample is scored as a run of its own, in which drawn patients occur so often."""
    found = phrase_scores(frames, KINDS, resamples=40, seed=5)
    groups: dict[str, list[Row]] = {}
    for frame in frames:
        own = ("patient", frame.patient) if frame.patient else ("frame", frame.index)
        groups.setdefault(repr(own), []).extend(frame.rows)
    clusters = [groups[key] for key in sorted(groups)]
    if len(clusters) < 2:
        assert all(s.interval is None for scores in found.means.values() for s in scores.values())
        return
    drawn = []
    for weights in draw_weights(len(clusters), 40, 5):
        rows = [r for w, c in zip(weights, clusters, strict=True) for r in c * int(w)]
        drawn.append(written_out([r for r in rows if KINDS[r.phrase] == "segment"]))
    for name, score in found.means.get("segment", {}).items():
        values = [d[name] for d in drawn if not math.isnan(d[name])]
        if not values:
            assert score.interval is None
            continue
        assert score.interval == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def scored(folder: Path | None, phrases: dict[str, str], seed: int = 0, **kwargs) -> dict:
    """A run over four frames; the second of the phrases is absent in odd ones."""
    metric = VesselMetric(threshold=0.5, out_dir=folder, bootstrap=50, pictures=None, **kwargs)
    metric.dataset_meta = {"frames": 4, "phrase_kinds": phrases}
    for index in range(4):
        rng = np.random.default_rng(index)
        truth = (rng.random((len(phrases), 12, 12)) < 0.3).astype(np.uint8)
        noise = np.random.default_rng([seed, index]).random(truth.shape)
        if index % 2 and len(phrases) > 1:
            truth[1] = 0
        maps = torch.from_numpy((0.5 * truth + 0.6 * noise).astype(np.float32).clip(0, 1))
        emitted = [True] * len(phrases)
        if index == 1 and len(phrases) > 1:
            maps[1], emitted[1] = 0, False
        meta = {
            "index": index,
            "frame": f"f{index}",
            "patient": f"P{index}",
            "phrases": list(phrases),
            "image_path": "",
        }
        presence = [0.25 * (1 + k) for k in range(len(phrases))] if len(phrases) > 1 else None
        prediction = Prediction(maps, ["x"] * len(phrases), emitted, presence)
        metric.process({"truth": [torch.from_numpy(truth)], "meta": [meta]}, [prediction])
    return metric.evaluate(4)


SEGMENTS = {"blood vessel": "tree", "left main": "segment", "ramus": "segment"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two runs of the same phrases, and one with a single phrase."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("A", 1), ("B", 2)):
        scored(root / name, SEGMENTS, seed, html_report=True)
    scored(root / "single", {"blood vessel": "tree"})
    return [root / name for name in ("A", "B", "single")]


def test_a_run_of_several_phrases_says_so_everywhere(folders):
    report = json.loads((folders[0] / "metrics.json").read_text())
    phrases = report["phrases"]
    assert [p["phrase"] for p in phrases["by_phrase"]] == list(SEGMENTS)
    main = phrases["by_phrase"][1]
    assert (main["present"], main["absent"]) == (2, 2)
    assert main["false_positive_rate"]["value"] == 0.5 and len(main["dice"]["interval"]) == 2
    rows = [
        r for r in report["per_frame"] if r["phrase"] == "left main" and r["frame"] in ("f0", "f1")
    ]
    assert [r["presence"] for r in rows] == [0.5, 0.5]
    flat = scored(None, SEGMENTS, 1)
    means = phrases["means"]["segment"]
    assert flat["vessel/segment_dice_over_phrases"] == pytest.approx(
        means["dice_over_phrases"]["value"]
    )
    assert math.isnan(flat["vessel/tree_false_positive_rate"])
    page = (folders[0] / "report.html").read_text()
    assert "false-positive rate where absent" in page and "left main" in page
    text = phrase_scores(
        [FrameResult(0, "f", None, "", (row("a", NOTHING), row("b", Counts(3, 0, 0, 9))))]
    ).table()
    assert "a" in text and "1.000" in text and "0.000" in text
    # The answer without [SEG] is right, for its phrase is not there.
    assert any("1 of these are right" in warning for warning in report["warnings"])
    faults = {(r.frame, r.phrase): r.faults for r in RunFiles(folders[0]).rows}
    assert faults["f1", "left main"] == []
    csv = (folders[0] / "per_frame.csv").read_text().splitlines()
    assert csv[0].endswith(",presence")


def test_a_run_of_one_phrase_has_nothing_of_it(folders):
    report = json.loads((folders[2] / "metrics.json").read_text())
    assert "phrases" not in report and "presence" not in report["per_frame"][0]
    assert "presence" not in (folders[2] / "per_frame.csv").read_text()
    assert "false-positive rate" not in html_report(RunFiles(folders[2]))
    flat = scored(None, {"blood vessel": "tree"})
    assert not [
        name for name in flat if "over_" in name or name.endswith(("positive_rate", "miss_rate"))
    ]


def test_the_page_is_made_of_files(folders):
    before = (folders[0] / "report.html").read_bytes()
    assert write_html_report(folders[0]).read_bytes() == before


def test_presence_must_be_of_the_phrases():
    metric = VesselMetric(threshold=0.5)
    meta = {"index": 0, "frame": "f", "patient": None, "phrases": ["a"], "image_path": ""}
    for presence in ([0.5, 0.5], [1.5]):
        prediction = Prediction(torch.zeros(1, 4, 4), ["x"], [True], presence)
        with pytest.raises(DataError, match="presence"):
            metric.process(
                {"truth": [torch.ones(1, 4, 4, dtype=torch.uint8)], "meta": [meta]}, [prediction]
            )


def test_two_runs_are_compared_over_phrases(folders):
    """Against the definition, and against every swap of A and B."""
    a, b = Run.read(folders[0]), Run.read(folders[1])
    found = {d.metric: d for d in compare_runs([a, b], resamples=200).differences}
    item = found["segment_dice_over_phrases"]
    reports = [run.report["phrases"]["means"]["segment"] for run in (a, b)]
    values = [report["dice_over_phrases"]["value"] for report in reports]
    assert (item.mean_a, item.mean_b) == pytest.approx(tuple(values))
    assert item.difference == pytest.approx(values[1] - values[0])
    assert item.units == 4 and item.left_out == 4 + 2  # the tree, and absent pairs

    def mean(swapped: tuple[bool, ...]) -> float:
        """B - A over phrases, with the frames in question taken from the other run."""
        by_phrase: dict[str, list[float]] = {}
        for key, record in a.rows.items():
            if key[1] == "blood vessel" or not record["counts"]["tp"] + record["counts"]["fn"]:
                continue
            d = b.rows[key]["dice"] - record["dice"]
            by_phrase.setdefault(key[1], []).append(-d if swapped[int(key[0][1:])] else d)
        return float(np.mean([np.mean(own) for own in by_phrase.values()]))

    swaps = [mean(s) for s in itertools.product((False, True), repeat=4)]
    assert item.p == pytest.approx(np.mean(np.abs(swaps) >= abs(item.difference) - 1e-12))
    low, high = item.interval
    assert low <= item.difference <= high
    pairs = found["segment_dice_over_pairs"]
    assert pairs.left_out == 6 and pairs.units == 4


@pytest.mark.parametrize(("mean", "present"), [("false_positive_rate", 0), ("miss_rate", 1)])
def test_rates_of_two_runs_are_compared(folders, mean, present):
    """Means over frames of the share of a frame's pairs, by loops."""
    runs = [Run.read(folder) for folder in folders[:2]]
    name = f"segment_{mean}"
    (item,) = compare_runs(runs, [name], resamples=50).differences
    shares = []
    for run in runs:
        by_frame: dict[str, list[bool]] = {}
        for (frame, phrase), record in run.rows.items():
            own = record["counts"]
            if phrase == "blood vessel" or (own["tp"] + own["fn"] > 0) != present:
                continue
            has_mask = own["tp"] + own["fp"] > 0
            by_frame.setdefault(frame, []).append(has_mask != present)
        shares.append(np.mean([np.mean(values) for values in by_frame.values()]))
    assert (item.mean_a, item.mean_b) == pytest.approx(tuple(shares))
    assert item.difference == pytest.approx(shares[1] - shares[0])
    assert lower_is_better(name) and not lower_is_better("segment_dice_over_pairs")


def test_a_run_that_was_scored_before_phrases_were_is_compared_too(folders, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(folders[1], older)
    report = json.loads((older / "metrics.json").read_text())
    del report["phrases"]
    (older / "metrics.json").write_text(json.dumps(report))
    name = "segment_dice_over_phrases"
    gaps = [
        compare_runs([Run.read(folders[0]), Run.read(b)], [name], resamples=50).differences[0]
        for b in (older, folders[1])
    ]
    assert gaps[0].difference == gaps[1].difference and gaps[0].interval == gaps[1].interval


@pytest.mark.parametrize(
    ("phrases", "files", "metric_set", "asked"),
    [
        (1, True, "fast", None),
        (30, True, "fast", 600),
        (30, False, "fast", None),
        (1, True, "all", 20),
    ],
)
def test_many_maps_are_worth_scoring_processes(
    tmp_path, monkeypatch, phrases, files, metric_set, asked
):
    """Frames times phrases count, and files of many phrases."""
    seen = []
    monkeypatch.setattr(vessel_metric, "default_workers", lambda maps, _: seen.append(maps) or 0)
    metric = VesselMetric(
        threshold=0.5, out_dir=tmp_path if files else None, metric_set=metric_set, pictures=None
    )
    metric.dataset_meta = {"frames": 20, "phrases": [f"p{k}" for k in range(phrases)]}
    metric._begin()
    assert seen == ([] if asked is None else [asked])

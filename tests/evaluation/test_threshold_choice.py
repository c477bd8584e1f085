"""The choice, its band and the plateau: known answers, and the intervals of the evaluator."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.evaluation.bootstrap import intervals
from projects.sa2va.evaluation.diagrams import curve_diagram
from projects.sa2va.evaluation.geometry import MaskGeometry
from projects.sa2va.evaluation.metrics import Scorer
from projects.sa2va.evaluation.rows import FrameResult, Row
from projects.sa2va.evaluation.summary import summarise
from projects.sa2va.evaluation.threshold_choice import AVERAGES, Target, curve
from projects.sa2va.evaluation.threshold_sweep import Candidate, SweepJob, SweepWork
from projects.sa2va.evaluation.writer import strict
from projects.sa2va.figures import svg_figure

CUTS = [Candidate(cut) for cut in (0.1, 0.2, 0.3, 0.4, 0.5)]


def counts(*dice: float) -> np.ndarray:
    """Parts of one row whose Dice at the candidates is this, to a thousandth."""
    found = np.zeros((len(dice), 7), np.int64)
    found[:, 1] = found[:, 2] = 1000
    found[:, 0] = np.rint(1000 * np.asarray(dice))
    return found


def rows(number: int, per_patient: int = 2) -> list[tuple[str, str | None]]:
    return [(f"f{k}", f"P{k // per_patient}") for k in range(number)]


def test_the_best_is_chosen_and_a_clear_one_has_no_plateau():
    parts = np.stack([counts(0.5, 0.6, 0.9, 0.6, 0.5)] * 6)
    found = curve(CUTS, parts, rows(6), Target())
    assert found.choice.threshold == 0.3 and found.values[found.best] == pytest.approx(0.9)
    assert found.plateau == (0.3, 0.3) and found.threshold_interval == pytest.approx((0.3, 0.3))
    assert found.interval(found.best) == pytest.approx((0.9, 0.9))
    assert not any("plateau" in note for note in found.notes)


def test_a_plateau_is_said():
    # Each neighbour is better in half of the rows, by as much as it is worse in the others.
    parts = np.stack([counts(0.3, 0.83, 0.81, 0.78, 0.3), counts(0.3, 0.78, 0.81, 0.83, 0.3)] * 15)
    found = curve(CUTS, parts, rows(30, 1), Target())
    assert found.plateau == (0.2, 0.4)
    assert any("from 0.2 to 0.4" in note for note in found.notes)
    low, high = found.threshold_interval
    assert 0.2 <= low < 0.3 < high <= 0.4


def test_ties_go_to_the_simplest_then_to_the_middle():
    parts = np.stack([counts(0.1, 0.7, 0.7, 0.7, 0.1)] * 3)
    assert curve(CUTS, parts, rows(3), Target()).choice.threshold == 0.3
    candidates = [Candidate(0.5, None, 20), Candidate(0.5, 0.2), Candidate(0.4)]
    parts = np.stack([counts(0.7, 0.7, 0.7)] * 3)
    found = curve(candidates, parts, rows(3), Target())
    assert found.choice == Candidate(0.4) and found.gain == (0, (0, 0))


def test_postprocessing_that_gains_nothing_for_sure_is_said():
    candidates = [Candidate(0.4), Candidate(0.4, None, 20)]
    unsure = np.stack([counts(0.7, 0.75), counts(0.7, 0.67)] * 3)
    found = curve(candidates, unsure, rows(6, 1), Target())
    assert found.choice.min_area == 20 and found.gain[0] == pytest.approx(0.01)
    assert any("leave it out" in note for note in found.notes)
    assert any("the largest that was tried" in note for note in found.notes)
    sure = np.stack([counts(0.7, 0.75), counts(0.7, 0.72)] * 3)
    assert not any("leave" in n for n in curve(candidates, sure, rows(6, 1), Target()).notes)


def test_the_ends_and_a_flat_curve_are_said():
    parts = np.stack([counts(0.9, 0.5, 0.4, 0.3, 0.2)] * 4)
    assert "last of the sweep" in curve(CUTS, parts, rows(4), Target()).notes[0]
    parts = np.stack([counts(0.5, 0.5, 0.5, 0.5, 0.5)] * 4)
    assert "0 and 1 almost only" in curve(CUTS, parts, rows(4), Target()).notes[0]


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("metric", ["dice", "cldice"])
def test_values_and_bands_are_those_of_the_evaluator(average, metric):
    """Frames without a patient, an empty truth, and patients of several sizes."""
    rng = np.random.default_rng(1)
    patients = ["P0", "P0", "P0", "P1", "P1", "P2", "P3", "P4"]
    jobs = []
    for index in range(len(patients)):
        truth = rng.random((24, 24)) < 0.4
        truth[index:] &= index != 3
        noise = rng.random(truth.shape)
        jobs.append(SweepJob((0.4 * truth + 0.6 * noise).astype(np.float32), truth))
    parts = np.stack([SweepWork(tuple(CUTS), skeletons=True)(job) for job in jobs])
    names = [(f"f{k}", patient) for k, patient in enumerate(patients)]
    found = curve(CUTS, parts, names, Target(metric, average=average), resamples=200)
    kind = {"frames": "mean", "patients": "patient_mean", "pooled": "pooled"}[average]
    for k, candidate in enumerate(CUTS):
        frames = []
        for index, job in enumerate(jobs):
            scores = Scorer(candidate.threshold).score(job.probability, MaskGeometry(job.truth))
            row = Row("vessel", scores, True, "[SEG]", f"f{index}")
            frames.append(FrameResult(index, f"f{index}", patients[index], "", (row,)))
        means = getattr(summarise(frames, [metric]), kind)
        bounds = getattr(intervals(frames, [metric], resamples=200), kind)
        assert found.values[k] == pytest.approx(means[metric])
        assert found.interval(k) == pytest.approx(bounds[metric])


def test_without_patients_frames_are_drawn_and_means_over_patients_refused():
    parts = np.stack([counts(0.1, 0.2, 0.3, 0.2, 0.1)] * 4)
    names = [(f"f{k}", None) for k in range(4)]
    found = curve(CUTS, parts, names, Target())
    assert found.bootstrap["unit"] == "frame" and "no patient ids" in found.notes[-1]
    with pytest.raises(DataError, match="without patient ids"):
        curve(CUTS, parts, names, Target(average="patients"))
    alone = curve(CUTS, parts[:1], names[:1], Target())
    assert alone.interval(alone.best) is None and alone.threshold_interval is None
    assert alone.plateau is None and "only one" in alone.notes[-1]


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="undefined at every threshold"):
        curve(CUTS, np.zeros((2, 5, 7), np.int64), rows(2), Target())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "dise"}, "did you mean 'dice'"),
        ({"average": "mean"}, "average 'mean'"),
        ({"metric": "fbeta", "beta": 0.0}, "beta 0"),
    ],
)
def test_wrong_targets_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Target(**arguments)


def test_records_are_sorted_and_the_picture_is_drawn():
    candidates = [*reversed(CUTS), *(Candidate(c.threshold, None, 20) for c in CUTS)]
    parts = np.stack([counts(*[0.5] * 5, 0.5, 0.6, 0.9, 0.6, 0.5)] * 3)
    found = curve(candidates, parts, rows(3), Target(), resamples=20)
    records = found.records()
    assert [r["threshold"] for r in records[:5]] == [c.threshold for c in CUTS]
    assert [r for r in records if r["chosen"]] == [records[7]] and records[7]["min_area"] == 20
    content = strict(
        {
            "target": asdict(Target()),
            "choice": asdict(found.choice),
            "value": found.values[found.best],
            "plateau": (0.3, 0.4),
            "bootstrap": found.bootstrap,
            "curve": records,
        }
    )
    shown = svg_figure(*curve_diagram(content), "score by threshold")
    assert "pieces of fewer than 20 px removed" in shown and "threshold alone" in shown
    assert "plateau" in shown and "chosen: 0.3" in shown
    assert "dice (mean over frames) 0.9000 at 0.3 (band: 95%, 2 patients)" in shown
    shown = svg_figure(*curve_diagram({**content, "plateau": None, "curve": records[5:]}), "score")
    assert "plateau" not in shown and "threshold alone" not in shown

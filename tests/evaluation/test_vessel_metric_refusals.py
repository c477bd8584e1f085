"""What VesselMetric refuses: frames that are not those of the data set, and wrong arguments."""

from __future__ import annotations

import math

import pytest
import torch

from projects.sa2va.errors import ConfigError, DataError, SetupError
from projects.sa2va.evaluation import VesselMetric
from tests.evaluation.test_vessel_metric import SHAPE, feed, item


@pytest.mark.parametrize(
    ("indices", "size", "message"),
    [
        ([0, 1, 3], 4, r"missing: 2;? ?"),
        ([0, 1, 1], 2, r"doubled: 1 \(frame1\)"),
        ([0, 1, 2], 2, r"beyond the data set: 2 \(frame2\)"),
        ([], 2, "0 frames without any phrase"),
    ],
)
def test_a_missing_or_doubled_frame_is_named(tmp_path, indices, size, message):
    metric = VesselMetric(threshold=0.5)
    for index in indices:
        feed(metric, [item(index, tmp_path)])
    with pytest.raises((ConfigError, DataError), match=message):
        metric.evaluate(size)
    assert metric.results == []  # the next validation starts clean


def test_frames_that_would_share_files_are_refused(tmp_path):
    metric = VesselMetric(threshold=0.5)
    feed(metric, [item(1, tmp_path, index=0, frame="a b"), item(1, tmp_path, frame="A_b")])
    with pytest.raises(DataError, match="same output name: a_b"):
        metric.evaluate(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": torch.zeros(1, 8, 8)}, r"frame 'frame1': prediction \(1, 8, 8\)"),
        ({"probabilities": torch.zeros(2, *SHAPE)}, "prediction"),
        ({"answers": []}, "0 answers"),
        ({"phrases": ["a", "b"]}, "2 phrases"),
        ({"probabilities": torch.full((1, *SHAPE), 1.5)}, r"outside \[0, 1\]"),
        ({"probabilities": torch.full((1, *SHAPE), math.nan)}, "not finite"),
        ({"seg_emitted": [False]}, "not zero for an answer without"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        feed(VesselMetric(threshold=0.5), [item(1, tmp_path, **changes)])


def test_truth_must_be_binary_and_phrases_unique(tmp_path):
    truth, meta, prediction = item(1, tmp_path)
    with pytest.raises(DataError, match="values up to 255"):
        feed(VesselMetric(threshold=0.5), [(truth * 255, meta, prediction)])
    truth, meta, prediction = item(0, tmp_path, phrases=["vessel", "vessel"])
    with pytest.raises(DataError, match="each phrase once"):
        feed(VesselMetric(threshold=0.5), [(truth, meta, prediction)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0}, "threshold=0"),
        ({"threshold": 1.01}, "threshold"),
        ({"threshold": True}, "threshold=True"),
        ({"threshold": "0.5"}, "threshold='0.5'"),
        ({"threshold": 0.5, "metric_set": ["dise"]}, "did you mean 'dice'"),
        ({"threshold": 0.5, "centreline_tolerance": -1}, "centreline_tolerance=-1"),
        ({"threshold": 0.5, "max_exact_copies": 5}, "max_exact_copies=5"),
        ({"threshold": 0.5, "bootstrap": 1.5}, "bootstrap=1.5"),
        ({"threshold": 0.5, "workers": -1}, "workers=-1"),
        ({"threshold": 0.5, "save_probabilities": "jpg"}, "'jpg'"),
        ({"threshold": 0.5, "pictures": {"bst": 3}}, "did you mean 'best'"),
        ({"threshold": 0.5, "pictures": {"best": -1}}, "best=-1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        VesselMetric(**arguments)


def test_threshold_has_no_default():
    with pytest.raises(TypeError, match="threshold"):
        VesselMetric()


def test_provenance_cannot_overwrite_numbers_and_must_be_json():
    metric = VesselMetric(threshold=0.5)
    with pytest.raises(ValueError, match="mean"):
        metric.set_provenance({"mean": {"dice": 1.0}})
    with pytest.raises(TypeError, match="no JSON form"):
        metric.set_provenance({"checkpoint": object()})


def test_out_dir_may_be_set_later_but_not_too_late(tmp_path):
    metric = VesselMetric(threshold=0.5, pictures=None)
    assert metric.out_dir is None
    metric.out_dir = tmp_path / "out"
    feed(metric, [item(1, tmp_path, index=0)])
    with pytest.raises(RuntimeError, match="after the first batch"):
        metric.out_dir = tmp_path / "elsewhere"
    metric.evaluate(1)
    assert (tmp_path / "out" / "masks" / "frame1.png").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="cannot be written to"):
        metric.out_dir = tmp_path / "file"

"""tools/presence.py, called in this process: what it prints, writes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.test_presence import by_hand, many, of_segments, run_of

from .test_data_tools import call, snapshot

__all__ = ["call"]


def write(folder: Path, frames, **changes) -> Path:
    folder.mkdir()
    report = run_of(frames, **changes).report
    (folder / "metrics.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return write(tmp_path / "RUN", many())


def test_the_curve_is_printed_and_written(call, run, tmp_path):
    unet = write(tmp_path / "unet", by_hand(many(1), 0.4), answer_mode="none")
    code, out, err = call("presence", run, "--beside", unet, "--bootstrap", 20)
    assert code == 0, err
    assert "0.50 (default)" in out and "AUC within a phrase" in out and "unet" in out
    assert "kind 'segment', 3 phrases, 36 pairs" in out
    assert "20 resamples of 6 patients" in out and "only 6 patients" in out
    assert {path.name for path in run.iterdir()} == {
        *("metrics.json", "presence_curve.csv", "presence_curve.png")
    }
    assert (run / "presence_curve.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = call("presence", run, "--kind", "group", "--bootstrap", 0)
    assert code == 0 and "kind 'group', 1 phrases" in out and "resamples" not in out, err


def test_a_threshold_is_chosen_on_validation_frames(call, run):
    code, out, err = call("presence", run, "--at-false-positive-rate", 0.25, "--bootstrap", 0)
    assert code == 0, err
    line = next(line for line in out.splitlines() if "--cfg-options" in line)
    threshold = float(line.rpartition("=")[2])
    share = of_segments(by_hand(many(), threshold))["false_positive_rate"]
    assert 0 < share <= 0.25 and f"false-positive rate {share:.3f}" in out


REFUSED = {
    "a test split": ({"split_name": "test"}, "a threshold would be tuned on a test split"),
    "the test split by another name": ({"test_split": "0" * 64}, "are the test split of"),
    "no choice": ({"answer_mode": "forced"}, "which gives no presence"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_choice_on_other_frames_is_refused_before_anything_is_written(call, tmp_path, case):
    changes, message = REFUSED[case]
    folder = write(tmp_path / "RUN", many(), **changes)
    before = snapshot(folder)
    code, _, err = call("presence", folder, "--at-false-positive-rate", 0.25)
    assert code == 2 and message in err and snapshot(folder) == before
    assert "what to do" in err
    if case == "a test split":
        assert "--split val" in err and "model.presence_threshold=0" in err
        assert call("presence", folder, "--bootstrap", 0)[0] == 0


def test_wrong_arguments_are_refused(call, run, tmp_path):
    for wrong in (["--at-false-positive-rate", 1.5], ["--bootstrap", -1]):
        code, _, err = call("presence", run, *wrong)
        assert code == 2 and "ConfigError" in err
    code, _, err = call("presence", run / "nothing")
    assert code == 2 and "holds no metrics.json" in err
    sure = [
        replace(frame, rows=tuple(replace(row, presence=1.0) for row in frame.rows))
        for frame in many()
    ]
    folder = write(tmp_path / "sure", sure)
    code, _, err = call("presence", folder, "--at-false-positive-rate", 0.9, "--bootstrap", 0)
    assert code == 2 and "at every presence_threshold up to 1 more than 0.9" in err

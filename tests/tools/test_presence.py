"""tools/presence.py, called in this process: what it prints, writes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from projects.sa2va.checkpoints import DATA_SPLITS_FILE, sha256_of
from tests.engine.conftest import save
from tests.evaluation.presence_runs import by_hand, many, of_segments, run_of
from tests.evaluation.test_phrases import KINDS

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
        *("metrics.json", "presence_curve_segment.csv", "presence_curve_segment.png")
    }
    assert (run / "presence_curve_segment.png").read_bytes().startswith(b"\x89PNG")
    assert "held fixed in the bootstrap" in out
    before = snapshot(run)
    code, out, err = call("presence", run, "--kind", "group", "--bootstrap", 0)
    assert code == 0 and "kind 'group', 1 phrases" in out and "resamples" not in out, err
    # The curve of one kind does not replace that of another.
    added = {path.name for path in run.iterdir()} - {path.name for path in before}
    assert added == {"presence_curve_group.csv", "presence_curve_group.png"}
    assert all(path.read_bytes() == content for path, content in before.items())
    assert "Written: presence_curve_group.csv, presence_curve_group.png" in out
    assert (run / "presence_curve_group.csv").read_text().splitlines()[1].startswith("group,0.0,")


def test_notes_are_printed(call, tmp_path):
    frames = many()
    rare = [
        replace(f, rows=tuple(r for r in f.rows if r.phrase != "c" or f.index < 3)) for f in frames
    ]
    folder = write(tmp_path / "RUN", rare)
    code, out, err = call("presence", folder, "--bootstrap", 0)
    assert code == 0 and "note: 1 of 3 phrases of the kind 'segment' are labelled in" in out, err
    assert "absent=all" not in out and "interval" not in out
    rate = ["--at-false-positive-rate", 0.5]
    code, out, err = call("presence", folder, "--bootstrap", 20, *rate)
    assert code == 0 and "note: 9 of 12 frames were asked about fewer than all 3" in out, err
    assert "its interval is unreliable" in out and "val_dataloader.dataset.absent=all" in out
    # RUN marks little at any threshold, the other all.
    shy = write(tmp_path / "shy", by_hand(frames, 0.7))
    plain = write(tmp_path / "plain", frames, answer_mode="none")
    code, out, err = call("presence", shy, "--beside", plain, "--bootstrap", 0)
    assert code == 0 and "note: shy has a false-positive rate of 0." in out, err
    assert "it marks less even when everything is drawn" in out


def is_refused(call, folder: Path, message: str, *args) -> str:
    """Whether a call ends with a message of three parts, before anything is computed or written."""
    before = snapshot(folder)
    code, out, err = call("presence", folder, *args)
    assert code == 2 and message in err and not out
    assert "thresholds of" not in err and snapshot(folder) == before
    assert all(part in err for part in ("found:", "expected:", "what to do:"))
    return err


def test_a_folder_that_is_given_twice_is_refused(call, run, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(run)
    for same in (run, f"{run}/../RUN", link):
        is_refused(call, run, "the same folder as RUN", "--beside", same)
    other = write(tmp_path / "other", many(1))
    is_refused(call, run, f"the same folder as --beside {other}", "--beside", other, f"{other}/.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phrases": None}, "old has no scores by phrase"),
        ({"kinds": {**KINDS, "c": "group"}}, "'segment' are a, b, c in RUN, and a, b in old"),
        ({"split": "1" * 64}, "split of RUN"),
    ],
)
def test_a_run_beside_it_is_checked_before_the_curve(call, run, tmp_path, changes, message):
    fine = write(tmp_path / "fine", many(1), answer_mode="none")
    old = write(tmp_path / "old", many(1), answer_mode="none", **changes)
    is_refused(call, run, message, "--beside", fine, old)


def test_frames_of_the_training_are_refused(call, tmp_path):
    """By the checkpoint, which must be that of the run."""
    rate = ["--at-false-positive-rate", 0.5, "--bootstrap", 0]
    path = save(tmp_path / "iter_9.pth", training_state=False)
    tested = {"source": str(path), "sha256": sha256_of(path)}
    run = write(tmp_path / "RUN", many(), checkpoint=tested)
    assert call("presence", run, *rate)[0] == 0
    beside = path.parent / DATA_SPLITS_FILE
    beside.write_text(json.dumps({"train": {"hash": "0" * 64}}))
    is_refused(call, run, f"are the train split of {DATA_SPLITS_FILE}", *rate)
    assert call("presence", run, "--bootstrap", 0)[0] == 0
    beside.unlink()

    moved = path.rename(tmp_path / "moved.pth")
    is_refused(call, run, "iter_9.pth is not there", *rate)
    code, out, err = call("presence", run, *rate, "--checkpoint", moved)
    assert code == 0 and "model.presence_threshold=" in out, err
    is_refused(call, run, "without --at-false-positive-rate", "--checkpoint", moved)
    own = {"train": {"hash": "0" * 64}}
    save(moved, training_state=False, data_splits=own)
    is_refused(call, run, "moved.pth has changed since the test", *rate, "--checkpoint", moved)
    again = write(tmp_path / "again", many(), checkpoint={**tested, "sha256": sha256_of(moved)})
    is_refused(call, again, "are the train split of moved.pth", *rate, "--checkpoint", moved)
    bare = write(tmp_path / "bare", many())
    is_refused(call, bare, "was tested without one", *rate, "--checkpoint", moved)


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
    rate = ["--at-false-positive-rate", 0.9, "--bootstrap", 0]
    is_refused(call, folder, "at every presence_threshold up to 1 more than 0.9", *rate)

"""The runner over stand-in tools: order, resuming, failures, signals, locks, cards."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import threading
import time

import pytest

from projects.sa2va.errors import ConfigError, DataError, SetupError
from projects.sa2va.sweeps import launch
from projects.sa2va.sweeps.launch import card_groups
from projects.sa2va.sweeps.progress import Clock, duration
from projects.sa2va.sweeps.steps import training_facts

EVERYTHING = [
    f"{row}/{seed}/{step}"
    for seed in (0, 1)
    for row in ("a", "bb")
    for step in ("train/None", "test/val", "test/test")
]


def table(sweep) -> list[dict[str, str]]:
    return list(csv.DictReader((sweep.work_dir / "table.csv").open()))


def test_every_row_and_seed_is_trained_tuned_and_tested_and_finished_steps_are_skipped(
    make_sweep, started, capsys
):
    sweep = make_sweep(tune={"split": "val"})
    assert sweep.run() == []
    assert started() == EVERYTHING
    text = (sweep.work_dir / "table.md").read_text()
    assert "4 of 4 runs" in text and "a (baseline)" in text
    lines = table(sweep)
    assert [line["row"] for line in lines] == ["a", "bb"]
    assert float(lines[0]["mean"]) == pytest.approx(0.25 + 0.005 + 0.001)
    assert float(lines[0]["seed_sd"]) == pytest.approx(0.01 / 2**0.5)
    assert float(lines[1]["difference"]) == pytest.approx(0.001)
    assert float(lines[1]["difference_low"]) == pytest.approx(0.001)
    assert float(lines[0]["low"]) < 0.2 < 0.3 < float(lines[0]["high"])
    assert [lines[0][key] for key in ("training_seconds", "peak_gib", "trained_parameters")] == [
        *("2.0", "7.0", "2129696")
    ]
    assert "left" in capsys.readouterr().out
    assert make_sweep(tune={"split": "val"}).run() == []
    assert started() == []
    assert "4 runs, 4 of them finished" in capsys.readouterr().out


def test_a_step_whose_file_is_cut_is_done_again_and_so_are_those_after_it(
    make_sweep, order, started
):
    sweep = make_sweep(tune={"split": "val"})
    sweep.run()
    started()
    run = sweep.work_dir / "a" / "seed_1"
    (run / "train" / "best_vessel_dice_iter_4.threshold.json").write_text("{")
    assert make_sweep(tune={"split": "val"}).run() == []
    assert started() == ["a/1/test/test"]
    (run / "train" / "best_vessel_dice_iter_4.pth").unlink()
    order({"a/1/test": "fail"})
    (failure,) = make_sweep(tune={"split": "val"}).run()
    assert failure.step == "val" and list(failure.job.record()) == ["train"]
    assert started() == ["a/1/train/None", "a/1/test/val"]
    order({})
    assert make_sweep(tune={"split": "val"}).run() == []
    assert started() == ["a/1/test/val", "a/1/test/test"]
    assert run.joinpath("train.log").read_text().count("--resume auto") == 2


def test_a_failing_run_stops_no_other_and_is_tried_again(make_sweep, order, started):
    order({"a/0/train": "fail", "bb/1/test": "fail"})
    failures = make_sweep().run()
    assert [(f.job.name, f.step) for f in failures] == [
        *(("a, seed 0", "train"), ("bb, seed 1", "test"))
    ]
    assert "exit status 2" in failures[0].reason
    assert "found: a broken thing" in failures[0].reason
    assert "what to do: mend it" in failures[0].reason
    assert "a/0/test/test" not in started()
    order({})
    assert make_sweep().run() == []
    assert started() == ["a/0/train/None", "a/0/test/test", "bb/1/test/test"]


def test_a_training_that_leaves_no_checkpoint_has_failed(make_sweep, order):
    order({"a/0/train": "leave nothing"})
    (failure,) = make_sweep(rows={"a": {}}, seeds=[0]).run()
    assert "left no checkpoint" in failure.reason


def test_results_on_other_frames_are_named_and_left_out(make_sweep, order):
    order({"bb/1/test": "other frames"})
    sweep = make_sweep()
    (failure,) = sweep.run()
    assert failure.job.name == "bb, seed 1" and "different frames" in failure.reason
    assert [line["seeds"] for line in table(sweep)] == ["2", "1"]
    assert "bb, seed 1 is left out" in (sweep.work_dir / "table.md").read_text()


def test_tables_of_nothing_are_an_error(make_sweep, order):
    with pytest.raises(DataError, match=r"no finished run in .*: of 4 runs of spec none") as caught:
        make_sweep().tables()
    assert "--work-dir" in caught.value.fix and not make_sweep().work_dir.exists()
    order({f"{row}/{seed}/test": "fail" for row in ("a", "bb") for seed in (0, 1)})
    assert len(make_sweep().run()) == 4  # a sweep says of each of its runs why
    with pytest.raises(DataError, match="no finished run"):
        make_sweep().tables()


def test_tables_need_results_but_no_checkpoints(make_sweep, started):
    sweep = make_sweep(tune={"split": "val"})
    sweep.run()
    before = (sweep.work_dir / "table.csv").read_bytes()
    for path in [*sweep.work_dir.rglob("*.pth"), *sweep.work_dir.glob("table.*")]:
        path.unlink()
    started()
    assert make_sweep(tune={"split": "val"}).tables() == []
    assert (sweep.work_dir / "table.csv").read_bytes() == before and started() == []
    (sweep.work_dir / "bb" / "seed_1" / "test" / "metrics.json").write_text("{}")
    assert make_sweep(tune={"split": "val"}).tables() == []
    assert [line["seeds"] for line in table(sweep)] == ["2", "1"]


def test_only_names_rows_and_the_table_keeps_the_others(make_sweep, started):
    assert make_sweep().run(["a"]) == []
    assert {line.split("/")[0] for line in started()} == {"a"}
    sweep = make_sweep()
    assert sweep.run(["bb"]) == []
    assert [line["row"] for line in table(sweep)] == ["a", "bb"]
    with pytest.raises(ConfigError, match="did you mean 'bb'"):
        sweep.run(["bbb"])


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        (dict(keys=(1, 3)), "key = 3 \\(was 2\\)"),
        (dict(metrics=["hd95"]), "metrics = \\['hd95'\\]"),
        (dict(gpus=2), "gpus_per_run = 2 \\(was 1\\)"),
        (dict(tune={"split": "val"}), "tune = "),
    ],
)
def test_a_changed_spec_of_a_row_that_was_begun_is_refused(make_sweep, started, changed, found):
    make_sweep(seeds=[0]).run(["bb"])
    started()
    sweep = make_sweep(**changed)
    with pytest.raises(ConfigError, match=found):
        sweep.check(None)
    with pytest.raises(ConfigError, match=found):
        sweep.run()
    assert started() == []
    # More seeds, and rows that were not begun, are no change.
    assert make_sweep(seeds=[0, 2]).run(["bb"]) == []
    assert started() == ["bb/2/train/None", "bb/2/test/test"]


def test_the_commands_are_those_that_run_and_nothing_is_written(make_sweep, started):
    sweep = make_sweep(tune={"split": "val", "metric": "iou"}, checkpoint="last")
    lines = sweep.commands(["bb"])
    assert len(lines) == 2 * 5 and lines[0] == "# bb, seed 0"
    assert "--seed 0 --resume auto" in lines[1] and "--work-dir" in lines[1]
    assert "iter_4.pth --split val --threshold config" in lines[2]
    assert "--split val --metric iou" in lines[3]
    assert "iter_4.threshold.json" in lines[4] and "--metrics dice" in lines[4]
    assert not sweep.work_dir.exists() and started() == []
    assert "iter_'*'.pth" in make_sweep().commands(["a"])[2]
    many = make_sweep(gpus=4).commands(["a"])
    assert "dist.sh train" in many[1] and "config.py 4 " in many[1] and "dist.sh test" in many[2]


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_runs_go_on_side_by_side_and_a_signal_lets_them_save(make_sweep, order, started):
    order({"a/0/train": "wait", "bb/0/train": "wait"})
    sweep = make_sweep(jobs=2)
    marks = [sweep.work_dir / row / "seed_0/train/waiting" for row in ("a", "bb")]

    def stop() -> None:
        wait_for(lambda: all(mark.exists() for mark in marks))
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=stop)
    other.start()
    failures = sweep.run()
    other.join()
    assert all(mark.with_name("asked_to_end").exists() for mark in marks)
    reasons = {failure.job.name: failure.reason for failure in failures}
    assert len(reasons) == 4 and "the same command goes on" in reasons["a, seed 0"]
    assert "not begun" in reasons["a, seed 1"]
    assert sorted(started()) == ["a/0/train/None", "bb/0/train/None"]


def test_a_run_that_another_process_holds_is_left_alone(make_sweep, started):
    sweep = make_sweep(seeds=[0])
    folder = sweep.work_dir / "a" / "seed_0"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        (failure,) = sweep.run()
    assert "is in use" in failure.reason
    assert started() == ["bb/0/train/None", "bb/0/test/test"]


def test_cards_go_round_and_are_those_that_are_visible(make_sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert card_groups(2) == [("0", "1"), ("2", "3")]
    assert card_groups(3) == [("0", "1", "2")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert card_groups(1) == [("4",), ("5",), ("6",), ("7",)]
    with pytest.raises(SetupError, match="with 4 card"):
        card_groups(5)
    sweep = make_sweep(jobs=2)
    assert sweep.run() == []
    logs = [path.read_text() for path in sorted(sweep.work_dir.glob("*/*/train.log"))]
    seen = {line for log in logs for line in log.splitlines() if line.startswith("cards ")}
    assert seen <= {"cards 4", "cards 5"} and "cards 4" in seen


def test_what_was_not_logged_is_none(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("nothing\n")
    facts = training_facts(tmp_path, log)
    assert [facts[key] for key in ("training_seconds", "peak_gib", "trained_parameters")] == [
        *(None, None, None)
    ]
    data = tmp_path / "20260101_000000" / "vis_data"
    data.mkdir(parents=True)
    # Resumed after 20: what the first start logged of 30 is replaced.
    lines = [{"step": s, "loss": 1.0, "time": 0.25} for s in (10, 20, 30)]
    (data / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = tmp_path / "20260102_000000" / "vis_data"
    again.mkdir(parents=True)
    (again / "scalars.json").write_text(json.dumps({"step": 30, "loss": 1.0, "time": 1.0}) + "\n")
    facts = training_facts(tmp_path, log)
    assert facts["training_seconds"] == pytest.approx(20 * 0.25 + 10 * 1.0)
    assert facts["peak_gib"] is None


def test_the_time_left_is_known_once_a_step_of_each_kind_has_ended():
    clock = Clock(["train", "test"] * 3, jobs=2)
    clock.done("train", 100)
    assert clock.left() is None
    clock.done("test", 10)
    assert clock.left() == (2 * 100 + 2 * 10) / 2
    clock.done("train", 200)
    clock.dropped(["test"])
    assert clock.left() == (150 + 10) / 2
    assert [duration(s) for s in (59.4, 60, 3723)] == ["59 s", "1 min 0 s", "1 h 2 min"]

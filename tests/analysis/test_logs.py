"""Logs read back: resumed runs joined, cut lines survived, broken ones refused; curves, text."""

from __future__ import annotations

import json
import math

import pytest

from projects.sa2va.analysis import judge, read_log
from projects.sa2va.analysis.curves import training_page
from projects.sa2va.analysis.summary import as_text, summarise_log
from projects.sa2va.errors import DataError
from tests.test_html import Elements, loads_nothing


def train_line(step: int, loss: float, **more) -> dict:
    times = {"time": 0.5, "data_time": 0.1, "memory": 2048}
    return {
        "lr": 1e-3,
        "loss": loss,
        "loss_mask": loss / 2,
        **times,
        **more,
        "iter": step,
        "step": step,
    }


def val_line(step: int, dice: float) -> dict:
    return {"vessel/dice": dice, "vessel/seg_emission_rate": 0.5, "time": 9.0, "step": step}


def write(folder, name: str, lines, end: str = "\n"):
    path = folder / name / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(json.dumps(line) for line in lines) + end)
    return path


@pytest.fixture
def resumed(tmp_path):
    """A run killed after 40 (in the middle of a line), resumed from the checkpoint of 30."""
    folder = tmp_path / "work"
    first = [train_line(step, 100 + step) for step in (10, 20, 30, 40)]
    write(folder, "20260101_000000", [*first[:3], val_line(30, 0.3), first[3]], '\n{"lr": 0.0')
    second = [train_line(step, 200 + step, **{"memory/sam2": 1.5}) for step in (40, 50, 60)]
    write(folder, "20260102_000000", [val_line(30, 0.31), *second, val_line(60, math.nan)])
    (folder / "20260103_000000").mkdir()  # a test run: no scalars
    return folder


def test_a_resumed_run_is_one_curve_and_later_lines_win(resumed):
    log = read_log(resumed)
    steps, loss = log.curve("loss")
    assert steps.tolist() == [10, 20, 30, 40, 50, 60]
    assert loss.tolist() == [110, 120, 130, 240, 250, 260]
    steps, dice = log.curve("vessel/dice", validation=True)
    assert steps.tolist() == [30, 60] and dice[0] == 0.31 and math.isnan(dice[1])
    assert [(s.first, s.last, s.replaced, s.cut) for s in log.starts] == [
        (10, 40, 0, True),
        (30, 60, 2, False),
    ]
    assert log.losses == ["loss", "loss_mask"]


def test_a_run_that_begins_anew_replaces_all(resumed):
    write(resumed, "20260104_000000", [train_line(10, 1.0), train_line(20, 0.5)])
    log = read_log(resumed)
    assert log.curve("loss")[1].tolist() == [1.0, 0.5] and log.val == []


def test_a_timestamp_folder_or_file_alone_can_be_read(resumed):
    alone = read_log(resumed / "20260101_000000")
    assert alone.curve("loss")[0].tolist() == [10, 20, 30, 40]
    file = resumed / "20260101_000000" / "vis_data" / "scalars.json"
    assert read_log(file).curve("loss")[0].tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("broken", ["no JSON", "[1]", '{"loss": 1}', '{"step": "x"}'])
def test_a_broken_line_is_refused_with_its_number(resumed, broken):
    path = resumed / "20260102_000000" / "vis_data" / "scalars.json"
    path.write_text(
        "\n".join([json.dumps(train_line(10, 1.0)), broken, json.dumps(val_line(20, 1))])
    )
    with pytest.raises(DataError, match="line 2"):
        read_log(resumed)


def test_folders_without_training_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no"):
        read_log(tmp_path)
    write(tmp_path, "20260101_000000", [val_line(10, 0.1)])
    with pytest.raises(DataError, match="no training was logged"):
        read_log(tmp_path)


def test_numbers_of_the_summary(resumed):
    log = read_log(resumed)
    found = summarise_log(log, judge(log))
    assert found["iterations"] == 60 and found["verdict"] == "too short to say"
    assert found["losses"]["loss_mask"]["last"] == pytest.approx(127.5)
    assert found["learning_rate"] == {"first": 1e-3, "highest": 1e-3, "last": 1e-3}
    assert found["memory"] == {"allocated": 2.0, "sam2": 1.5}
    seconds = found["seconds"]
    assert seconds["median"] == 0.5 and seconds["data_share"] == pytest.approx(0.2)
    assert seconds["trained_hours"] == pytest.approx(30 / 3600)
    assert seconds["eta_error_50"] == pytest.approx(0)


def test_the_time_left_is_estimated_too_low_where_a_run_slows_down(tmp_path):
    lines = [train_line(step, 1.0, time=1.0 if step <= 20 else 3.0) for step in (10, 20, 30, 40)]
    write(tmp_path, "20260101_000000", lines)
    log = read_log(tmp_path)
    assert summarise_log(log, judge(log))["seconds"]["eta_error_50"] == pytest.approx(1 / 3 - 1)


def test_text_picture_and_page_hold_all_runs(resumed, tmp_path):
    other = tmp_path / "<b>other"
    write(other, "20260101_000000", [train_line(step, 1.0) for step in (10, 20)])
    logs = [read_log(resumed), read_log(other)]
    found = [summarise_log(log, judge(log)) for log in logs]
    text = as_text(found[0], "vessel/dice")
    assert "TOO SHORT TO SAY" in text and "replaces 2 earlier lines" in text
    assert "0.3100" in text and "0.5000" in text and "cut off" in text and "sam2 1.50" in text
    page = training_page(logs, found, "vessel/dice")
    elements = Elements(page)
    assert loads_nothing(elements) and "b" in elements.names() and "<b>other" not in page
    assert "emission rate" in page and str(tmp_path) not in page


def test_memory_is_drawn_by_part_for_one_run_and_as_one_line_for_each_of_several(tmp_path):
    lines = [
        train_line(step, 1.0, **{"memory/sam2": 1.5, "memory/reserved": 2.0}) for step in (10, 20)
    ]
    logs = []
    for name in ("a", "b"):
        write(tmp_path / name, "20260101_000000", lines)
        logs.append(read_log(tmp_path / name))
    one, two = (training_page(some, [], "vessel/dice") for some in (logs[:1], logs))
    assert "memory by part of a step" in one and "a: sam2" in one
    assert "memory held by torch" in two and "a: sam2" not in two

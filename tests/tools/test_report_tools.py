"""tools/report.py and tools/analyze_logs.py, called in this process."""

from __future__ import annotations

import json

import pytest

from tests.analysis.test_logs import train_line, val_line, write
from tests.evaluation.test_html_report import write_run

from .test_data_tools import call, snapshot

__all__ = ["call"]


def test_the_page_is_made_from_the_files(call, tmp_path):
    run = write_run(tmp_path, tmp_path / "run", pictures={"best": 1, "worst": 0, "random": 0})
    assert not (run / "report.html").exists()
    before = snapshot(run)
    page = tmp_path / "pages" / "own.html"
    code, out, err = call("report", run, "--out", page)
    assert code == 0 and str(page) in out, err
    assert snapshot(run) == before and "<h2>Summary</h2>" in page.read_text()
    for wrong in (["--pictures", tmp_path / "x"], ["--curve", tmp_path / "x"]):
        code, _, err = call("report", run, *wrong)
        assert code == 2 and "does not exist" in err
    code, _, err = call("report", tmp_path / "nothing")
    assert code == 2 and "holds no metrics.json" in err


@pytest.fixture
def work_dir(tmp_path):
    lines = [train_line(step, 1 / step) for step in range(10, 310, 10)]
    write(tmp_path / "work", "20260101_000000", [*lines, val_line(300, 0.7)])
    return tmp_path / "work"


def test_logs_are_judged_and_drawn(call, work_dir, tmp_path):
    code, out, err = call("analyze_logs", work_dir, work_dir, "--out", tmp_path / "o")
    assert code == 0, err
    assert out.count("work: STILL IMPROVING") == 2 and "0.7000" in out
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert names == {"curves.png", "analysis.json"}
    assert (tmp_path / "o" / "curves.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "o" / "analysis.json").read_text())
    assert [item["verdict"] for item in found] == ["still improving"] * 2


def test_wrong_arguments_are_refused(call, work_dir, tmp_path):
    code, _, err = call("analyze_logs", work_dir, "--metric", "vessel/dise")
    assert code == 2 and "did you mean 'vessel/dice'" in err
    assert not (work_dir / "analysis").exists()
    (tmp_path / "file").write_text("")
    code, _, err = call("analyze_logs", work_dir, "--out", tmp_path / "file")
    assert code == 2 and "cannot be written to" in err
    code, _, err = call("analyze_logs", tmp_path / "nothing")
    assert code == 2 and "a work dir of tools/train.py" in err

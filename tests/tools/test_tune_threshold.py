"""The command line of tuning: what it prints, and that a test run is refused as a user sees it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from projects.sa2va.evaluation.report import THRESHOLD_RULE
from projects.sa2va.evaluation.threshold_choice import Target, curve
from projects.sa2va.evaluation.threshold_sweep import Candidate
from tests.conftest import ROOT

from .conftest import load_tool


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return load_tool("tune_threshold")


def test_a_test_run_is_refused(tool, tmp_path, monkeypatch, capfd):
    report = {
        "per_frame": [],
        "threshold": 0.5,
        "threshold_rule": THRESHOLD_RULE,
        "metrics": ["dice"],
        "valid": True,
        "split": "0" * 64,
        "split_name": "test",
    }
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["tools/tune_threshold.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert ended.value.code == 2
    shown = capfd.readouterr().err
    assert "a threshold would be tuned on a test split" in shown and "--split val" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_the_summary_says_what_was_chosen_and_how_sure_it_is(tool):
    candidates = [Candidate(0.3), Candidate(0.6, 0.2)]
    parts = np.zeros((4, 2, 7), np.int64)
    parts[:, :, 1:3], parts[:, 0, 0], parts[:, 1, 0] = 100, 50, 80
    found = curve(candidates, parts, [(f"f{k}", None) for k in range(4)], Target(), resamples=20)
    chosen = type("Chosen", (), {"content": {"split_name": "val"}, "path": Path("x.json")})
    text = tool.summary(type("Tuned", (), {"curve": found, "chosen": chosen}), Target(), "RUN")
    assert "dice (mean over frames) on the split 'val' is best at probability >= 0.6" in text
    assert "and >= 0.2 where connected to it" in text and "0.8000 [0.8000, 0.8000]" in text
    assert "note: no patient ids" in text and "Written: x.json" in text

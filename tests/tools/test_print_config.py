"""tools/print_config.py: what it prints, and its errors."""

from __future__ import annotations

import importlib
import sys

import pytest

from projects.sa2va.config import CONFIG_DIR
from tests.conftest import ROOT

DEMO = CONFIG_DIR / "sa2va_demo.py"


@pytest.fixture
def print_config(monkeypatch):
    """Runs the tool in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    module = importlib.import_module("print_config")

    def run(*args: object) -> None:
        monkeypatch.setattr(sys, "argv", ["print_config.py", *map(str, args)])
        module.main()

    run.module = module
    return run


def test_prints_a_config_that_can_be_run(print_config, capsys):
    print_config(DEMO, "--cfg-options", "processor.max_tiles=3")
    namespace: dict = {}
    exec(capsys.readouterr().out, namespace)
    assert namespace["model"]["processor"]["max_tiles"] == 3
    assert namespace["train_dataloader"]["dataset"]["processor"]["max_tiles"] == 3


def test_diff_shows_only_what_differs(print_config, capsys, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(f"_base_ = [{str(DEMO)!r}]\nmodel = dict(mllm=dict(seed=5))\n")
    print_config(DEMO, "--diff", other)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [["model.mllm.seed", "-", "5"]]
    print_config(DEMO, "--diff", DEMO)
    assert capsys.readouterr().out == "no difference\n"


def test_differences_tells_text_from_number(print_config):
    rows = print_config.module.differences({"a": 1, "b": 2}, {"a": "1", "b": 2, "c": None})
    assert rows == [("a", "1", "'1'"), ("c", "-", "None")]


def test_user_error_has_no_traceback(print_config, capsys):
    with pytest.raises(SystemExit) as caught:
        print_config(DEMO.with_name("sa2va_dem.py"))
    assert caught.value.code == 2
    assert f"did you mean '{DEMO}'" in capsys.readouterr().err

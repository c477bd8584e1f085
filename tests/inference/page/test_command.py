"""tools/demo.py: as a process of its own once, its refusals in this one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from projects.sa2va import versions
from projects.sa2va.errors import DataError, SetupError
from tests.conftest import ROOT
from tests.tiny_experiment import write_experiment
from tests.tools.conftest import load_tool

from .conftest import frame, png


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return load_tool("demo")


def test_from_start_to_end(tmp_path):
    """It serves a real model, and after SIGTERM nothing is left."""
    config = write_experiment(tmp_path, frames=(1, 1, 1))
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, ROOT / "tools/demo.py", config, "--checkpoint", "none",
         *("--device", "cpu", "--port", "0", "--threshold", "0.3", "--examples", "none")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        printed = ""
        while not (found := re.search(r"The page is at (http://127\.0\.0\.1:\d+)", printed)):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            printed += line
        url = found[1]
        # The socket listens before the server does: the first answer waits for it.
        assert "<gradio-app" in httpx.get(url, timeout=60).text
        sent = {"files": ("Smith.png", png(frame()))}
        (path,) = httpx.post(f"{url}/gradio_api/upload", files=sent).json()
        data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "vessel", None]}
        event = httpx.post(f"{url}/gradio_api/call/predict", json=data).json()["event_id"]
        said = httpx.get(f"{url}/gradio_api/call/predict/{event}", timeout=60).text
        assert "event: complete" in said and ", 0.3, {" in said
        (private,) = (tmp_path / "tmp").glob("sa2va-page-*")
        assert oct(private.stat().st_mode)[-3:] == "700" and private in Path(path).parents
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert not list((tmp_path / "tmp").glob("sa2va-page-*"))
    assert "Smith" not in printed + errors and "Traceback" not in errors
    assert "no checkpoint" in printed and "0.3" in printed  # Sa2VAInferencer.describe


def test_without_gradio_nothing_is_loaded(tool, monkeypatch, capsys):
    known = versions.installed_version
    monkeypatch.setattr(
        versions, "installed_version", lambda name: None if name == "gradio" else known(name)
    )
    monkeypatch.setattr(tool, "Sa2VAInferencer", lambda *args, **kwargs: pytest.fail("loaded"))
    monkeypatch.setattr(sys, "argv", ["tools/demo.py", "config.py"])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "found: no gradio in" in said
    assert "-m pip install gradio==" in said


def test_other_hosts_are_warned_of(tool, monkeypatch, capsys):
    from projects.sa2va.inference.page import server

    class Model:
        threshold, threshold_text, intensity = 0.5, "", "own_range"

        def __init__(self, *args: object, **kwargs: object) -> None:
            self.asked = args, kwargs

        def __enter__(self) -> Model:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def describe(self) -> str:
            return "a model"

    served = []
    monkeypatch.setattr(tool, "Sa2VAInferencer", Model)
    monkeypatch.setattr(server, "serve", lambda *args: served.append(args))
    options = ["--examples", "none", "--port", "0", "--max-side", "99", "--queue", "3"]
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        monkeypatch.setattr(sys, "argv", ["tools/demo.py", "c.py", "--host", host, *options])
        tool.main()
        said = capsys.readouterr()
        assert ("everyone who reaches port" in said.err) == warned
        assert "The page is at http://" in said.out and "a model" in said.out
    settings = served[0][1]
    assert (settings.limits.max_side, settings.queue, settings.host) == (99, 3, "0.0.0.0")


def test_examples(tool, tmp_path, capsys):
    assert tool.find_examples("none") == []
    rendered = tool.find_examples(None)
    assert len(rendered) == 4 and {one.shape for one in rendered} == {(256, 256, 3)}
    assert rendered[0].dtype == np.uint8
    with pytest.raises(DataError, match="no image in"):
        tool.find_examples(str(tmp_path))
    for number in range(13):
        (tmp_path / f"{number:02d}.png").write_bytes(png(frame()))
    assert [path.name for path in tool.find_examples(str(tmp_path))][-1] == "11.png"
    assert "the first 12 of 13" in capsys.readouterr().out
    with pytest.raises(SetupError, match="--examples"):
        tool.find_examples(str(tmp_path / "none"))

"""Command lines, as processes of their own and, to be quick, in this process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests import processes
from tests.conftest import ROOT


@dataclass
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str

    def refused(self, kind: str) -> str:
        """Asserts that it ended as a user's error of ``kind`` should; returns what it printed."""
        assert self.code == 2, self.err
        assert "Traceback" not in self.out + self.err
        assert f"{kind}\n  found: " in self.err
        assert "\n  expected: " in self.err
        assert "\n  what to do: " in self.err
        return self.err


def load_tool(name: str) -> ModuleType:
    """Imports ``tools/<name>.py`` under another name (``test`` is a module of Python's own)."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., Ended]:
    """Calls a tool's ``main`` with these arguments; fails if it goes on to the long work."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))

    def run(name: str, *args: object) -> Ended:
        module = load_tool(name)

        def long_work(*args, **kwargs):
            pytest.fail(f"tools/{name}.py went on to its long work")

        if name == "train":
            monkeypatch.setattr(module, "run_xtuner", long_work)
        else:
            monkeypatch.setattr(module.RUNNERS, "build", long_work)
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, args)])
        capfd.readouterr()
        try:
            module.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return Ended(code, *capfd.readouterr())

    return run


def run_process(name: str, *args: object, cwd: Path) -> Ended:
    """Runs a tool as a user does, in the folder ``cwd``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / f"{name}.py", *map(str, args)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def run_forked(name: str, *args: object, cwd: Path) -> Ended:
    """As :func:`run_process`, where the start is no part of the test: that takes longest."""
    return Ended(*processes.run_forked(name, *args, cwd=cwd))

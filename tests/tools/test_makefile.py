"""The Makefile: what it installs, when it does so again, and what a failure leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from projects.sa2va import pins
from tests.conftest import ROOT

# A Python that notes how it is called; `-m venv DIR` copies itself there, pins.py runs for real.
STUB = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
case "$*" in
  *"-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
  *pins.py*) exec "$REAL_PYTHON" "$@" ;;
  *"import cv2'"*|"-c import cv2") exit "${CV2_FAILS:-0}" ;;
  *"pip install"*) exit "${PIP_FAILS:-0}" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Runs make in a copy with the stub; returns the process and the calls of Python."""
    for name in ("Makefile", "setup.py", "projects/sa2va/pins.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    stub, log = tmp_path / "python-stub", tmp_path / "log"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(*args: str, **env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        log.write_text("")
        told = {"LOG": str(log), "REAL_PYTHON": sys.executable, **env}
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(
            ["make", f"PYTHON={stub}", *args],
            cwd=tmp_path,
            env={**clean, **told},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done, log.read_text().splitlines()

    run.root = tmp_path
    return run


def stamp(make) -> Path:
    return make.root / ".venv" / ".installed"


def test_setup_installs_in_two_calls_and_once(make):
    done, calls = make("setup", "PIP_ARGS=--quiet", "TORCH_SPEC=./torch.whl")
    assert done.returncode == 0, done.stderr
    installs = [call for call in calls if "pip install" in call]
    assert installs == [
        "-m pip install --quiet ./torch.whl -e .[dev]",
        "-m pip install --quiet --no-deps " + " ".join(pins.specs(pins.NO_DEPS)),
    ]
    assert stamp(make).exists()
    assert make("setup")[1] == []


def test_a_failed_installation_is_not_taken_for_done(make):
    done, _ = make("setup", PIP_FAILS="1")
    assert done.returncode != 0 and not stamp(make).exists()
    assert make("setup")[0].returncode == 0 and stamp(make).exists()


def test_changed_pins_install_again(make):
    make("setup")
    newer = stamp(make).stat().st_mtime + 5
    os.utime(make.root / "projects/sa2va/pins.py", (newer, newer))
    done, calls = make("setup", PIP_FAILS="1")
    assert any("pip install" in call for call in calls)
    assert done.returncode != 0 and not stamp(make).exists()


def test_headless_opencv_where_the_other_does_not_load(make):
    _, calls = make("setup", CV2_FAILS="1")
    headless = f"opencv-python-headless=={pins.REQUIRED['opencv-python']}"
    assert f"-m pip install --no-deps --force-reinstall {headless}" in calls


def test_old_python_is_named(make):
    done, _ = make("setup", "PYTHON=/bin/false")
    assert done.returncode == 2
    assert "found: no Python 3.11" in done.stderr and "what to do" in done.stderr


def test_targets_install_first_and_run_what_they_say(make):
    _, calls = make("test", "JOBS=3")
    order = [next(i for i, c in enumerate(calls) if part in c) for part in
             ("-e .[dev]", "ruff check .", "ruff format --check .", "-m pytest")]  # fmt: skip
    assert order == sorted(order)
    assert "-m pytest -n 3 --dist loadfile --no-loadscope-reorder" in calls[-1]
    assert make("demo")[1] == ["tools/run_demo.py"]
    arcade = make("demo-arcade", "ARCADE_ROOT=frames")[1]
    assert arcade == ["tools/run_demo.py --arcade frames"]


def test_help_and_clean_install_nothing(make):
    done, calls = make()
    assert "make setup | demo | test" in done.stdout and calls == []
    assert make("clean")[1] == []

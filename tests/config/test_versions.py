"""The start-up check of package versions, and that setup.py installs the same table."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from importlib import metadata

import pytest

from projects.sa2va import pins, versions
from projects.sa2va.errors import SetupError
from tests.conftest import ROOT


@pytest.fixture
def installed(monkeypatch):
    """A machine with the pinned versions; the test changes entries, None removes a package."""
    table: dict[str, str | None] = {**pins.REQUIRED, **pins.QUANTIZATION, **pins.NO_DEPS}

    def version(name: str) -> str:
        if table.get(name) is None:
            raise metadata.PackageNotFoundError(name)
        return table[name]

    monkeypatch.setattr(versions.metadata, "version", version)
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return table


def test_silent_when_all_agree(installed, capsys):
    installed["torch"] += "+cu130"  # a local build of the same version
    assert versions.check_versions() == []
    assert capsys.readouterr().err == ""


def test_missing_packages_are_all_named_with_their_commands(installed):
    installed |= {"peft": None, "xtuner": None}
    with pytest.raises(SetupError) as caught:
        versions.check_versions()
    error = caught.value
    assert "peft" in error.found and "xtuner" in error.found
    assert f"{sys.executable} -m pip install peft=={pins.REQUIRED['peft']}" in error.fix
    assert f"--no-deps xtuner=={pins.NO_DEPS['xtuner']}" in error.fix


def test_other_version_is_one_line(installed, capsys):
    installed |= {"transformers": "4.57.6", "peft": "0.1"}
    (line,) = versions.check_versions()
    assert "transformers 4.57.6 (expected 5.23.0)" in line and "pip install" in line
    assert "peft 0.1" in line and "\n" not in line
    assert capsys.readouterr().err == line + "\n"


def test_only_the_first_process_speaks(installed, capsys, monkeypatch):
    installed["peft"] = "0.1"
    monkeypatch.setenv("RANK", "1")
    assert versions.check_versions()
    assert capsys.readouterr().err == ""


def test_what_only_some_work_needs(installed):
    installed["bitsandbytes"] = None
    assert versions.check_versions() == []
    with pytest.raises(SetupError, match="bitsandbytes"):
        versions.check_versions(also=["bitsandbytes"])


def test_headless_opencv_serves(installed):
    installed |= {"opencv-python": None, "opencv-python-headless": "5.0.0.93"}
    assert versions.check_versions() == []


def test_old_python(installed, monkeypatch):
    monkeypatch.setattr(versions.sys, "version_info", (3, 10, 1))
    with pytest.raises(SetupError, match=r"3\.11"):
        versions.check_versions()


def test_fast():
    start = time.perf_counter()
    versions.check_versions()
    assert time.perf_counter() - start < 0.5  # 20 ms on an idle core


def test_setup_installs_the_table():
    """setup.py reads the pins without importing the package, and prints its own metadata."""
    code = (
        "import setuptools, runpy\n"
        "setuptools.setup = lambda **kw: print(*kw['install_requires'], "
        "*kw['extras_require']['dev'], 'projects.sa2va.models' in kw['packages'])\n"
        "runpy.run_path('setup.py')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [*pins.specs(pins.REQUIRED), *pins.specs(pins.DEV), "True"]


def test_makefile_reads_the_table():
    done = subprocess.run(
        [sys.executable, "-I", "projects/sa2va/pins.py", "NO_DEPS"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == pins.specs(pins.NO_DEPS)


def test_ci_runs_make_test_with_a_browser():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [ln for ln in lines if not re.match(r"#|set |cd |$", ln)]
    assert commands[0] == "export SA2VA_BROWSER_TESTS=required"
    assert commands[1].startswith("if ! command -v chromium") and commands[-2:] == [
        "fi",
        "make test",
    ]
    assert "set -euo pipefail" in lines

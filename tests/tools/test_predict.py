"""tools/predict.py as a user runs it; what it does is tested in tests/inference."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def predict(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_one_bad_file_among_good_ones(experiment, tmp_path):
    frames = tmp_path / "frames"
    shutil.copytree(experiment.parent / "data" / "test" / "images", frames)
    good = sorted(path.stem for path in frames.iterdir())
    (frames / "bad.png").write_bytes(b"x")
    config = ["--config", experiment, "--checkpoint", "none"]
    done = predict("frames/", *config, "--outputs", "mask", "csv", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert f"{len(good)} images predicted" in done.stdout and "bad.png: " in done.stdout
    out = tmp_path / "predictions" / "frames"
    assert sorted(path.stem for path in (out / "masks").iterdir()) == good


def test_wrong_input_is_said_before_anything_is_loaded(tmp_path):
    done = predict("nowhere/", "--checkpoint", "x.pth", cwd=tmp_path)
    assert done.returncode == 2 and "no file or folder 'nowhere/'" in done.stderr
    done = predict("nowhere/", cwd=tmp_path)
    assert done.returncode == 2 and "neither --config nor --checkpoint" in done.stderr

"""tools/predict.py as a user runs it; what it does is tested in tests/inference."""

from __future__ import annotations

import shutil
import sys

import pytest

from projects.sa2va import inference

from .conftest import Ended, load_tool, run_forked


@pytest.fixture
def refused(monkeypatch, capfd):
    """Calls ``main``, which must end before a model is built."""
    monkeypatch.setattr(inference, "Sa2VAInferencer", lambda *a, **k: pytest.fail("built"))

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tools/predict.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            load_tool("predict").main()
        return Ended(end.value.code, *capfd.readouterr()).err

    monkeypatch.syspath_prepend("tools")
    return run


def test_one_bad_file_among_good_ones(experiment, tmp_path):
    frames = tmp_path / "frames"
    shutil.copytree(experiment.parent / "data" / "test" / "images", frames)
    good = sorted(path.stem for path in frames.iterdir())
    (frames / "bad.png").write_bytes(b"x")
    config = ["--config", experiment, "--checkpoint", "none"]
    done = run_forked("predict", "frames/", *config, "--outputs", "mask", "csv", cwd=tmp_path)
    assert done.code == 1, done.err
    assert f"{len(good)} images predicted" in done.out and "bad.png: " in done.out
    out = tmp_path / "predictions" / "frames"
    assert sorted(path.stem for path in (out / "masks").iterdir()) == good


def test_wrong_input_is_said_before_anything_is_loaded(refused, experiment, tmp_path):
    frames = experiment.parent / "data" / "test" / "images"
    assert "no file or folder 'nowhere/'" in refused("nowhere/", "--checkpoint", "x.pth")
    assert "neither --config nor --checkpoint" in refused(frames)
    assert "did you mean 'mask'" in refused(frames, "--checkpoint", "x", "--outputs", "masks")
    (tmp_path / "predictions.jsonl").write_text("{}\n")
    earlier = refused(frames, "--checkpoint", "x.pth", "--out", tmp_path)
    assert "holds the predictions of an earlier run" in earlier
    both = refused(frames, "--checkpoint", "x.pth", "--skip-existing", "--overwrite")
    assert "not allowed with" in both

"""Sweeps over stand-in tools, which write what the real ones would in a few milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

from projects.sa2va.sweeps import Sweep, read_spec
from projects.sa2va.sweeps.spec import Spec

# One program under three names; orders.json steers it.
STAND_IN = """
import argparse, json, os, pathlib, re, signal, sys, time
name = pathlib.Path(sys.argv[0]).stem
parser = argparse.ArgumentParser()
parser.add_argument("config")
for option in ("work-dir", "seed", "resume", "checkpoint", "split", "threshold", "out", "metric",
               "average", "postprocess"):
    parser.add_argument("--" + option)
parser.add_argument("--metrics", nargs="+")
parser.add_argument("--force", action="store_true")
args = parser.parse_args()
print("cards", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if name == "tune_threshold":
    out = pathlib.Path(args.config).parent / "train" / "best_vessel_dice_iter_4.threshold.json"
    out.write_text("{}")
    sys.exit()
row = pathlib.Path(args.config).parent.name
seed = int(args.seed or re.search(r"seed_(\\d+)", args.work_dir)[1])
orders = json.loads((pathlib.Path(__file__).parent / "orders.json").read_text())
order = orders.get(f"{row}/{seed}/{name}", "")
folder = pathlib.Path(args.work_dir)
folder.mkdir(parents=True, exist_ok=True)
with open(pathlib.Path(__file__).parent / "started.txt", "a") as file:
    file.write(f"{row}/{seed}/{name}/{args.split}\\n")
if order == "fail":
    print("ConfigError\\n  found: a broken thing\\n  expected: a whole one\\n  what to do: mend it")
    sys.exit(2)
if order == "wait":
    def ended(*_):
        (folder / "asked_to_end").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, ended)
    (folder / "waiting").touch()
    time.sleep(60)
if name == "train":
    print("part total trainable dtype MiB")
    print("all                  2,427,761  2,129,696           9.3")
    if order != "leave nothing":
        (folder / "best_vessel_dice_iter_4.pth").write_bytes(b"weights")
        (folder / "iter_4.pth").write_bytes(b"weights")
    data = folder / "20260101_000000" / "vis_data"
    data.mkdir(parents=True, exist_ok=True)
    lines = [{"step": s, "loss": 1.0, "time": 0.5, "memory/reserved": 3.0 + s} for s in (2, 4)]
    (data / "scalars.json").write_text("".join(json.dumps(line) + "\\n" for line in lines))
else:
    rows = [{"frame": f"f{k}", "phrase": "vessel", "patient": f"P{k // 2}", "truth": str(k),
             "spacing_mm": None, "dice": 0.1 * k + 0.01 * seed + 0.001 * len(row), "hd95": None}
            for k in range(6)]
    if order == "other frames":
        rows = rows[:-1]
    report = {"per_frame": rows, "metrics": ["dice", "hd95"], "valid": True,
              "invalid_because": [], "split": "s", "threshold": 0.5,
              "threshold_rule": "probability >= threshold", "centreline_tolerance_px": 2.0}
    pathlib.Path(args.out, "metrics.json").write_text(json.dumps(report))
"""
CONFIG = """
train_cfg = dict(max_iters=4)
default_hooks = dict(checkpoint=dict(save_best="vessel/dice"))
key = {key}
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Folder of the stand-in tools, what they are told to do, and a list of what was started."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("train", "test", "tune_threshold"):
        (folder / f"{name}.py").write_text(STAND_IN)
    (folder / "orders.json").write_text("{}")
    (folder / "started.txt").touch()
    return folder


@pytest.fixture
def order(tools: Path) -> Callable[..., None]:
    """``order({"a/0/train": "fail"})``: what a stand-in does."""
    return lambda orders: (tools / "orders.json").write_text(json.dumps(orders)) and None


@pytest.fixture
def started(tools: Path) -> Callable[[], list[str]]:
    """What was started since the last call."""

    def take() -> list[str]:
        lines = (tools / "started.txt").read_text().split()
        (tools / "started.txt").write_text("")
        return lines

    return take


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[..., Spec]:
    """Reads a sweep of two rows, ``a`` (baseline) and ``bb``, and two seeds."""

    def make(**changes: object) -> Spec:
        content = {
            "config": "base.py",
            "rows": {"a": {}, "bb": {"options": {"key": 2}}},
            "seeds": [0, 1],
            "baseline": "a",
            **changes,
        }
        path = tmp_path / "spec.py"
        path.write_text("".join(f"{key} = {value!r}\n" for key, value in content.items()))
        return read_spec(path)

    return make


@pytest.fixture
def make_sweep(
    tmp_path: Path, tools: Path, make_spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Sweep]:
    """A sweep over the stand-in tools; ``keys`` is ``key`` in the config of each row."""
    from projects.sa2va.sweeps import steps

    # The stand-ins' config is none of ours; everything else about freezing it is real.
    monkeypatch.setattr(steps, "load_config", Config.fromfile)

    def make(
        keys: tuple[int, int] = (1, 2), jobs: int = 1, gpus: int = 1, **changes: object
    ) -> Sweep:
        spec = make_spec(**changes)
        configs = {}
        for row, key in zip(spec.rows, keys, strict=False):
            path = tmp_path / f"stand_in_{row.name}.py"
            path.write_text(CONFIG.format(key=key))
            configs[row.name] = Config.fromfile(path)
        return Sweep(
            spec, configs, tmp_path / "work", jobs=jobs, gpus_per_run=gpus, tools=tools
        )  # fmt: skip

    return make

"""A recipe run for real, for a few steps: what it takes, beside what was predicted.

The product's own path in child processes: tools/train.py (by tools/dist.sh for several cards), then
tools/test.py; the model at its sizes with random weights, synthetic frames, nothing downloaded.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from projects.sa2va.columns import columns
from projects.sa2va.config import dump_config, load_config
from projects.sa2va.datasets.synthetic import write_dataset
from projects.sa2va.errors import ConfigError, SetupError
from projects.sa2va.planning import Plan, Request
from projects.sa2va.planning.model import with_sizes
from projects.sa2va.planning.sizes import ROOT

from .memory import GIB, memory_hook

_SYNTHETIC = ROOT / "configs/_base_/datasets/synthetic.py"
_SPLITS = ("train", "val", "test")


@HOOKS.register_module()
class PeakHook(Hook):
    """Writes the peak memory of each process into a folder, a file a process and kind of work.

    Args:
        folder: where to.
    """

    priority = "ABOVE_NORMAL"  # after MemoryHook, before the logger takes its peaks

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._reserved = self._allocated = 0

    def after_train_iter(self, runner: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Notes the peak of the step; the file is written in each, in case the next one fails."""
        hook = memory_hook(runner)
        recorded = hook is not None and hook.recorder is not None
        self._note("training", hook.recorder.highest() if recorded else 0)

    def after_test_iter(self, runner: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Notes the peak of the prediction."""
        allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        self._note("inference", allocated)

    def _note(self, kind: str, allocated: int) -> None:
        if torch.cuda.is_available():
            self._reserved = max(self._reserved, torch.cuda.memory_reserved())
        self._allocated = max(self._allocated, allocated)
        row = {
            "peak_reserved_gib": self._reserved / GIB,
            "peak_allocated_gib": self._allocated / GIB,
            # Linux counts it in KiB.
            "host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        rank = os.environ.get("RANK", "0")
        (self.folder / f"{kind}_{rank}.json").write_text(json.dumps(row))


@dataclass(frozen=True)
class Measured:
    """What a dry run took beside what was planned, a row for training and one for inference."""

    rows: list[dict[str, Any]]

    def text(self) -> str:
        """A table, in GiB."""
        if not torch.cuda.is_available():
            lines = ["no CUDA here: memory of a card cannot be measured; the host's peak instead"]
            table = [("dry run", "predicted host", "measured host")]
            table += [
                (row["case"], f"{row['predicted_host_gib']:.2f}", f"{row['host_gib']:.2f}")
                for row in self.rows
            ]
            return "\n".join([*lines, *columns(table, right=(1, 2))])
        table = [("dry run, GiB", "predicted", "reserved", "allocated", "difference", "host")]
        for row in self.rows:
            off = row["predicted_gib"] / row["peak_reserved_gib"] - 1
            table.append(
                (
                    row["case"],
                    *(f"{row[key]:.2f}" for key in ("predicted_gib", "peak_reserved_gib")),
                    f"{row['peak_allocated_gib']:.2f}",
                    f"{off:+.1%}",
                    f"{row['host_gib']:.2f}",
                )
            )
        return "\n".join(columns(table, right=range(1, 6)))


def dry_run(
    config: str, options: Mapping[str, Any], request: Request, steps: int, plan: Plan
) -> Measured:
    """Trains ``steps`` optimiser steps and tests, in child processes.

    Args:
        config: config file.
        options: overrides.
        request: cards and frames.
        steps: optimiser steps.
        plan: what was predicted.

    Raises:
        ConfigError: no step.
        SetupError: a child failed; the end of its output is in the message.
    """
    if steps < 1:
        raise ConfigError(found=f"--dry-run {steps}", expected="at least 1 step", fix="--dry-run 3")
    trains = any(section.key == "training" for section in plan.sections)
    with tempfile.TemporaryDirectory(prefix="sa2va_dry_run_") as folder:
        work = Path(folder)
        path = work / "dry_run.py"
        cfg = _recipe(load_config(config, options), request, steps, work)
        dump_config(cfg, path)
        if trains:
            _child(*_training_command(path, work, request, plan))
        test = [sys.executable, str(ROOT / "tools/test.py"), str(path), "--checkpoint", "none"]
        _child([*test, "--work-dir", str(work / "test")], {})
        rows = [_row(kind, work, plan) for kind in ("training", "inference")
                if trains or kind == "inference"]  # fmt: skip
    return Measured(rows)


def _recipe(cfg: Config, request: Request, steps: int, work: Path) -> Config:
    """The config with random weights, synthetic frames and so many steps."""
    count = max(
        request.gpus * (cfg.get(f"{split}_dataloader") or {}).get("batch_size", 1)
        for split in _SPLITS
    )
    frames = dict.fromkeys(_SPLITS, max(2, 2 * count))
    write_dataset(work / "frames", frames, size=request.frame_size, progress=False)
    plain = cfg.to_dict()
    plain["data_root"] = str(work / "frames")
    plain["load_from"] = plain["init_from"] = None
    synthetic = Config.fromfile(_SYNTHETIC)
    for split in _SPLITS:
        key = f"{split}_dataloader"
        if plain.get(key):
            dataset = synthetic[key].dataset.to_dict()
            own = plain[key]["dataset"]
            kept = {name: own[name] for name in ("augment", "skeletons") if own.get(name)}
            plain[key]["dataset"] = {**dataset, **kept}
    processor = plain["model"]["processor"]
    plain["model"] = with_sizes(plain["model"])
    # Linked again when the config is loaded.
    plain["processor"] = plain["model"].pop("processor", processor)
    packed = plain["model"]["mllm"].get("quantization") is not None
    device = "cuda" if torch.cuda.is_available() and request.gpus == 1 and not packed else "cpu"
    plain["model"]["mllm"]["init_device"] = plain["model"]["grounding"]["init_device"] = device
    if plain.get("train_cfg"):
        iterations = steps * (plain.get("optim_wrapper") or {}).get("accumulative_counts", 1)
        plain["train_cfg"] |= {"max_iters": iterations, "val_interval": iterations}
        plain["param_scheduler"] = []
        plain["default_hooks"]["checkpoint"] |= {"interval": iterations, "save_best": None}
        plain["default_hooks"]["logger"]["interval"] = 1
    (work / "peaks").mkdir()
    imports = plain.setdefault("custom_imports", {"imports": [], "allow_failed_imports": False})
    imports["imports"] = [*imports["imports"], __name__]
    plain["custom_hooks"] = [
        *(plain.get("custom_hooks") or []),
        {"type": "PeakHook", "folder": str(work / "peaks")},
    ]
    return Config(plain)


def _training_command(
    path: Path, work: Path, request: Request, plan: Plan
) -> tuple[list[str], dict[str, str]]:
    out = ["--work-dir", str(work / "train")]
    strategy = plan.strategy
    if request.gpus == 1 and not strategy.deepspeed:
        return [sys.executable, str(ROOT / "tools/train.py"), str(path), *out], {}
    environment = {"PYTHON": sys.executable}
    if strategy.name == "fsdp2":
        environment["STRATEGY"] = "fsdp2"
    if strategy.deepspeed:
        name = strategy.name
        known = (ROOT / f"configs/deepspeed/deepspeed_{name}.json").is_file()
        environment["DEEPSPEED"] = f"deepspeed_{name}" if known else name
    launch = ["bash", str(ROOT / "tools/dist.sh"), "train", str(path), str(request.gpus)]
    return [*launch, *out], environment


def _child(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = "\n    ".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise SetupError(
            found=f"the dry run failed ({' '.join(command[-4:])}):\n    {tail}",
            expected="a recipe that runs on this machine",
            fix="mend what the last lines say; without --dry-run the plan alone is made",
        )


def _row(kind: str, work: Path, plan: Plan) -> dict[str, Any]:
    files = sorted((work / "peaks").glob(f"{kind}_*.json"))
    rows = [json.loads(file.read_text()) for file in files]
    highest = {key: max(row[key] for row in rows) for key in rows[0]}
    section = plan.section(kind)
    return {
        "case": kind,
        "predicted_gib": section.peak / GIB,
        "predicted_allocated_gib": section.allocated / GIB,
        "predicted_host_gib": plan.host.peak / GIB,
        **highest,
    }

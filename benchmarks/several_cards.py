"""Memory, speed and checkpoints of training on several cards, by strategy, at true size.

    python benchmarks/load_true_size.py --size 8b --work-dir work_dirs/true_size --stages write
    python benchmarks/several_cards.py --gpus 4 --data work_dirs/bench_data \\
        --weights work_dirs/true_size/released_8b --memory-gib 23.68 --out results.json

Every case is a run of ``tools/dist.sh train`` on weights that are read from files, as a user's are
(``load_true_size.py`` writes them: random numbers in the released format). Each process is capped
by ``memory_budget_gib``. Card memory is the highest of all processes and iterations as the run logs
it; host memory is that of all processes together, pages that they share counted once, sampled
every few seconds. Each run ends with a checkpoint. Prints a table; ``--out`` writes JSON too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
CONFIG = "benchmarks/configs/true_size_files.py"


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        strategy: of the environment of tools/dist.sh (``DEEPSPEED``, ``STRATEGY``).
        options: overrides of the config.
        resume_of: case whose checkpoint this one goes on from, with half of its cards.
    """

    strategy: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    resume_of: str | None = None


def _zero(name: str, **options: Any) -> Case:
    return Case({"DEEPSPEED": f"deepspeed_zero{name}"}, options)


_512 = {"processor.image_size": 512}
_R128 = {"model.mllm.lora.r": 128, "model.mllm.lora.lora_alpha": 256}
_NF4 = {"model.mllm.quantization": "nf4"}
CASES = {
    "ddp": Case(),
    "ddp, NF4": Case({}, _NF4),
    "fsdp2": Case({"STRATEGY": "fsdp2"}),
    "fsdp2, batch 8": Case({"STRATEGY": "fsdp2"}, {"train_dataloader.batch_size": 8}),
    "zero2": _zero("2"),
    "zero2, r=128": _zero("2", **_R128),
    "zero2, NF4": _zero("2", **_NF4),
    "zero2 offload": _zero("2_offload"),
    "zero3": _zero("3"),
    "zero3 offload": _zero("3_offload"),
    "zero2, 512": _zero("2", **_512),
    "zero2 offload, 512": _zero("2_offload", **_512),
    "zero3 offload, 512": _zero("3_offload", **_512),
    "zero3 offload on half of the cards, resumed": Case(
        {"DEEPSPEED": "deepspeed_zero3_offload"},
        {"train_dataloader.batch_size": 2},
        resume_of="zero3 offload",
    ),
}


class HostMemory(threading.Thread):
    """Samples the proportional memory of a process and all its children."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.anonymous, self.done = pid, 0, 0, threading.Event()

    def run(self) -> None:
        """Until ``done`` is set."""
        import psutil

        while not self.done.wait(3.0):
            total = anonymous = 0
            try:
                children = psutil.Process(self.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                return
            for child in children:
                try:
                    rollup = Path(f"/proc/{child.pid}/smaps_rollup").read_text()
                except OSError:
                    continue  # it has ended
                pss = {x.split(":")[0]: int(x.split()[1]) * 1024 for x in rollup.splitlines()[1:]}
                total += pss["Pss"]
                anonymous += pss.get("Pss_Anon", 0) + pss.get("Pss_Shmem", 0)
            self.peak, self.anonymous = max(self.peak, total), max(self.anonymous, anonymous)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one case; returns what its log says."""
    case = CASES[name]
    gpus = args.gpus // 2 if case.resume_of else args.gpus
    iterations = args.iterations * (2 if case.resume_of else 1)
    work_dir = Path(args.work_dir, (case.resume_of or name).replace(" ", "_").replace(",", ""))
    settings = {
        "train_cfg.max_iters": iterations,
        "default_hooks.logger.interval": 1,
        "default_hooks.checkpoint.interval": args.iterations,
        "default_hooks.checkpoint.save_best": None,
        **({"memory_budget_gib": args.memory_gib} if args.memory_gib else {}),
        **case.options,
    }
    command = ["bash", "tools/dist.sh", "train", args.config, str(gpus)]
    command += ["--work-dir", str(work_dir)] + (["--resume"] if case.resume_of else [])
    command += ["--cfg-options", *(f"{key}={value}" for key, value in settings.items())]
    environment = {
        "PYTHON": sys.executable,
        "SYNTHETIC_ROOT": str(Path(args.data).resolve()),
        "TRUE_SIZE_WEIGHTS": str(Path(args.weights).resolve()),
        **case.strategy,
    }
    start = time.time()
    log = work_dir.with_suffix(".resumed.txt" if case.resume_of else ".txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        child = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=file, stderr=file
        )
        host = HostMemory(child.pid)
        host.start()
        status = child.wait()
        host.done.set()
    if status:
        lines = [x for x in log.read_text(errors="replace").splitlines() if "rror" in x]
        return {"case": name, "failed": (lines or [f"exit status {status}"])[-1].strip()[:300]}
    newest = sorted(work_dir.glob("*/vis_data/scalars.json"))[-1]
    rows = [json.loads(line) for line in newest.read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    parts = [key for key in rows[-1] if key.startswith("memory/")]
    checkpoint = work_dir / f"iter_{iterations}.pth"
    return {
        "case": name,
        "gpus": gpus,
        "losses": [row["loss"] for row in rows],
        "first_reserved_gib": rows[0].get("memory/reserved"),
        "peak_reserved_gib": max((row.get("memory/reserved", 0) for row in rows), default=None),
        "peak_allocated_gib": max(row.get("memory", 0) for row in rows) / 1024,
        "memory": {key: max(row[key] for row in rows) for key in parts},
        "seconds": min(row["time"] for row in rows[1:]),
        "total_seconds": time.time() - start,
        "host_gib": host.peak / GIB,
        "host_anonymous_gib": host.anonymous / GIB,
        "checkpoint_mb": checkpoint.stat().st_size / 1e6,
        "memory_cap_gib": args.memory_gib,
        **asdict(case),
    }


def main() -> None:
    """Runs the cases and prints the table."""
    parser = argparse.ArgumentParser(description="Training on several cards at true size.")
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--data", required=True, help="folder written by tools/make_synthetic.py")
    parser.add_argument("--weights", required=True, help="folder written by load_true_size.py")
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--memory-gib", type=float, help="cap of each process's card memory")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--work-dir", default="work_dirs/several_cards")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", help="JSON file")
    args = parser.parse_args()
    rows = []
    print("| case | reserved | allocated | first iteration | s/iteration | host | checkpoint |")
    print("|---|---|---|---|---|---|---|")
    for case in args.cases:
        row = measure(case, args)
        rows.append(row)
        if "failed" in row:
            print(f"| {case} | failed: {row['failed']} | | | | | |", flush=True)
        else:
            print(
                f"| {case} | {row['peak_reserved_gib']:.2f} GiB | "
                f"{row['peak_allocated_gib']:.2f} GiB | {row['first_reserved_gib'] or 0:.2f} GiB | "
                f"{row['seconds']:.2f} | {row['host_gib']:.1f} GiB | "
                f"{row['checkpoint_mb']:,.0f} MB |",
                flush=True,
            )
        if args.out:
            Path(args.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

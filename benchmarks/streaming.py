"""Whether memory grows, and whether a kill loses anything, over thousands of images.

    python benchmarks/streaming.py --images 10000

Writes so many small synthetic frames (kinds of them, under many names), predicts them with a tiny
model (random weights) to masks, CSV and RLE, and notes the memory of the process on the way. With
``--kill`` the run is killed (SIGKILL) half-way and started again with ``--skip-existing``; the
tables must then be those of a run that was not killed. CPU only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
KINDS = 20  # different frames
CONFIG = ROOT / "projects" / "sa2va" / "configs" / "sa2va_demo.py"
OPTIONS = {"processor.image_size": 64, "test_dataloader.batch_size": 16}


def write_frames(folder: Path, count: int) -> None:
    """``count`` files of 64 x 64 px."""
    from projects.sa2va.datasets.synthetic import AngiogramParams, write_dataset

    write_dataset(
        folder / "data", {"test": KINDS}, size=64, params=AngiogramParams(), progress=False
    )
    kinds = [p.read_bytes() for p in sorted((folder / "data" / "test" / "images").iterdir())]
    (folder / "frames").mkdir()
    for number in range(count):
        (folder / "frames" / f"{number:05d}.png").write_bytes(kinds[number % len(kinds)])


def predict(folder: Path, out: Path, resume: bool) -> list[dict[str, Any]]:
    """Predicts in this process; memory after each tenth, a row each."""
    import psutil

    from projects.sa2va.inference import Sa2VAInferencer
    from projects.sa2va.inference.folder import predict_folder
    from projects.sa2va.inference.journal import Journal

    rows: list[dict[str, Any]] = []
    add, process, seen = Journal.add, psutil.Process(), 0
    total = len(list((folder / "frames").iterdir()))
    step = max(1, total // 10)

    def watched(self: Journal, result: Any) -> None:
        nonlocal seen
        add(self, result)
        seen += 1
        if seen % step == 0:
            rows.append({"images": seen, "rss_mib": process.memory_info().rss / 2**20})
            print("ROW " + json.dumps(rows[-1]), flush=True)

    Journal.add = watched
    inferencer = Sa2VAInferencer(CONFIG, "none", device="cpu", cfg_options=OPTIONS)
    start = time.perf_counter()
    done = predict_folder(
        inferencer,
        folder / "frames",
        "blood vessel",
        out,
        outputs=("mask", "csv", "rle"),
        skip_existing=resume,
        progress=False,
    )
    rate = done.predicted / (time.perf_counter() - start)
    print(f"DONE {done.predicted} predicted, {done.skipped} kept, {rate:.0f} images/s", flush=True)
    return rows


def without_times(path: Path) -> list[str]:
    """Lines of predictions.csv without the seconds, sorted."""
    import csv

    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted(json.dumps({k: v for k, v in row.items() if k != "seconds"}) for row in rows)


def main() -> int:
    """Measures; exit status 1 where memory grew by more than 5 % or something was lost."""
    parser = argparse.ArgumentParser(description="Memory over thousands of images.")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--kill", action="store_true", help="kill the run half-way, and go on")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        predict(*args.one, args.resume)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_frames(folder, args.images)
        rows = run(folder, "whole")
        print("| images | memory of the process, MiB |\n|---|---|")
        for row in rows:
            print(f"| {row['images']} | {row['rss_mib']:.0f} |")
        growth = rows[-1]["rss_mib"] / rows[1]["rss_mib"] - 1
        print(f"from the second to the last: {growth:+.1%}")
        lost = None
        if args.kill:
            run(folder, "killed", kill_at=args.images // 2)
            run(folder, "killed", resume=True)
            whole, other = (
                without_times(folder / n / "predictions.csv") for n in ("whole", "killed")
            )
            lost = len(set(whole) ^ set(other))
            print(f"killed half-way and resumed: {lost} of {len(whole)} lines differ")
        if args.out:
            content = {"rows": rows, "growth": growth, "lines_that_differ_after_a_kill": lost}
            args.out.write_text(json.dumps(content, indent=1))
        return int(growth > 0.05 or bool(lost))


def run(
    folder: Path, out: str, *, resume: bool = False, kill_at: int | None = None
) -> list[dict[str, Any]]:
    """One process; killed when it has predicted ``kill_at`` images."""
    command = [sys.executable, __file__, "--one", str(folder), str(folder / out)]
    process = subprocess.Popen(
        [*command, *(["--resume"] if resume else [])], stdout=subprocess.PIPE, text=True
    )
    rows = []
    for line in process.stdout:
        if line.startswith("ROW "):
            rows.append(json.loads(line[4:]))
            if kill_at is not None and rows[-1]["images"] >= kill_at:
                os.kill(process.pid, signal.SIGKILL)
                break
        elif line.startswith("DONE "):
            print(f"{out}: {line[5:].strip()}", flush=True)
    if process.wait() and kill_at is None:
        raise SystemExit(f"{out} ended with status {process.returncode}")
    return rows


if __name__ == "__main__":
    sys.exit(main())

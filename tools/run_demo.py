"""The whole job in one go: data, training, test, pictures. What ``make demo`` runs.

python tools/run_demo.py                      synthetic angiograms, tiny model
python tools/run_demo.py --arcade FOLDER      real angiograms (ARCADE), tiny model
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import _bootstrap

from projects.sa2va.errors import SetupError, exit_on_user_error

CONFIGS = _bootstrap.ROOT / "projects" / "sa2va" / "configs"
FRAMES = {"train": 128, "val": 16, "test": 32}
REQUIRED_DICE = 0.70


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Data, training, test and pictures in one go.")
    parser.add_argument("--arcade", metavar="FOLDER", help="folder with train/, val/ and test/")
    parser.add_argument("--work-dir", help="output folder (default: work_dirs/demo or demo_arcade)")
    parser.add_argument("--cfg-options", nargs="+", default=[], help="overrides of the config")
    return parser.parse_args()


def make_data(folder: Path) -> None:
    """Writes the synthetic frames, or finds them there from an earlier run."""
    from projects.sa2va.datasets.synthetic import write_dataset

    written = write_dataset(folder, FRAMES, size=256, seed=0, workers=os.cpu_count() or 1)
    print(f"{'Wrote' if written else 'Found'} synthetic angiograms in {folder}: {FRAMES}")


def run(tool: str, *arguments: object, environment: dict[str, str]) -> float:
    """Runs one of our tools as a user would; returns the seconds it took."""
    command = [sys.executable, str(_bootstrap.ROOT / "tools" / tool), *map(str, arguments)]
    shown = " ".join(["python", f"tools/{tool}", *map(str, arguments)])
    print("\n$ " + shown.replace(f"{_bootstrap.ROOT}/", ""), flush=True)
    start = time.time()
    subprocess.run(command, check=True, env={**os.environ, **environment})
    return time.time() - start


def read_metrics(folder: Path) -> dict:
    """Results of a test run."""
    return json.loads((folder / "metrics.json").read_text())


@exit_on_user_error
def main() -> None:
    """Runs the job and prints where its results are."""
    args = parse_args()
    name = "demo_arcade" if args.arcade else "demo"
    base = Path(args.work_dir or f"work_dirs/{name}")
    work = base / time.strftime("%Y%m%d_%H%M%S")
    config = CONFIGS / ("sa2va_arcade.py" if args.arcade else "sa2va_demo.py")
    if args.arcade:
        root = Path(args.arcade)
        if not (root / "train").is_dir():
            raise SetupError(
                found=f"no folder {root / 'train'}",
                expected="the ARCADE frames: train/, val/ and test/ with images/ and annotations/",
                fix="make demo-arcade ARCADE_ROOT=<that folder>",
            )
        environment = {"ARCADE_ROOT": str(root.resolve())}
    else:
        data = base / "data"
        make_data(data)
        environment = {"SYNTHETIC_ROOT": str(data.resolve())}

    # On a CPU, training uses every core; the data workers need little.
    environment.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    options = ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    before, after = work / "untrained", work / "results"
    run("test.py", config, "--checkpoint", "none", "--work-dir", work, "--out", before,
        *options, environment=environment)  # fmt: skip
    seconds = run("train.py", config, "--work-dir", work, *options, environment=environment)
    checkpoint = sorted(work.glob("best_vessel_dice_*.pth"))[-1]
    run("test.py", config, "--checkpoint", checkpoint, "--work-dir", work, "--out", after,
        *options, environment=environment)  # fmt: skip

    untrained, trained = (read_metrics(folder)["mean"]["dice"] for folder in (before, after))
    print(f"\nTrained for {seconds / 60:.1f} min.")
    print(f"Dice on held-out frames: {trained:.3f} (untrained model: {untrained or 0.0:.3f})")
    print(f"Metrics:  {after / 'metrics.json'}  and  {after / 'per_frame.csv'}")
    print(f"Pictures: {after / 'pictures'}")
    print(f"Page:     {after / 'report.html'}")
    print(f"Weights:  {checkpoint}")
    if not args.arcade and trained < REQUIRED_DICE:
        raise SystemExit(f"Dice {trained:.3f} is below the {REQUIRED_DICE} that the demo promises")


if __name__ == "__main__":
    main()

"""How long scoring takes: the evaluator on frames that a model would hand it.

    python benchmarks/metrics_speed.py [--frames 1220] [--size 512] [--cases CASE ...]

Each case feeds the evaluator all frames of a set of synthetic angiograms and lets it score them,
with the oracle of a 256 x 256 grid and 2,000 bootstrap resamples; no maps or masks are written.
Predictions are the truth blurred and shifted, with smooth noise: outlines as ragged as those of a
trained model. The time of starting the scoring processes is part of the case.

Prints a table; writes it as JSON to benchmarks/results/metrics_speed.json (``--out``). Wall time is
only worth something on an idle machine: the load before each case is part of the result. CPU time,
which depends less on it, is given where all work is done in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from scipy import ndimage  # noqa: E402

from projects.sa2va.columns import columns  # noqa: E402
from projects.sa2va.datasets.synthetic.render import render  # noqa: E402
from projects.sa2va.evaluation import VesselMetric  # noqa: E402
from projects.sa2va.files import write_atomic  # noqa: E402
from projects.sa2va.models.outputs import Prediction  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "fast, in the loop": dict(metric_set="fast", workers=0),
    "all, in the loop": dict(metric_set="all", workers=0),
    "all, 1 process": dict(metric_set="all", workers=1),
    "all, 2 processes": dict(metric_set="all", workers=2),
}
FRAMES_A_PATIENT = 10
_DISTINCT = 24  # frames that are rendered; more add nothing but time


def make_frames(size: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(truth uint8 [1, size, size], map float32 [1, size, size]), rendered once."""
    frames, rng = [], np.random.default_rng(0)
    for number in range(count):
        truth = render(0, size, patient=number)[1]
        blurred = ndimage.gaussian_filter(np.roll(truth, 1, axis=0).astype(np.float32), 1.5)
        noise = ndimage.gaussian_filter(rng.standard_normal(truth.shape).astype(np.float32), 3)
        map_ = np.clip(blurred + 0.15 * noise / noise.std(), 0, 1)
        frames.append((torch.from_numpy(truth)[None], torch.from_numpy(map_)[None]))
    return frames


def measure(
    frames: list[tuple[torch.Tensor, torch.Tensor]], number: int, case: dict[str, Any]
) -> dict[str, float | None]:
    """Scores ``number`` frames; seconds and load."""
    load = os.getloadavg()[0]
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as out:
        metric = VesselMetric(
            threshold=0.5,
            out_dir=out,
            save_probabilities="none",
            save_masks=False,
            pictures=None,
            **case,
        )
        metric.set_grid((256, 256))
        for index in range(number):
            truth, map_ = frames[index % len(frames)]
            meta = {
                "index": index,
                "frame": f"f{index}",
                "patient": f"p{index // FRAMES_A_PATIENT}",
                "phrases": ["blood vessel"],
                "image_path": "",
                "spacing": (0.3, 0.3),
            }
            prediction = Prediction(map_, ["Sure, [SEG]."], [True])
            metric.process({"truth": [truth], "meta": [meta]}, [prediction])
        dice = metric.evaluate(number)["vessel/dice"]
    wall, own = time.perf_counter() - start, time.process_time() - cpu
    # The scoring processes are children of the fork server, whose time is not ours to read.
    alone = None if case["workers"] else own
    return {"wall_s": wall, "cpu_s": alone, "load_before": load, "dice": dice}


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def main() -> None:
    """Measures every case, prints and writes the table."""
    parser = argparse.ArgumentParser(description="Time the metrics.")
    parser.add_argument("--frames", type=int, default=1220, help="frames of the set")
    parser.add_argument("--size", type=int, default=512, help="pixels per side")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--repeat", type=int, default=1, help="the fastest of so many runs counts")
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results/metrics_speed.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    MMLogger.get_instance("speed", logger_name="speed", log_level="ERROR")
    frames = make_frames(args.size, _DISTINCT)
    results = {}
    for name in args.cases:
        runs = [measure(frames, args.frames, CASES[name]) for _ in range(args.repeat)]
        results[name] = min(runs, key=lambda run: run["wall_s"])
        print(f"{name}: {results[name]['wall_s']:.1f} s", flush=True)
    rows = [
        (name, *(_cell(run[key]) for key in ("wall_s", "cpu_s", "load_before")))
        for name, run in results.items()
    ]
    head = ("case", "wall s", "CPU s", "load before")
    print("\n".join(columns([head, *rows], right=(1, 2, 3))))
    content = {
        "frames": args.frames,
        "size": args.size,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "cases": results,
    }
    text = json.dumps(content, indent=1) + "\n"
    write_atomic(Path(args.out), lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()

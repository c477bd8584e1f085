"""How long a synthetic angiogram takes, on one core.

    python benchmarks/synthetic_speed.py [--frames 40] [--size 512] [--image-dir FOLDER]

Renders frames by the generator of SyntheticVesselDataset, by the renderer of
tools/make_synthetic.py and, with ``--image-dir``, with real grounds from that folder. Each frame is
rendered three times and its fastest CPU time counts, so that other work on the machine disturbs
little.

Prints a table of the mean, the median and the slowest frame in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from projects.sa2va.columns import columns  # noqa: E402
from projects.sa2va.datasets.synthetic import (  # noqa: E402
    PretrainingParams,
    RealBackground,
    render,
    render_frame,
)
from projects.sa2va.processing.processor import Sa2VAProcessor  # noqa: E402

_REPEATS = 3
_SLOW_FRAMES = 10  # of the exact renderer: more add nothing but time


def milliseconds(render_one: Callable[[int], object], frames: int) -> np.ndarray:
    """The fastest CPU time of each frame, float64 [frames] in ms."""
    render_one(0)
    times = np.empty((frames, _REPEATS))
    for frame in range(frames):
        for repeat in range(_REPEATS):
            start = time.process_time()
            render_one(frame)
            times[frame, repeat] = time.process_time() - start
    return 1e3 * times.min(axis=1)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Measure the synthetic generators.")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--image-dir", help="folder of real frames to put vessels on")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    params, size = PretrainingParams(), args.size
    cases = {
        "on the fly": (lambda i: render_frame([0, i], size, params), args.frames),
        "make_synthetic.py": (lambda i: render(0, size, frame=i), min(args.frames, _SLOW_FRAMES)),
    }
    if args.image_dir:
        ground = RealBackground(args.image_dir, share=1.0)
        ground.open(processor=Sa2VAProcessor(tokenizer={"type": "byte_level"}))

        def on_real(index: int) -> object:
            drawn = ground.draw(np.random.default_rng(index), size)
            return render_frame([0, index], size, params, drawn)

        cases["on the fly, real ground kept"] = (on_real, args.frames)
    rows = [("generator", "mean ms", "median ms", "slowest ms")]
    for name, (render_one, frames) in cases.items():
        found = milliseconds(render_one, frames)
        numbers = (found.mean(), np.median(found), found.max())
        rows.append((name, *(f"{number:.1f}" for number in numbers)))
    print("\n".join(columns(rows)))


if __name__ == "__main__":
    main()

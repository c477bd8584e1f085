"""Writes a set of synthetic coronary angiograms in COCO layout.

    python tools/make_synthetic.py data/synthetic --train 64 --val 16 --test 32 --size 256

A complete set with the same parameters is left as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

if __package__ in (None, "") and (ROOT := str(Path(__file__).resolve().parents[1])) not in sys.path:
    # Run as a script without installation; appended, so that an installed package comes first.
    sys.path.append(ROOT)

from projects.sa2va.datasets.synthetic import AngiogramParams, write_dataset
from projects.sa2va.errors import exit_on_user_error


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    default = AngiogramParams()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--train", type=int, default=64, help="frames (default 64; 0: no split)")
    parser.add_argument("--val", type=int, default=16, help="frames (default 16)")
    parser.add_argument("--test", type=int, default=32, help="frames (default 32)")
    parser.add_argument("--size", type=int, default=256, help="pixels per side (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames-per-patient", type=int, default=4, help="default 4")
    parser.add_argument(
        "--difficulty",
        type=float,
        default=default.difficulty,
        help=f"0 (clean) to 1 (noisy, faint, many distractors); default {default.difficulty}",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a synthetic set made with other parameters",
    )
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    frames = {"train": args.train, "val": args.val, "test": args.test}
    written = write_dataset(
        args.out,
        frames,
        size=args.size,
        seed=args.seed,
        frames_per_patient=args.frames_per_patient,
        params=dataclasses.replace(AngiogramParams(), difficulty=args.difficulty),
        overwrite=args.overwrite,
        workers=args.workers,
    )
    counts = ", ".join(f"{split} {count}" for split, count in frames.items() if count)
    print(f"{args.out}: {counts} frames, {'written' if written else 'already there'}")


if __name__ == "__main__":
    main()

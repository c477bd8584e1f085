"""Compares results folders: paired differences with intervals, p-values and effect sizes.

    python tools/compare.py RUN_A RUN_B ... [--metrics dice cldice] [--out FILE.md]

Refused where the runs were scored on different frames, labels or by different rules.
"""

from __future__ import annotations

import argparse

import _bootstrap  # noqa: F401

from projects.sa2va.errors import ConfigError, exit_on_user_error
from projects.sa2va.evaluation.compare import Run, compare_runs
from projects.sa2va.evaluation.comparison_text import as_text, check_format, write_comparison


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare results folders of tools/test.py.")
    parser.add_argument("runs", nargs="+", help="results folders (with metrics.json)")
    parser.add_argument("--metrics", nargs="+", help="names (default: all that the runs have)")
    parser.add_argument("--resamples", type=int, default=10_000, help="bootstrap and permutations")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws")
    parser.add_argument("--out", help="file for the result: .md, .csv or .json")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Reads, compares, prints."""
    args = parse_args()
    if args.resamples < 1 or args.seed < 0:
        raise ConfigError(
            found=f"--resamples {args.resamples} --seed {args.seed}",
            expected="1 resample or more, a seed from 0",
            fix="--resamples 10000 --seed 0",
        )
    if args.out:
        check_format(args.out)
    runs = Run.read_all(args.runs)
    comparison = compare_runs(runs, args.metrics, resamples=args.resamples, seed=args.seed)
    print(as_text(comparison), end="")
    if args.out:
        write_comparison(comparison, args.out)


if __name__ == "__main__":
    main()

"""Trains and tests the rows of an ablation with several seeds, and makes a table of them.

    python tools/sweep.py SPEC [--work-dir DIR] [--dry-run | --tables-only] [--only NAME ...]
                               [--jobs N] [--gpus-per-run N]

SPEC is a Python file in the style of the configs: configs/sweeps/demo_lora_rank.py. The same
command again goes on where it stopped. Exit status 1: some runs failed; 143: it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _bootstrap  # noqa: F401

from projects.sa2va.engine.stopping import EXIT_STATUS
from projects.sa2va.errors import ConfigError, exit_on_user_error
from projects.sa2va.sweeps import Sweep, check_data, read_spec, resolve


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train, test and compare the rows of an ablation.")
    parser.add_argument("spec", help="sweep file, for example configs/sweeps/demo_lora_rank.py")
    parser.add_argument("--work-dir", help="output folder (default: work_dirs/<name of the spec>)")
    nothing = parser.add_mutually_exclusive_group()
    nothing.add_argument(
        "--dry-run", action="store_true", help="check everything, print the commands, run nothing"
    )
    nothing.add_argument(
        "--tables-only", action="store_true", help="write the tables of what has ended, run nothing"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these rows alone")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--gpus-per-run", type=int, default=1, help="processes of a run (1)")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Checks, runs, and says what failed."""
    args = parse_args()
    if args.jobs < 1 or args.gpus_per_run < 1:
        raise ConfigError(
            found=f"--jobs {args.jobs} --gpus-per-run {args.gpus_per_run}",
            expected="1 or more of each",
            fix="--jobs 1 --gpus-per-run 1",
        )
    spec = read_spec(args.spec)
    configs = resolve(spec)
    sweep = Sweep(
        spec,
        configs,
        Path(args.work_dir or Path("work_dirs") / spec.name),
        jobs=args.jobs,
        gpus_per_run=args.gpus_per_run,
    )
    sweep.check(args.only)
    if args.tables_only:
        failures = sweep.tables()
    else:
        check_data(spec, configs, args.only)
        if args.dry_run:
            print("\n".join(sweep.commands(args.only)))
            return
        failures = sweep.run(args.only)
    print(f"Written: {sweep.work_dir / 'table.md'}, {sweep.work_dir / 'table.csv'}")
    if failures:
        print(f"{len(failures)} of {len(sweep.all)} runs have no results:")
        for failure in failures:
            print(f"  {failure.job.name}: {failure.step}: {failure.reason}")
    if sweep.launcher.stopped:
        raise SystemExit(EXIT_STATUS)
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

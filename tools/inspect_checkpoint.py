"""Says what a checkpoint or folder of weights is, what is in it, and what was trained.

    python tools/inspect_checkpoint.py FILE            one: parts, checksums, provenance
    python tools/inspect_checkpoint.py FILE --diff B   two: which parts differ, and by how much

Reads every format that training and tools/convert.py read. With --diff the exit code is 1 when
anything differs, and 0 when nothing does. Nothing in the files is executed.
"""

from __future__ import annotations

import argparse
import sys

import _bootstrap  # noqa: F401

from projects.sa2va.checkpoints import AVERAGED, RAW
from projects.sa2va.checkpoints.inspection import (
    compare,
    describe,
    describe_difference,
    open_weights,
)
from projects.sa2va.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Show or compare weights.")
    parser.add_argument("file", help="checkpoint, DeepSpeed folder, or file or folder of weights")
    parser.add_argument("--diff", metavar="B", help="compare with these weights")
    parser.add_argument(
        "--weights",
        choices=[AVERAGED, RAW],
        help="which of FILE's (default: averaged where it has them, as a test takes them)",
    )
    parser.add_argument("--diff-weights", choices=[AVERAGED, RAW], help="which of B's")
    return parser.parse_args()


@exit_on_user_error
def main() -> int:
    """Prints the description, or the comparison."""
    args = parse_args()
    weights = open_weights(args.file, args.weights)
    if args.diff is None:
        print(describe(weights))
        return 0
    other = open_weights(args.diff, args.diff_weights)
    rows = compare(weights, other)
    print(describe_difference(weights, other, rows))
    return int(any(not row.equal for row in rows))


if __name__ == "__main__":
    sys.exit(main())

"""One HTML page about a test run, made from the files of its folder; no model, no data.

    python tools/report.py RUN [--out FILE]

RUN is a results folder of tools/test.py or tools/score.py. tools/test.py writes the page itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _bootstrap  # noqa: F401

from projects.sa2va.errors import ConfigError, exit_on_user_error
from projects.sa2va.evaluation.html_report import write_html_report
from projects.sa2va.files import make_writable


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="One HTML page about a test run.")
    parser.add_argument("run", help="results folder (with metrics.json)")
    parser.add_argument("--out", help="the page (default: report.html in RUN)")
    parser.add_argument("--pictures", help="folder of the pictures (default: pictures/ in RUN)")
    parser.add_argument("--curve", help="threshold_curve.json (default: the one in RUN)")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Reads the files, writes the page."""
    args = parse_args()
    for option, path, there in (
        ("--pictures", args.pictures, Path.is_dir),
        ("--curve", args.curve, Path.is_file),
    ):
        if path is not None and not there(Path(path)):
            raise ConfigError(
                found=f"{option} {path}: it does not exist",
                expected="a folder" if option == "--pictures" else "a file",
                fix=f"correct {option}, or leave it out",
            )
    if args.out is not None:
        make_writable(Path(args.out).parent, "--out FILE")
    print(write_html_report(args.run, args.out, pictures=args.pictures, curve=args.curve))


if __name__ == "__main__":
    main()

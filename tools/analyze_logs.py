"""Training curves and a verdict on convergence, from the logs of one or several runs.

    python tools/analyze_logs.py WORK_DIR [WORK_DIR ...] [--out DIR] [--html]

Prints losses, validations, learning rate, speed, memory and the verdict. Writes curves.png and
analysis.json (with --html also training.html) to --out, by default <first WORK_DIR>/analysis.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import _bootstrap  # noqa: F401

from projects.sa2va.analysis import judge, read_log
from projects.sa2va.analysis.curves import curves_png, training_page
from projects.sa2va.analysis.summary import as_text, summarise_log
from projects.sa2va.errors import ConfigError, exit_on_user_error, listing, suggest
from projects.sa2va.evaluation.writer import strict
from projects.sa2va.files import make_writable, write_atomic


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Training curves and a verdict on convergence.")
    parser.add_argument("work_dirs", nargs="+", help="output folders of tools/train.py")
    parser.add_argument("--metric", default="vessel/dice", help="validation metric of the verdict")
    parser.add_argument("--lower-is-better", action="store_true", help="of --metric")
    parser.add_argument("--out", help="folder of the files (default: <first WORK_DIR>/analysis)")
    parser.add_argument("--html", action="store_true", help="write training.html, too")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Reads, judges, prints, draws."""
    args = parse_args()
    logs = [read_log(folder) for folder in args.work_dirs]
    known = sorted({name for log in logs for name in log.names(validation=True)})
    if known and args.metric not in known:
        raise ConfigError(
            found=f"--metric {args.metric}{suggest(args.metric, known)}",
            expected=f"one that validation logged: {listing(known, 40)}",
            fix="correct --metric",
        )
    out = make_writable(args.out or Path(args.work_dirs[0]) / "analysis", "--out FOLDER")
    summaries = [summarise_log(log, judge(log, args.metric, args.lower_is_better)) for log in logs]
    print("\n".join(as_text(found, args.metric) for found in summaries))
    picture = curves_png(logs, args.metric)
    write_atomic(out / "curves.png", lambda file: file.write(picture))
    text = json.dumps(strict(summaries), indent=1, allow_nan=False)
    write_atomic(out / "analysis.json", lambda file: file.write(f"{text}\n".encode()))
    if args.html:
        page = training_page(logs, summaries, args.metric).encode()
        write_atomic(out / "training.html", lambda file: file.write(page))
    print(f"Curves are in {out}")


if __name__ == "__main__":
    main()

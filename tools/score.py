"""Scores without a model: a stored run again, or a folder of masks against another.

    python tools/score.py RUN [--threshold 0.4] [--metrics all] [--out DIR]
    python tools/score.py PREDICTIONS TRUTH [--metrics all] [--out DIR]

RUN is a results folder of tools/test.py with its probability maps. PREDICTIONS and TRUTH are
folders of masks with the same names, for instance of two observers.
"""

from __future__ import annotations

import argparse

import _bootstrap  # noqa: F401
from mmengine.logging import MMLogger

from projects.sa2va.errors import ConfigError, exit_on_user_error
from projects.sa2va.evaluation.chosen_threshold import ChosenThreshold, read_threshold
from projects.sa2va.evaluation.rescore import rescore, score_masks


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Score predictions without a model.")
    parser.add_argument("predictions", help="results folder of tools/test.py, or folder of masks")
    parser.add_argument("truth", nargs="?", help="folder of the true masks")
    parser.add_argument(
        "--threshold", help="number or threshold file, in place of the run's (runs only)"
    )
    parser.add_argument("--config", help="in place of config.py in the run's folder (runs only)")
    parser.add_argument(
        "--patient", help="regular expression whose first group is the patient id (masks only)"
    )
    parser.add_argument("--metrics", default="all", help="all, fast, or names joined by commas")
    parser.add_argument("--workers", type=int, help="scoring processes; 0: none")
    parser.add_argument("--out", help="folder of the results (default: numbers only)")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Scores; the evaluator prints the table."""
    args = parse_args()
    MMLogger.get_instance("score", logger_name="score", log_level="INFO")
    metrics = args.metrics if args.metrics in ("all", "fast") else args.metrics.split(",")
    common = {"metric_set": metrics, "out_dir": args.out, "workers": args.workers}
    if args.truth is None and args.patient is not None:
        raise ConfigError(
            found="--patient with a results folder",
            expected="the patients of the run's own data set",
            fix="leave --patient out",
        )
    if args.truth is None:
        threshold = None if args.threshold is None else _threshold(args.threshold)
        rescore(args.predictions, config=args.config, threshold=threshold, **common)
        return
    if args.threshold is not None or args.config is not None:
        raise ConfigError(
            found="--threshold or --config with two folders of masks",
            expected="masks, which have no threshold and no config",
            fix="leave the options out, or give the results folder of a run alone",
        )
    patient = None if args.patient is None else {"type": "regex", "pattern": args.patient}
    score_masks(args.predictions, args.truth, patient=patient, **common)


def _threshold(text: str) -> float | ChosenThreshold:
    try:
        return float(text)
    except ValueError:
        return read_threshold(text)


if __name__ == "__main__":
    main()

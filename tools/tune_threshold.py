"""Chooses the threshold of a checkpoint on validation frames, from stored maps; no model is run.

    python tools/test.py CONFIG --checkpoint FILE --split val --out RUN
    python tools/tune_threshold.py RUN [--metric dice] [--average patients]
                                       [--postprocess components]

The choice is written beside the checkpoint, where tools/test.py finds it; the curve into RUN.
"""

from __future__ import annotations

import argparse

import _bootstrap  # noqa: F401

from projects.sa2va.engine.tuning import CURVE_FILES, MIN_AREAS, POSTPROCESS, Tuned, tune
from projects.sa2va.errors import exit_on_user_error
from projects.sa2va.evaluation.threshold_choice import AVERAGES, Target
from projects.sa2va.evaluation.threshold_sweep import SWEEP_METRICS


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Choose a threshold on validation frames.")
    parser.add_argument("run", help="results folder of tools/test.py --split val")
    parser.add_argument("--metric", choices=SWEEP_METRICS, default="dice", help="what is maximised")
    parser.add_argument("--beta", type=float, default=2.0, help="of fbeta: weight of recall")
    parser.add_argument("--average", choices=AVERAGES, default="frames", help="over what")
    parser.add_argument(
        "--postprocess", choices=POSTPROCESS, default="none", help="tuned with the threshold"
    )
    parser.add_argument(
        "--min-areas", nargs="+", type=int, default=MIN_AREAS, help="tried for components, in px"
    )
    parser.add_argument("--split", default="val", help="name of the run's split; never test")
    parser.add_argument("--config", help="in place of config.py in RUN")
    parser.add_argument("--checkpoint", help="where the checkpoint of the run lies, if it moved")
    parser.add_argument("--out", help="the threshold file (default: beside the checkpoint)")
    parser.add_argument("--force", action="store_true", help="replace a threshold file")
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples; 0: no band")
    parser.add_argument("--workers", type=int, help="processes; 0: none")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Tunes, then says what was found and where it is."""
    args = parse_args()
    target = Target(args.metric, args.beta if args.metric == "fbeta" else 1.0, args.average)
    found = tune(
        args.run,
        target,
        postprocess=args.postprocess,
        min_areas=args.min_areas,
        split=args.split,
        config=args.config,
        checkpoint=args.checkpoint,
        out=args.out,
        force=args.force,
        resamples=args.bootstrap,
        workers=args.workers,
    )
    print(summary(found, target, args.run))


def summary(tuned: Tuned, target: Target, run: str) -> str:
    """What was chosen, in a few lines."""
    found, content = tuned.curve, tuned.chosen.content
    post = found.choice.postprocess.describe()
    lines = [
        f"{target.describe()} on the split {content['split_name']!r} is best at "
        f"probability >= {found.choice.threshold:g}" + (f", {post}" if post else ""),
        f"  {found.values[found.best]:.4f}{_bounds(found.interval(found.best), 4)} on these "
        "frames, which is too good for others",
    ]
    if found.threshold_interval is not None:
        lines.append(f"  resamples choose a threshold in{_bounds(found.threshold_interval, 2)}")
    lines += [f"  note: {note}" for note in found.notes]
    lines.append(f"Written: {tuned.chosen.path}; {', '.join(CURVE_FILES)} in {run}")
    return "\n".join(lines)


def _bounds(interval: tuple[float, float] | None, digits: int) -> str:
    return "" if interval is None else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


if __name__ == "__main__":
    main()

"""The operating curve of a choosing model: Dice and false positives over the presence threshold.

    python tools/test.py CONFIG --checkpoint FILE --out RUN \\
        --cfg-options model.answer_mode=choice model.presence_threshold=0
    python tools/presence.py RUN [--beside RUN2 ...] [--kind segment]
    python tools/presence.py RUN --at-false-positive-rate 0.2     # RUN on validation frames

No model is run. presence_curve_KIND.csv and presence_curve_KIND.png are written into RUN.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import _bootstrap  # noqa: F401

from projects.sa2va.engine.tuning import (
    VALIDATION_RUN,
    check_held_out,
    check_split,
    find_checkpoint,
)
from projects.sa2va.errors import ConfigError, DataError, exit_on_user_error
from projects.sa2va.evaluation.bootstrap import intervals
from projects.sa2va.evaluation.compare import Run
from projects.sa2va.evaluation.phrases import score_text
from projects.sa2va.evaluation.presence import (
    EVERY_PRESENCE,
    Pairs,
    check_beside,
    operating_curve,
    pairs_of,
    put_beside,
)
from projects.sa2va.evaluation.presence_auc import presence_auc
from projects.sa2va.evaluation.presence_report import (
    auc_table,
    beside_notes,
    beside_table,
    curve_csv,
    curve_table,
    few_absent_notes,
    few_frames_notes,
    operating_diagram,
)
from projects.sa2va.figures import png_figure
from projects.sa2va.files import make_writable, write_atomic

CURVE_FILES = ("presence_curve_{}.csv", "presence_curve_{}.png")
"""In RUN, by kind."""


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Dice and false positives over presence.")
    parser.add_argument("run", help="results folder of tools/test.py at presence_threshold 0")
    parser.add_argument(
        "--beside", nargs="+", default=[], help="results folders of other models, for comparison"
    )
    parser.add_argument("--kind", help="of the phrases (default: the kind with the most phrases)")
    parser.add_argument(
        "--at-false-positive-rate",
        type=float,
        metavar="X",
        help="choose the smallest threshold with at most this rate; RUN is of validation frames",
    )
    parser.add_argument(
        "--checkpoint",
        help="where the checkpoint of the run lies, if it moved (with --at-false-positive-rate)",
    )
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples; 0: no intervals")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Reads, checks, computes, prints, writes."""
    args = parse_args()
    rate, resamples = args.at_false_positive_rate, args.bootstrap
    if resamples < 0 or not (rate is None or 0 <= rate <= 1):
        raise ConfigError(
            found=f"--bootstrap {resamples}"
            + ("" if rate is None else f" --at-false-positive-rate {rate}"),
            expected="0 resamples or more, a rate in [0, 1]",
            fix="--bootstrap 2000 --at-false-positive-rate 0.2",
        )
    if rate is None and args.checkpoint is not None:
        raise ConfigError(
            found=f"--checkpoint {args.checkpoint} without --at-false-positive-rate",
            expected="a checkpoint only where a threshold is chosen: it knows the frames of its "
            "training",
            fix="leave --checkpoint out, or --at-false-positive-rate 0.2",
        )
    check_folders(args.run, args.beside)
    run, *others = Run.read_all([args.run, *args.beside])
    pairs = pairs_of(run, args.kind)
    for other in others:
        check_beside(pairs, other)
    threshold = None
    if rate is not None:
        check_split(run.report, args.run, "val", f"{VALIDATION_RUN} {EVERY_PRESENCE}")
        weights = find_checkpoint(run.report, args.run, args.checkpoint)
        check_held_out(run.report, args.run, weights)
        threshold = threshold_of(pairs, rate)
    folder = make_writable(args.run, "a copy of RUN")

    curve = operating_curve(pairs, resamples, progress=True)
    beside = [put_beside(pairs, other, resamples) for other in others]
    found = presence_auc(pairs.frames, resamples=resamples)
    drawn = png_figure(*operating_diagram(run.name, pairs.kind, curve, beside))
    files = [name.format(pairs.kind) for name in CURVE_FILES]
    for name, data in zip(files, (curve_csv(pairs.kind, curve), drawn), strict=True):
        write_atomic(folder / name, lambda file, data=data: file.write(data))

    print(
        f"{run.name}: kind {pairs.kind!r}, {found.phrases} phrases, {found.pairs} pairs, "
        f"{found.labelled} of them labelled, split {run.report.get('split_name')!r}"
    )
    print(f"\n{curve_table(curve)}\n\n{auc_table(found)}\n")
    if beside:
        print(f"{beside_table(run.name, beside)}\n")
    notes = [*beside_notes(run.name, beside), *few_frames_notes(pairs, bool(resamples))]
    if resamples:
        about = intervals(pairs.frames, ["dice"], resamples=0)
        print(f"95 % intervals: {resamples} resamples of {about.clusters} {about.unit}s")
        notes += [about.note] if about.note else []
    if threshold is not None:
        print(chosen(pairs, rate, threshold, resamples))
        notes += few_absent_notes(pairs)
    for note in notes:
        print(f"note: {note}")
    print(f"Written: {', '.join(files)} in {Path(args.run)}")


def check_folders(run: str, beside: Sequence[str]) -> None:
    """Refuses a folder that is given twice.

    Raises:
        ConfigError: RUN is among the others, or one of these is there twice.
    """
    known = {Path(run).resolve(): "RUN"}
    for folder in beside:
        path = Path(folder).resolve()
        if path in known:
            raise ConfigError(
                found=f"--beside {folder}, the same folder as {known[path]}",
                expected="results folders of other runs, each of them once",
                fix=f"leave {folder} out of --beside",
            )
        known[path] = f"--beside {folder}"


def threshold_of(pairs: Pairs, rate: float) -> float:
    """The smallest threshold with at most this false-positive rate.

    Raises:
        DataError: no threshold has so low a rate.
    """
    threshold = pairs.smallest_threshold(rate)
    if threshold is None:
        raise DataError(
            found=f"at every presence_threshold up to 1 more than {rate:g} of the absent pairs of "
            f"{pairs.run.name} get a mask",
            expected="a rate that some threshold reaches",
            fix="a higher --at-false-positive-rate",
        )
    return threshold


def chosen(pairs: Pairs, rate: float, threshold: float, resamples: int) -> str:
    """The choice for a false-positive rate, as an option of the tools."""
    scores = pairs.scores(threshold, resamples)
    return (
        f"false-positive rate <= {rate:g}: --cfg-options model.presence_threshold={threshold!r}\n"
        f"  false-positive rate {score_text(scores['false_positive_rate'])}, Dice over phrases "
        f"{score_text(scores['dice_over_phrases'])}, missed {score_text(scores['miss_rate'])} "
        "on these frames"
    )


if __name__ == "__main__":
    main()

"""Splits a data set by patient, stratified by vessel fraction; writes files that the readers read.

    python tools/make_splits.py CONFIG OUT --ratios 0.7 0.1 0.2
    python tools/make_splits.py annotations.json OUT --images DIR --patient '^(P\\d+)_' --folds 5
    python tools/make_splits.py images/ OUT --masks DIR --unit frame --ratios 0.8 0.2

The same frames and seed give the same files. Near-duplicates stay in one split.
"""

from __future__ import annotations

import argparse

import _bootstrap  # noqa: F401
from mmengine.config import DictAction

from projects.sa2va.columns import columns
from projects.sa2va.datasets.make_splits import make_splits, options, source_configs
from projects.sa2va.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Split a data set by patient.")
    parser.add_argument("source", help="config, annotation file or folder of images")
    parser.add_argument("out", help="new folder for the split files")
    parser.add_argument("--images", metavar="DIR", help="images of an annotation file")
    parser.add_argument("--masks", metavar="DIR", help="masks of a folder of images")
    parser.add_argument("--mask-suffix", default="", help="end of a mask's stem, such as _mask")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="pool only these of a config")
    parser.add_argument(
        "--patient", metavar="PATTERN", help="regular expression; its first group is the patient"
    )
    parser.add_argument(
        "--unit",
        choices=["patient", "frame"],
        default="patient",
        help="what is dealt out; 'frame' only where all frames are of different patients",
    )
    parser.add_argument("--ratios", nargs="+", type=float, help="train, val and test: 0.7 0.1 0.2")
    parser.add_argument("--folds", type=int, metavar="K", help="K folds in place of --ratios")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace splits written earlier")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, keys with dots"
    )
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Splits, and prints a table and the keys that use the splits."""
    args = parse_args()
    configs = source_configs(
        args.source,
        images=args.images,
        masks=args.masks,
        mask_suffix=args.mask_suffix,
        patient=args.patient,
        splits=args.split,
        cfg_options=args.cfg_options,
    )
    rows = make_splits(
        configs,
        args.out,
        ratios=args.ratios,
        fold_count=args.folds,
        unit=args.unit,
        seed=args.seed,
        force=args.force,
    )
    table = [
        (r.file, str(r.frames), str(r.patients or "-"), f"{r.vessel_fraction:.3%}", r.hash[:16])
        for r in rows
    ]
    heads = ("split", "frames", "patients", "vessel fraction", "hash")
    print("\n".join(columns([heads, *table], right={1, 2, 3})))
    print("--cfg-options " + " ".join(options(args.out)))


if __name__ == "__main__":
    main()

"""Converts weights: a training checkpoint into a whole model, an adapter, or one file.

    python tools/convert.py IN OUT --to {sa2va,native,adapter,trainable} [--config CONFIG]

IN   a training checkpoint of this project or of the reference (file or DeepSpeed folder), an
     adapter folder, or a whole Sa2VA (released, or exported by this tool).
OUT  sa2va:      folder as released: the published code and model.pretrained load it
     native:     folder in transformers' layout: InternVL, sam2/, seg_projector/
     adapter:    peft's adapter folder, and trained/ with what trained beside LoRA
     trainable:  one checkpoint file, for --checkpoint and load_from
Checkpoints of this project hold their config. The reference's do not: give --config, and
the base of that training and LoRA's rank and alpha by --cfg-options.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _bootstrap  # noqa: F401
import torch
from mmengine.config import DictAction

from projects.sa2va.checkpoints.convert import TARGETS, convert
from projects.sa2va.errors import exit_on_user_error

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Convert weights.")
    parser.add_argument("input", type=Path, metavar="IN", help="what to convert")
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder (or file) to write")
    parser.add_argument("--to", choices=TARGETS, required=True)
    parser.add_argument("--config", help="config of the model, where IN does not hold one")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, keys with dots"
    )
    parser.add_argument(
        "--lora",
        choices=["merge", "keep"],
        default="merge",
        help="sa2va and native: put LoRA and token rows into the weights, or keep them in "
        "OUT/adapter",
    )
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="bfloat16",
        help="sa2va and native: dtype of the weights (default: bfloat16, as released)",
    )
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Reads, reports, writes."""
    args = parse_args()
    report, notes = convert(
        args.input,
        args.out,
        args.to,
        config=args.config,
        options=args.cfg_options,
        lora=args.lora,
        dtype=_DTYPES[args.dtype],
    )
    print(report.text())
    for note in notes:
        print(f"note: {note}")
    files = [args.out] if args.out.is_file() else [p for p in args.out.rglob("*") if p.is_file()]
    print(f"Wrote {args.out}: {sum(p.stat().st_size for p in files) / 1e9:.3f} GB")


if __name__ == "__main__":
    main()

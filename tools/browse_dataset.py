"""Draws what the model is fed: SAM2's input, masks, tiles and text, after augmentation.

    python tools/browse_dataset.py CONFIG [--split train] [--samples 8] [--variants 3] [--out DIR]

Writes sheets of samples as PNG files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _bootstrap  # noqa: F401
import numpy as np
from mmengine.config import DictAction
from mmengine.registry import DATASETS
from tqdm import tqdm

from projects.sa2va.config import dataset_configs, load_config
from projects.sa2va.datasets.browse import draw_sample, stack
from projects.sa2va.errors import ConfigError, exit_on_user_error, listing, suggest
from projects.sa2va.files import make_writable, write_atomic

_ON_A_SHEET = 4


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Draw what the model is fed.")
    parser.add_argument("config", help="config file")
    parser.add_argument("--split", default="train", help="train, val or test (train)")
    parser.add_argument("--samples", type=int, default=8, help="how many, drawn at random (8)")
    parser.add_argument("--variants", type=int, default=3, help="augmentations of each (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples")
    parser.add_argument("--out", help="folder (default: work_dirs/<config>/browse)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, keys with dots"
    )
    args = parser.parse_args()
    if min(args.samples, args.variants) < 1:
        parser.error("--samples and --variants are 1 or more")
    return args


@exit_on_user_error
def main() -> None:
    """Draws the samples and writes the sheets."""
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    configs = dataset_configs(cfg)
    if args.split not in configs:
        raise ConfigError(
            f"--split {args.split}{suggest(args.split, configs)}",
            f"a split of the config: {listing(configs)}",
            "correct --split",
        )
    dataset = DATASETS.build(configs[args.split])
    default = f"work_dirs/{Path(args.config).stem}/browse"
    out = make_writable(args.out or default, "--out")
    rng = np.random.default_rng(args.seed)
    chosen = rng.choice(len(dataset), min(args.samples, len(dataset)), replace=False)
    pictures = [
        draw_sample(dataset, int(index), args.variants)
        for index in tqdm(sorted(chosen), "drawing", unit="sample", leave=False)
    ]
    for number, start in enumerate(range(0, len(pictures), _ON_A_SHEET), 1):
        sheet = stack(pictures[start : start + _ON_A_SHEET])
        path = out / f"{args.split}_{number:02d}.png"
        write_atomic(path, lambda file, sheet=sheet: sheet.save(file, "PNG"))
        print(path)


if __name__ == "__main__":
    main()

"""What each part of the small model's recipe costs: time and memory of a step, time of the data.

    python benchmarks/recipe_costs.py [CONFIG] [--device cuda] [--batch 16] [--steps 30]

Steps are the product's own: model, optimiser wrapper and items of CONFIG (by default
sa2va_arcade_small.py), with the options of one row of configs/sweeps/arcade_ablations.py. Frames
are drawn, so no data are needed: the same batch is used again and again. The second table is what
one data worker takes for an item once it has the frame and its masks: the fastest CPU time of
three, so reading (or drawing) is not in it; benchmarks/synthetic_speed.py has that.

Prints both tables. On a CPU there is no memory column.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import DATASETS, MODELS  # noqa: E402
from synthetic_speed import milliseconds  # noqa: E402

import projects.sa2va  # noqa: E402, F401
from projects.sa2va.columns import columns  # noqa: E402
from projects.sa2va.config import load_config  # noqa: E402
from projects.sa2va.datasets.collate import sa2va_collate  # noqa: E402
from projects.sa2va.sweeps import read_spec  # noqa: E402

CONFIG = ROOT / "projects/sa2va/configs/sa2va_arcade_small.py"
SWEEP = ROOT / "configs/sweeps/arcade_ablations.py"
_WARM_UP = 5
STEPS = {
    "recipe": "recipe",
    "without the high-resolution head": "no_head",
    "head without context": "head_without_context",
    "head of stride 1, half as wide": "head_stride1_half_as_wide",
    "three masks, best by IoU": "three_masks",
    "labels on a grid of 256 (area)": "area_256",
    "soft clDice": "cldice",
    "skeleton recall": "skeleton_recall",
}
"""The sweep's rows that the first table measures, by what it calls them."""


def drawn_items(cfg: Config, count: int, **settings: Any) -> Any:
    """A data set of ``count`` drawn frames with the processor and augmentation of ``cfg``."""
    own = cfg.train_dataloader.dataset
    return DATASETS.build(
        {
            "type": "SyntheticVesselDataset",
            "frames": count,
            "size": 512,
            "phrase": "blood vessel",
            "processor": cfg.model.processor,
            "augment": own.get("augment"),
            "skeletons": own.get("skeletons", False),
            **settings,
        }
    )


def item_cases() -> dict[str, dict[str, Any]]:
    """What :func:`drawn_items` is asked for in each row of the second table."""
    mild = read_spec(SWEEP).row("mild_augmentation").options
    return {
        "not augmented": {"augment": None},
        "mildly augmented": {"augment": mild["train_dataloader.dataset.augment"]},
        "augmented as the config says": {},
        "the same with skeletons": {"skeletons": True},
    }


def step_cost(cfg: Config, device: torch.device, batch: int, steps: int) -> tuple[float, float]:
    """Seconds of a training step, and the GiB that the card's allocator had reserved at most."""
    model = MODELS.build(cfg.model).to(device).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    data = drawn_items(cfg, batch)
    data = sa2va_collate([data[index] for index in range(batch)])
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    start = 0.0
    for step in range(_WARM_UP + steps):
        if step == _WARM_UP:
            if is_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
        model.train_step(data, wrapper)
    if is_cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    return seconds, torch.cuda.max_memory_reserved() / 2**30 if is_cuda else 0.0


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Costs of the recipe's parts.")
    parser.add_argument("config", nargs="?", default=str(CONFIG))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--rows", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="for every row")
    args = parser.parse_args()
    common = args.cfg_options or {}
    device = torch.device(args.device)
    table = [("step of", "ms", "frames/s", "GiB reserved")]
    rows = read_spec(SWEEP)
    # All of them first: what is wrong with the last is no news to be had after the others.
    configs = {
        name: load_config(args.config, {**common, **rows.row(STEPS[name]).options})
        for name in args.rows
    }
    for name, cfg in configs.items():
        seconds, gib = step_cost(cfg, device, args.batch, args.steps)
        memory = f"{gib:.2f}" if device.type == "cuda" else "-"
        table.append((name, f"{1e3 * seconds:.0f}", f"{args.batch / seconds:.1f}", memory))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print("\n".join(columns(table, right=range(1, 4))) + "\n")

    cfg = load_config(args.config, common)
    table = [("item", "ms of a core")]
    for name, own in item_cases().items():
        data = drawn_items(cfg, args.frames, **own)
        table.append((name, f"{milliseconds(data.__getitem__, args.frames).mean():.1f}"))
    print("\n".join(columns(table, right=[1])))


if __name__ == "__main__":
    main()

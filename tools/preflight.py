"""Says whether a recipe fits its cards, before anything is downloaded or loaded.

    python tools/preflight.py projects/sa2va/configs/sa2va_vessel_finetune.py --memory-gib 24
    python tools/preflight.py CONFIG --gpus 4 --strategy zero2 --dry-run 3

Exit status: 0 it fits, 1 it does not, 2 an error of the user's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import _bootstrap  # noqa: F401
from mmengine.config import DictAction

from projects.sa2va.config import load_config
from projects.sa2va.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Plan the memory of a recipe.")
    parser.add_argument("config", help="config file")
    parser.add_argument("--gpus", type=int, default=1, help="processes, a card each (default 1)")
    parser.add_argument(
        "--memory-gib",
        type=float,
        default=24.0,
        metavar="GIB",
        help="the number printed on the card (default 24: 23.68 GiB reported)",
    )
    parser.add_argument(
        "--strategy",
        metavar="NAME|FILE",
        help="none, ddp, fsdp2, zero1, zero2, zero2_offload, zero3, zero3_offload or a DeepSpeed "
        "JSON file (default: the config's; ddp for several cards)",
    )
    parser.add_argument(
        "--frame-size", type=int, default=1024, help="side of the frames in px (default 1024)"
    )
    parser.add_argument("--phrases", type=int, default=1, help="phrases of a frame (default 1)")
    parser.add_argument("--json", metavar="FILE", help="write the plan there, too")
    parser.add_argument(
        "--dry-run",
        type=int,
        metavar="STEPS",
        help="run the recipe so many steps, with random weights and synthetic frames, and print "
        "predicted against measured",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, keys with dots"
    )
    return parser.parse_args()


@exit_on_user_error
def main() -> int:
    """Plans, prints, and runs where asked to.

    Returns:
        Exit status.
    """
    args = parse_args()
    from projects.sa2va.engine.advice import advise
    from projects.sa2va.planning import Card, Request, make_plan
    from projects.sa2va.planning.report import as_json, as_text

    cfg = load_config(args.config, args.cfg_options)
    card = Card(args.memory_gib, cfg.get("memory_budget_gib"))
    request = Request(card, args.gpus, args.strategy, args.frame_size, args.phrases)
    plan = make_plan(cfg, request)
    advice = advise(cfg, plan, request)
    print("\n".join([as_text(plan), advice.text()]), flush=True)
    record = {**as_json(plan), **advice.as_json()}
    if args.dry_run is not None:
        from projects.sa2va.engine.dry_run import dry_run

        measured = dry_run(args.config, args.cfg_options or {}, request, args.dry_run, plan)
        print("\n" + measured.text(), flush=True)
        record["measured"] = measured.rows
    if args.json:
        from projects.sa2va.files import write_atomic

        text = json.dumps(record, indent=1).encode()
        write_atomic(Path(args.json), lambda file: file.write(text))
    return 0 if plan.fits else 1


if __name__ == "__main__":
    sys.exit(main())

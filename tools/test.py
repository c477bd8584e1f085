"""Tests a checkpoint: predicts every frame once, scores, writes maps, masks and pictures.

    python tools/test.py CONFIG --checkpoint FILE [--work-dir DIR] [--out DIR] [--show-dir DIR]
                         [--metrics fast] [--split val] [--threshold 0.4]
                         [--placement auto] [--gpus N] [--memory-gib G] [--precision llm=nf4]
                         [--weights raw]
    bash tools/dist.sh test CONFIG GPUS --checkpoint FILE

Results go to <work-dir>/<timestamp>/, or to --out. The threshold is that of the file which
tools/tune_threshold.py wrote beside the checkpoint, or else test_evaluator.threshold.
"""

from __future__ import annotations

import argparse
import os
import sys

import _bootstrap  # noqa: F401
from mmengine.config import DictAction
from mmengine.registry import RUNNERS

from projects.sa2va.checkpoints import AVERAGED, RAW
from projects.sa2va.engine.start import finish, prepare_test
from projects.sa2va.errors import exit_on_user_error
from projects.sa2va.placement import KINDS
from projects.sa2va.placement.launch import restart_in_parallel


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Test a checkpoint.")
    parser.add_argument("config", help="config file the checkpoint was trained with")
    parser.add_argument(
        "--checkpoint",
        help="file or DeepSpeed folder of tools/train.py; 'none' scores the untrained model",
        required=True,
    )
    parser.add_argument("--work-dir", help="output folder (default: work_dirs/<config name>)")
    parser.add_argument("--out", help="folder of the results (default: <work-dir>/<timestamp>)")
    parser.add_argument("--show-dir", help="folder of the pictures (default: pictures/ in --out)")
    parser.add_argument(
        "--metrics", nargs="+", help="all, fast or names (default: test_evaluator.metric_set)"
    )
    parser.add_argument(
        "--split", choices=["test", "val"], help="frames to score (default: the config's test set)"
    )
    parser.add_argument(
        "--threshold", help="number, 'config', or a threshold file (default: see above)"
    )
    parser.add_argument(
        "--placement",
        choices=KINDS,
        help="where the model runs (default: test_cfg.placement, else one card; the CPU where "
        "there is none)",
    )
    parser.add_argument("--gpus", type=int, help="cards to use (default: what there is)")
    parser.add_argument(
        "--memory-gib",
        type=float,
        metavar="GIB",
        help="the number printed on a card, to take less than is free",
    )
    parser.add_argument(
        "--precision",
        help="bf16, fp16, fp32, int8, nf4 or by part, llm=nf4,vit=bf16,sam2=fp32 (default: "
        "test_cfg.precision, else as the config says)",
    )
    parser.add_argument(
        "--weights",
        choices=[AVERAGED, RAW],
        help="which of the checkpoint's (default: test_cfg.weights, else averaged where it has "
        "them)",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, keys with dots"
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


@exit_on_user_error
def main() -> None:
    """Checks, then tests."""
    args = parse_args()
    cfg = prepare_test(
        args.config,
        checkpoint=None if args.checkpoint.lower() == "none" else args.checkpoint,
        work_dir=args.work_dir,
        out=args.out,
        show_dir=args.show_dir,
        metrics=args.metrics[0] if args.metrics in (["all"], ["fast"]) else args.metrics,
        split=args.split,
        threshold=args.threshold,
        placement=args.placement,
        gpus=args.gpus,
        memory_gib=args.memory_gib,
        precision=args.precision,
        weights=args.weights,
        cfg_options=args.cfg_options,
        distributed=args.launcher != "none",
    )
    place = cfg.test_cfg.placement
    if place.kind == "data-parallel" and args.launcher == "none" and place.gpus > 1:
        restart_in_parallel(sys.argv[1:], args.config, place.gpus)
    cfg.launcher = args.launcher
    RUNNERS.build(cfg).test()


if __name__ == "__main__":
    main()
    finish()

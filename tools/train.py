"""Trains an experiment.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--seed N]
    bash tools/dist.sh train CONFIG GPUS          (several processes; DEEPSPEED=deepspeed_zero2 ...
                                                   or STRATEGY=fsdp2 ...)

Everything that can be wrong with config, data, checkpoint and folder is checked first; then
xtuner's training entry point runs the resolved config.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import _bootstrap  # noqa: F401
from mmengine.config import Config, DictAction

from projects.sa2va.config import dump_config
from projects.sa2va.engine.start import finish, prepare_training
from projects.sa2va.engine.stopping import StoppedBySignal
from projects.sa2va.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train an experiment.")
    parser.add_argument(
        "config", help="config file, for example projects/sa2va/configs/sa2va_demo.py"
    )
    parser.add_argument("--work-dir", help="output folder (default: work_dirs/<config name>)")
    parser.add_argument(
        "--deepspeed",
        metavar="NAME|FILE",
        help="deepspeed_zero1, _zero2, _zero2_offload, _zero3, _zero3_offload, or a JSON file",
    )
    parser.add_argument(
        "--strategy",
        choices=["ddp", "fsdp2"],
        help="several processes without DeepSpeed: the whole model in each (ddp, the default), or "
        "spread over them (fsdp2)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from a checkpoint; without a value (or 'auto') from the newest of the work dir",
    )
    parser.add_argument("--seed", type=int, help="random seed (default: randomness.seed)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, keys with dots"
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_xtuner(cfg: Config, config_name: str, work_dir: str, launcher: str) -> None:
    """Hands the resolved config to xtuner's main, which builds the runner and trains."""
    from xtuner.tools.train import main as xtuner_main

    with tempfile.TemporaryDirectory() as folder:
        # xtuner reads a file; its name becomes the experiment's name.
        path = Path(folder) / config_name
        dump_config(cfg, path)
        sys.argv = [
            "train.py", str(path), "--work-dir", work_dir, "--launcher", launcher,
            "--local_rank", os.environ.get("LOCAL_RANK", "0"),
        ]  # fmt: skip
        xtuner_main()


@exit_on_user_error
def main() -> int:
    """Checks, then trains.

    Returns:
        Exit status: 0, or 143 after a signal that the run obeyed.
    """
    args = parse_args()
    cfg = prepare_training(
        args.config,
        work_dir=args.work_dir,
        deepspeed=args.deepspeed,
        strategy=args.strategy,
        resume=args.resume,
        seed=args.seed,
        cfg_options=args.cfg_options,
        distributed=args.launcher != "none",
    )
    try:
        run_xtuner(cfg, Path(args.config).name, cfg.work_dir, args.launcher)
    except StoppedBySignal as stopped:
        return stopped.code
    return 0


if __name__ == "__main__":
    finish(main())

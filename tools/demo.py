"""Serves a page where frames are uploaded, segmented, cut at any threshold and downloaded.

    python tools/demo.py CONFIG --checkpoint FILE [--examples FOLDER] [--port 7860]

Open the address that it prints. Ctrl-C ends it; nothing that was uploaded stays. The endpoint for
programs is described in docs/page.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _bootstrap  # noqa: F401
import numpy as np
from mmengine.config import DictAction

from projects.sa2va.datasets.synthetic import render
from projects.sa2va.errors import SetupError, exit_on_user_error
from projects.sa2va.inference import DEFAULT_TEXT, Sa2VAInferencer
from projects.sa2va.inference.inputs import find_images
from projects.sa2va.inference.page.uploads import Limits
from projects.sa2va.versions import check_versions

_MOST_EXAMPLES = 12
_SYNTHETIC, _SYNTHETIC_SIZE = 4, 256


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Serve a page that segments uploaded frames.")
    parser.add_argument(
        "config", help="config, work dir of a training run, checkpoint, or folder of a Sa2VA"
    )
    parser.add_argument("--checkpoint", help="trained weights; none: the untrained model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--precision", default="config", help="config, bf16, fp16, fp32, int8, nf4")
    parser.add_argument("--gpus", type=int, help="cards to spread the model over")
    parser.add_argument("--threshold", help="number, config, or a file of tools/tune_threshold.py")
    parser.add_argument("--text", default=DEFAULT_TEXT, help="what is asked at first")
    parser.add_argument(
        "--examples", help="folder of frames to choose from (default: synthetic ones); none: no"
    )
    parser.add_argument("--host", default="127.0.0.1", help="127.0.0.1: this machine alone")
    parser.add_argument("--port", type=int, default=7860, help="0: any that is free")
    parser.add_argument("--max-side", type=int, default=4096, help="of an upload, in pixels")
    parser.add_argument("--max-mib", type=float, default=32, help="size of an upload")
    parser.add_argument("--queue", type=int, default=16, help="how many may wait for the model")
    parser.add_argument(
        "--keep-mib", type=int, default=1024, help="memory for frames and results of all visitors"
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, keys with dots"
    )
    args = parser.parse_args()
    if min(args.max_side, args.max_mib, args.queue, args.keep_mib) <= 0:
        parser.error("--max-side, --max-mib, --queue and --keep-mib are above 0")
    return args


@exit_on_user_error
def main() -> None:
    """Loads the model, then serves until it is interrupted."""
    args = parse_args()
    check_versions(also=["gradio"])
    from projects.sa2va.inference.page.server import (
        LOOPBACK,
        PageSettings,
        address,
        listen,
        serve,
    )

    examples = find_examples(args.examples)
    limits = Limits(args.max_side, args.max_mib)
    settings = PageSettings(
        args.text, args.host, args.port, limits, queue=args.queue, keep_mib=args.keep_mib
    )
    with (
        listen(args.host, args.port) as taken,
        Sa2VAInferencer(
            args.config,
            args.checkpoint,
            device=args.device,
            precision=args.precision,
            gpus=args.gpus,
            threshold=args.threshold,
            cfg_options=args.cfg_options,
        ) as inferencer,
    ):
        print(inferencer.describe())
        if args.host not in LOOPBACK:
            print(
                f"warning: --host {args.host}: everyone who reaches port {taken.getsockname()[1]} "
                "of this machine can use the page; there is no password and no encryption",
                file=sys.stderr,
            )
        print(f"The page is at {address(taken)} (Ctrl-C ends it)", flush=True)
        serve(inferencer, settings, taken, examples)


def find_examples(folder: str | None) -> list[Path | np.ndarray]:
    """The frames of a folder, at most twelve; without one synthetic frames; of 'none' none.

    Raises:
        UserError: no folder, or no frames in it.
    """
    if folder is None:
        frames = [render(seed, _SYNTHETIC_SIZE)[0] for seed in range(_SYNTHETIC)]
        return [np.repeat(frame[..., None], 3, axis=2) for frame in frames]
    if folder == "none":
        return []
    if not Path(folder).is_dir():
        raise SetupError(
            found=f"--examples {folder}: no such folder",
            expected="a folder of frames",
            fix="correct --examples; --examples none shows none",
        )
    found = [source.path for source in find_images(folder)]
    if len(found) > _MOST_EXAMPLES:
        print(f"{folder}: the first {_MOST_EXAMPLES} of {len(found)} frames are examples")
    return [path for path in found[:_MOST_EXAMPLES] if path is not None]


if __name__ == "__main__":
    main()

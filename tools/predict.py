"""Predicts images: a file, a folder or a glob in, masks out.

    python tools/predict.py frames/ --checkpoint work_dirs/sa2va_vessel_finetune/best_....pth
    python tools/predict.py 'frames/**/*.png' --config CONFIG --checkpoint FILE \
        --text "blood vessel" --out predictions/frames --outputs mask overlay csv --batch-size 8
    python tools/predict.py frames/ --checkpoint FILE --out predictions/frames --skip-existing

Exit status: 0 all images were predicted, 1 some could not be (they are listed), 2 an error of the
user's.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import _bootstrap  # noqa: F401
from mmengine.config import DictAction

from projects.sa2va.errors import ConfigError, exit_on_user_error

STOPPED = 130  # what shells say of a command that Ctrl-C ended


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Predict images.")
    parser.add_argument("input", nargs="+", help="image files, a folder, or a glob in quotes")
    parser.add_argument(
        "--config",
        help="config, work dir, or folder of a whole Sa2VA (default: inside --checkpoint)",
    )
    parser.add_argument("--checkpoint", help="trained weights; 'none': as the config builds it")
    parser.add_argument(
        "--text",
        nargs="+",
        help="phrases, or whole questions ending in . ? or !; one map each (default: 'Please "
        "segment the blood vessel in this image.')",
    )
    parser.add_argument("--out", help="folder of the results (default: predictions/<input>)")
    parser.add_argument(
        "--outputs",
        nargs="+",
        default=["mask", "overlay", "csv"],
        help="mask, probability, probability-npz, overlay, rle, csv (default: mask overlay csv)",
    )
    parser.add_argument(
        "--threshold", help="number, 'config', or a threshold file (default: the tuned one)"
    )
    parser.add_argument("--batch-size", type=int, help="images at a time (default: the config's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default auto)")
    parser.add_argument(
        "--placement",
        default="auto",
        choices=["auto", "single", "sharded", "data-parallel", "cpu"],
        help="docs/placement.md (default auto)",
    )
    parser.add_argument("--gpus", type=int, help="cards to use (default: one if the model fits)")
    parser.add_argument("--memory-gib", type=float, help="of each card (default: what is free)")
    parser.add_argument(
        "--precision",
        default="config",
        help="config, bf16, fp16, fp32, int8, nf4, or llm=nf4,vit=bf16,sam2=fp32 (default config)",
    )
    parser.add_argument(
        "--merge-lora", action="store_true", default=None, help="less memory and time, bf16 sums"
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--skip-existing", action="store_true", help="go on where an earlier run stopped"
    )
    earlier.add_argument("--overwrite", action="store_true", help="predict everything again")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, keys with dots"
    )
    return parser.parse_args()


@exit_on_user_error
def main() -> int:
    """Checks, then predicts.

    Returns:
        Exit status.
    """
    args = parse_args()
    config = args.config or args.checkpoint
    if config is None:
        raise ConfigError(
            found="neither --config nor --checkpoint",
            expected="what to predict with",
            fix="give --checkpoint FILE (its config is inside it), or --config CONFIG with it",
        )
    from projects.sa2va.inference import DEFAULT_TEXT, Sa2VAInferencer
    from projects.sa2va.inference.folder import default_out, predict_folder
    from projects.sa2va.inference.inputs import list_files
    from projects.sa2va.inference.journal import check_free
    from projects.sa2va.inference.outputs import check_outputs

    # Whatever the command line has wrong is said before gigabytes are loaded.
    check_outputs(args.outputs)
    images = args.input[0] if len(args.input) == 1 else args.input
    list_files(images)
    out = args.out or default_out(args.input[0])
    check_free(out, skip_existing=args.skip_existing, overwrite=args.overwrite)
    signal.signal(signal.SIGTERM, _stop)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    with (
        _interrupted_early(),
        Sa2VAInferencer(
            config,
            None if config == args.checkpoint else args.checkpoint,
            device=args.device,
            precision=args.precision,
            placement=args.placement,
            gpus=args.gpus,
            memory_gib=args.memory_gib,
            threshold=args.threshold,
            batch_size=args.batch_size,
            merge_lora=args.merge_lora,
            cfg_options=args.cfg_options,
        ) as inferencer,
    ):
        print(inferencer.describe(), flush=True)
        done = predict_folder(
            inferencer,
            images,
            args.text or DEFAULT_TEXT,
            out,
            outputs=args.outputs,
            skip_existing=args.skip_existing,
            overwrite=args.overwrite,
        )
    print(done.text(), flush=True)
    if done.interrupted:
        return STOPPED
    return 1 if done.failed else 0


@contextlib.contextmanager
def _interrupted_early() -> Iterator[None]:
    """Ctrl-C while the model is loaded; later ones are predict_folder's."""
    try:
        yield
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr, flush=True)
        raise SystemExit(STOPPED) from None


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

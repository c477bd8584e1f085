"""Memory, speed and accuracy of prediction in each precision, against float32.

    python benchmarks/precision.py CONFIG --checkpoint FILE [--frames N] [--device cpu]
                                   [--precisions bf16 int8 llm=nf4,sam2=fp32] [--out FILE]

Every precision runs in a process of its own and goes through the product's own path: config,
checkpoint, test frames, ``prepare_for_prediction``, evaluator. Probabilities are compared with
those of fp32, which runs first, pixel by pixel; metrics are the evaluator's, at its threshold.
Prints two tables; ``--out`` writes all numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
GIB = 2**30
REFERENCE = "fp32"
PRECISIONS = ("config", "bf16", "fp16", "int8", "nf4")
_RESULT = "RESULT "


class Differences:
    """How far probabilities are from those of the reference, over all pixels so far."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.largest, self.total, self.flipped, self.pixels, self.vessel = 0.0, 0.0, 0, 0, 0

    def add(self, found: Any, expected: Any) -> None:
        """Counts one frame: float32 maps [K, H, W] of the precision and of the reference."""
        import numpy as np

        change = np.abs(found.astype(np.float64) - expected)
        self.largest = max(self.largest, float(change.max(initial=0.0)))
        self.total += float(change.sum())
        limit = np.float32(self.threshold)
        masks = found >= limit, expected >= limit
        self.flipped += int((masks[0] != masks[1]).sum())
        self.vessel += int(masks[1].sum())
        self.pixels += change.size

    def as_dict(self) -> dict[str, float]:
        """Largest and mean change, pixels that change sides, pixels, vessel pixels in fp32."""
        return {
            "max_change": self.largest,
            "mean_change": self.total / self.pixels if self.pixels else math.nan,
            "flipped_pixels": self.flipped,
            "pixels": self.pixels,
            "vessel_pixels": self.vessel,
        }


def weight_bytes(model: Any) -> int:
    """Bytes of all weights and buffers of ``model``, with the scales of quantized ones."""
    seen = {t.data_ptr(): t.nbytes for tensor in _tensors(model) for t in _stored(tensor)}
    return sum(seen.values())


def _tensors(model: Any) -> Iterator[Any]:
    yield from model.parameters()
    yield from model.buffers()


def _stored(tensor: Any) -> Iterator[Any]:
    """The plain tensors that a weight is made of."""
    if hasattr(tensor, "__tensor_flatten__"):  # torchao
        for name in tensor.__tensor_flatten__()[0]:
            yield from _stored(getattr(tensor, name))
        return
    yield tensor
    state = getattr(tensor, "quant_state", None)  # bitsandbytes
    if state is not None:
        yield state.absmax
        if state.nested:
            yield state.state2.absmax


def measure(
    config: str,
    precision: str,
    maps: Path,
    *,
    checkpoint: str | None = None,
    frames: int | None = None,
    device: str = "auto",
    threshold: str | None = None,
    metrics: str | list[str] | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Predicts and scores test frames in one precision, in this process.

    Args:
        config: config file of a run.
        precision: as ``--precision`` of tools/test.py.
        maps: folder of the reference's maps; ``fp32`` writes them, others read them.
        checkpoint: file or folder; None scores the model as it is built.
        frames: the first so many; None: all.
        device: ``auto``, ``cpu`` or ``cuda``.
        threshold: as ``--threshold`` of tools/test.py.
        metrics: ``all``, ``fast`` or names, in place of the config's.
        options: overrides of the config.

    Returns:
        Memory in bytes, seconds per image, differences from the reference and metrics.
    """
    import numpy as np
    import torch
    from mmengine.registry import DATASETS, FUNCTIONS, METRICS, MODELS

    import projects.sa2va  # noqa: F401
    from projects.sa2va.checkpoints import load_trained, read_checkpoint
    from projects.sa2va.config import load_config
    from projects.sa2va.engine.evaluation_setup import choose_threshold
    from projects.sa2va.placement import (
        choose_placement,
        parse_precision,
        prepare_for_prediction,
    )

    cfg = load_config(config, options)
    chosen = parse_precision(precision)
    chosen.before_build(cfg)
    choose_threshold(cfg, threshold, checkpoint, options)
    kind = "cpu" if device == "cpu" else "single"
    placement = choose_placement(cfg, kind, device=device, precision=chosen)
    cuda = placement.main.startswith("cuda")
    model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_trained(model, read_checkpoint(checkpoint), checkpoint)
    merge = (cfg.get("test_cfg") or {}).get("merge_lora", False)
    prepare_for_prediction(model, merge_lora=merge, precision=chosen, placement=placement)
    model.eval()
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    collate = FUNCTIONS.get("sa2va_collate")
    own = {"metric_set": metrics} if metrics is not None else {}
    evaluator = METRICS.build({**cfg.test_evaluator, **own, "out_dir": None})
    count = len(dataset) if frames is None else min(frames, len(dataset))
    differences, seconds = Differences(evaluator.threshold), 0.0
    model.test_step({"inputs": collate([dataset[0]])["inputs"]})  # not timed: it warms up
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for index in range(count):
        batch = collate([dataset[index]])
        start = time.perf_counter()
        predictions = model.test_step({"inputs": batch["inputs"]})  # its maps are on the host
        seconds += time.perf_counter() - start
        found, file = predictions[0].probabilities.numpy(), maps / f"{index}.npy"
        if precision == REFERENCE:
            np.save(file, found)
        differences.add(found, np.load(file))
        evaluator.process({"truth": batch["truth"], "meta": batch["meta"]}, predictions)
    return {
        "precision": chosen.as_dict(),
        "frames": count,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": str(torch.__version__),
        "weights_bytes": weight_bytes(model),
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds_per_image": seconds / count,
        "threshold": evaluator.threshold,
        "differences": differences.as_dict(),
        "metrics": {k: v for k, v in evaluator.evaluate(count).items() if math.isfinite(v)},
    }


_HEAD = ("precision", "weights, GiB", "peak reserved, GiB", "peak resident, GiB", "s/image")
_HEAD += ("max change", "mean change", "pixels that flip")


def tables(results: dict[str, dict[str, Any]]) -> str:
    """Two tables: memory, time and maps by precision; metrics as their change from fp32's."""
    lines = [_line(_HEAD), "|---" * len(_HEAD) + "|"]
    for name, result in results.items():
        if "failed" in result:
            lines.append(_line([name, f"failed: {result['failed']}", *[""] * (len(_HEAD) - 2)]))
            continue
        found, peak = result["differences"], result["peak_reserved_bytes"]
        lines.append(
            _line(
                [
                    name,
                    f"{result['weights_bytes'] / GIB:.3f}",
                    "" if peak is None else f"{peak / GIB:.3f}",
                    f"{result['peak_resident_bytes'] / GIB:.2f}",
                    f"{result['seconds_per_image']:.3f}",
                    f"{found['max_change']:.1e}",
                    f"{found['mean_change']:.1e}",
                    f"{found['flipped_pixels']:,} of {found['pixels']:,}",
                ]
            )
        )
    reference = results[REFERENCE]["metrics"]
    own = {n: r["metrics"] for n, r in results.items() if "metrics" in r and n != REFERENCE}
    lines += ["", _line(["metric", REFERENCE, *own]), "|---" * (2 + len(own)) + "|"]
    for metric, value in reference.items():
        changes = [
            f"{found[metric] - value:+.5f}" if metric in found else "undefined"
            for found in own.values()
        ]
        lines.append(_line([metric, f"{value:.5f}", *changes]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _in_a_process(args: argparse.Namespace, name: str, maps: str) -> dict[str, Any]:
    """Result of ``measure`` in a new process, or ``failed`` with the last line that it said."""
    command = [sys.executable, __file__, args.config, "--one", name, "--maps", maps]
    command += ["--checkpoint", args.checkpoint, "--device", args.device]
    for option in ("frames", "threshold"):
        if getattr(args, option) is not None:
            command += [f"--{option}", str(getattr(args, option))]
    for option in ("metrics", "cfg_options"):
        if getattr(args, option):
            command += [f"--{option.replace('_', '-')}", *getattr(args, option)]
    environment = dict(os.environ)
    if args.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1].removeprefix(_RESULT))
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    about = [line for line in said if line.startswith("found:")] or said[-1:] or ["no message"]
    return {"failed": about[0]}


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prediction in each precision against float32.")
    parser.add_argument("config", help="config file the checkpoint was trained with")
    parser.add_argument(
        "--checkpoint", required=True, help="file, or 'none' for an untrained model"
    )
    parser.add_argument("--frames", type=int, help="first test frames (default: all)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), help="beside fp32")
    parser.add_argument("--threshold", help="as of tools/test.py")
    parser.add_argument("--metrics", nargs="+", help="all, fast or names (default: the config's)")
    parser.add_argument("--cfg-options", nargs="+", help="overrides, key=value, keys with dots")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--maps", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _print_result(args: argparse.Namespace) -> None:
    """What a process of its own does."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    given = ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    result = measure(
        args.config,
        args.one,
        args.maps,
        checkpoint=None if args.checkpoint.lower() == "none" else args.checkpoint,
        frames=args.frames,
        device=args.device,
        threshold=args.threshold,
        metrics=args.metrics[0] if args.metrics in (["all"], ["fast"]) else args.metrics,
        options=parser.parse_args(given).cfg_options,
    )
    print(_RESULT + json.dumps(result))


def main() -> None:
    """Runs fp32 and then every other precision, each in a process of its own."""
    args = _parse_args()
    if args.one:
        from projects.sa2va.errors import exit_on_user_error

        exit_on_user_error(_print_result)(args)
        return
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as maps:
        for name in dict.fromkeys((REFERENCE, *args.precisions)):
            print(f"{name} ...", file=sys.stderr, flush=True)
            results[name] = _in_a_process(args, name, maps)
            if name == REFERENCE and "failed" in results[name]:
                raise SystemExit(
                    f"{REFERENCE}, which all are compared with: {results[name]['failed']}"
                )
    print(tables(results))
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

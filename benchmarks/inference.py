"""Speed, memory and agreement of prediction at true size, through the product's own inferencer.

    python tools/make_synthetic.py work_dirs/bench_data --train 16 --val 4 --test 256 --size 512
    python benchmarks/load_true_size.py --size 8b --work-dir work_dirs/true_size --stages write
    python benchmarks/inference.py speed --data work_dirs/bench_data --weights work_dirs/true_size
    python benchmarks/inference.py placement --data work_dirs/bench_data --weights ...  # 4 cards
    python benchmarks/inference.py cpu --data work_dirs/bench_data --weights ...        # size 2b

speed       images/s from files on disk to maps on the host, and the memory of the card, for every
            precision, answer mode and batch size
placement   one card, two and four, each capped as the row says; predictions against one card's
cpu         seconds a frame of InternVL3-2B + SAM2-L without a card

Weights are random numbers in the released layout: time and memory are those of trained ones, masks
mean nothing. Each model runs in a process of its own. Prints a table; ``--out`` writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CONFIG = ROOT / "benchmarks" / "configs" / "true_size_files.py"
GIB = 2**30


@dataclass(frozen=True)
class Model:
    """One process.

    Attributes:
        name: of the rows.
        runs: (answer mode, batch size, frames) in turn.
        precision: see docs/precision.md.
        placement, cards, cap: where it runs, on which cards, and GiB that torch may take of each.
        size: ``8b`` or ``2b``.
    """

    name: str
    runs: tuple[tuple[str, int, int], ...]
    precision: str = "bf16"
    placement: str = "single"
    cards: tuple[int, ...] = (0,)
    cap: float | None = None
    size: str = "8b"


def _each(name: str, cards: tuple[int, ...]) -> Model:
    return Model(name, (("forced", 8, 512),), placement="data-parallel", cards=cards, cap=23.68)


_SPEED = tuple(
    (mode, batch, frames)
    for mode in ("forced", "generate")
    for batch, frames in ((1, 24), (8, 96), (32, 256), (64, 1024))
    if batch < 64 or mode == "forced"
)
_ONCE = (("forced", 1, 16), ("forced", 8, 48), ("generate", 1, 8))
_FEW = (("forced", 1, 4),)
SUITES: dict[str, list[list[Model]]] = {
    # Models of one inner list run at the same time.
    "speed": [[Model(name, _SPEED, name)] for name in ("bf16", "int8", "nf4")],
    "placement": [
        [
            Model("1 card", _ONCE, cap=23.68),
            Model("2 cards of 24 GB", _ONCE, placement="sharded", cards=(0, 1), cap=23.68),
        ],
        [
            Model("2 cards of 12 GB", _ONCE, placement="auto", cards=(0, 1), cap=11.84),
            Model("2 cards of 12 GB, int8", _ONCE, "int8", "auto", (0, 1), 11.84),
        ],
        [_each("2 cards of 24 GB, a model each", (0, 1))],
        [
            Model("4 cards of 24 GB", _ONCE, placement="sharded", cards=(0, 1, 2, 3), cap=23.68),
            Model("4 cards of 12 GB", _ONCE, placement="auto", cards=(0, 1, 2, 3), cap=11.84),
        ],
        [_each("4 cards of 24 GB, a model each", (0, 1, 2, 3))],
    ],
    "cpu": [[Model(f"CPU, {p}", _FEW, p, "cpu", (), None, "2b")] for p in ("fp32", "bf16", "int8")],
}


def measure(model: Model, data: Path, weights: Path, keep: Path) -> list[dict[str, Any]]:
    """Runs one model in this process: a row for each of its runs.

    Args:
        model: what is measured.
        data: folder of tools/make_synthetic.py.
        weights: work dir of load_true_size.py.
        keep: npz file for the maps of the first run.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, model.cards))
    os.environ["TRUE_SIZE_WEIGHTS"] = str(weights.resolve() / f"released_{model.size}")
    os.environ["SYNTHETIC_ROOT"] = str(data.resolve())
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

    import numpy as np
    import torch

    from projects.sa2va.inference import Sa2VAInferencer

    cards = range(torch.cuda.device_count() if model.placement != "cpu" else 0)
    for card in cards:
        if model.cap is not None:
            total = torch.cuda.get_device_properties(card).total_memory / GIB
            torch.cuda.set_per_process_memory_fraction(min(1.0, model.cap / total), card)
    files = sorted((data / "test" / "images").glob("*.png"))
    start = time.perf_counter()
    options = {"model.answer_mode": model.runs[0][0], "model.max_new_tokens": 8}
    if model.size == "8b":
        options["model.max_phrases_per_pass"] = max(batch for _, batch, _ in model.runs)
    inferencer = Sa2VAInferencer(
        CONFIG,
        "none",
        precision=model.precision,
        placement=model.placement,
        gpus=len(model.cards) if model.placement == "data-parallel" else None,
        memory_gib=None if model.cap is None else round(model.cap * 24 / 23.68, 2),
        batch_size=model.runs[0][1],
        # 4-bit weights cannot take a sum; as the recipes do, LoRA stays beside them.
        merge_lora=model.precision != "nf4",
        cfg_options=options,
    )
    built = time.perf_counter() - start
    rows = []
    with inferencer:
        for mode, batch, frames in model.runs:
            inferencer._pipeline.batch_size = batch
            if model.placement != "data-parallel":
                inferencer._pipeline.model.answer_mode = mode
            for card in cards:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(card)
            list(inferencer.stream(files[: 2 * batch]))  # warm-up
            chosen = (files * (frames // len(files) + 1))[:frames]
            sources = [str(file) for file in chosen]
            start = time.perf_counter()
            maps, model_seconds, worst = [], 0.0, 0.0
            for result in inferencer.stream(one for one in sources):
                model_seconds += result.timing["model"]
                worst = max(worst, result.timing["read"])
                if len(maps) < 4:
                    maps.append(result.probability)
            seconds = time.perf_counter() - start
            if mode == "forced" and batch == 1:
                np.savez(keep, *maps)
            rows.append(
                {
                    "model": model.name,
                    "precision": model.precision,
                    "mode": mode,
                    "batch": batch,
                    "frames": frames,
                    "images_per_second": frames / seconds,
                    "model_seconds_per_image": model_seconds / frames,
                    "longest_read_seconds": worst,
                    "peak_reserved_gib": [torch.cuda.max_memory_reserved(c) / GIB for c in cards],
                    "built_seconds": built,
                    "placement": inferencer.placement.describe(),
                    "cap_gib": model.cap,
                    "device": torch.cuda.get_device_name() if cards else "CPU",
                    "cores": len(os.sched_getaffinity(0)),
                    "torch": str(torch.__version__),
                }
            )
            print("ROW " + json.dumps(rows[-1]), flush=True)
    return rows


def run(model: Model, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs one model in a process of its own; of a failure it keeps the last line."""
    keep = args.keep / f"{model.name.replace(' ', '_').replace(',', '')}.npz"
    command = [sys.executable, __file__, args.suite, "--one", json.dumps(asdict(model))]
    command += ["--data", str(args.data), "--weights", str(args.weights), "--keep", str(keep)]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [json.loads(x[4:]) for x in done.stdout.splitlines() if x.startswith("ROW ")]
    if done.returncode:
        (keep.with_suffix(".log")).write_text(done.stdout + done.stderr)
        why = [x for x in done.stderr.splitlines() if x.strip()][-3:]
        rows.append({"model": model.name, "failed": " / ".join(why)})
    return rows


def compare(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Adds the largest difference of probability to the first model's maps, where kept."""
    import numpy as np

    files = {path.stem: path for path in folder.glob("*.npz")}
    names = [row["model"] for row in rows]
    first = files.get(names[0].replace(" ", "_").replace(",", "")) if names else None
    for row in rows:
        own = files.get(row["model"].replace(" ", "_").replace(",", ""))
        if first is None or own is None:
            continue
        with np.load(first) as a, np.load(own) as b:
            row["difference"] = max(float(abs(a[k] - b[k]).max()) for k in a.files)
            row["mask_flips"] = float(np.mean([((a[k] >= 0.5) != (b[k] >= 0.5)) for k in a.files]))


def text(row: dict[str, Any]) -> str:
    """One line of the table."""
    if "failed" in row:
        return f"| {row['model']} | failed: {row['failed'][:300]} | | | | | |"
    peak = " / ".join(f"{gib:.2f}" for gib in row["peak_reserved_gib"]) or "-"
    difference = f"{row['difference']:.1e}" if "difference" in row else ""
    return (
        f"| {row['model']} | {row['mode']} | {row['batch']} | {row['images_per_second']:.1f} | "
        f"{row['model_seconds_per_image'] * 1000:.0f} | {peak} | {difference} |"
    )


def main() -> None:
    """Runs a suite and prints its table."""
    parser = argparse.ArgumentParser(description="Speed and memory of prediction.")
    parser.add_argument("suite", choices=list(SUITES))
    parser.add_argument("--data", type=Path, required=True, help="of tools/make_synthetic.py")
    parser.add_argument("--weights", type=Path, required=True, help="of load_true_size.py")
    parser.add_argument("--only", nargs="+", help="names of models (default: all of the suite)")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--keep", type=Path, default=Path("work_dirs/inference_bench"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        fields = json.loads(args.one)
        fields["runs"] = tuple(map(tuple, fields["runs"]))
        measure(Model(**fields), args.data, args.weights, args.keep)
        return
    args.keep.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    print("| model | mode | batch | images/s | ms/image in the model | GiB reserved | difference |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for group in SUITES[args.suite]:
        chosen = [model for model in group if not args.only or model.name in args.only]
        with ThreadPoolExecutor(max(1, len(chosen))) as pool:
            for more in pool.map(lambda model: run(model, args), chosen):
                rows += more
                compare(rows, args.keep)
                print("\n".join(text(row) for row in more), flush=True)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

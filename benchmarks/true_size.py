"""Memory and speed of one training step and one prediction at true size, with random weights.

    python benchmarks/true_size.py --data work_dirs/demo/data [--memory-gib 23.68] [--steps 6]

Every case runs in a process of its own and goes through the product's own path: config, data set,
collate function, model, parameter groups, AdamW. ``--memory-gib`` caps the process, so that a
larger card behaves like a smaller one. Prints a table; ``--out`` writes it as JSON too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CONFIG = ROOT / "benchmarks" / "configs" / "true_size_8b.py"
GIB = 2**30
CASES = {
    "train 1024, batch 1": ("train", 1, {"processor.image_size": 1024}),
    "train 512, batch 1": ("train", 1, {"processor.image_size": 512}),
    "train 1024, batch 1, no checkpointing": (
        "train",
        1,
        {"processor.image_size": 1024, "model.mllm.gradient_checkpointing": False},
    ),
    "train 1024, batch 1, decoder frozen": (
        "train",
        1,
        {"processor.image_size": 1024, "model.grounding.train_mask_decoder": False},
    ),
    "train 1024, batch 1, NF4": (
        "train",
        1,
        {"processor.image_size": 1024, "model.mllm.quantization": "nf4"},
    ),
    "predict 1024, batch 1, forced, NF4": (
        "predict",
        1,
        {"processor.image_size": 1024, "model.mllm.quantization": "nf4"},
    ),
    "predict 1024, batch 1, forced": ("predict", 1, {"processor.image_size": 1024}),
    "predict 1024, batch 1, forced, LoRA merged": ("merged", 1, {"processor.image_size": 1024}),
    "predict 1024, batch 8, forced": ("predict", 8, {"processor.image_size": 1024}),
    "predict 1024, batch 1, generate 8 tokens": (
        "predict",
        1,
        {
            "processor.image_size": 1024,
            "model.answer_mode": "generate",
            "model.max_new_tokens": 8,
        },
    ),
}


def measure(name: str, steps: int, memory_gib: float | None) -> dict:
    """Runs one case in this process; returns peak memory in GiB and seconds per step."""
    # As the tools do; set PYTORCH_CUDA_ALLOC_CONF yourself to measure without.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

    import torch
    from mmengine.registry import DATASETS, FUNCTIONS, MODELS

    import projects.sa2va  # noqa: F401
    from projects.sa2va.config import load_config

    kind, batch_size, options = CASES[name]
    cuda = torch.cuda.is_available()
    if memory_gib is not None:
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gib / total))
    device = "cuda" if cuda else "cpu"
    # Random weights are drawn on the card, but for 4 bits: as with real ones, the whole model is
    # never on the card in bfloat16.
    drawn = "cpu" if "model.mllm.quantization" in options else device
    options = {**options, "model.mllm.init_device": drawn, "model.grounding.init_device": device}
    cfg = load_config(CONFIG, options)
    model = MODELS.build(cfg.model).to(device)
    loader = cfg.train_dataloader if kind == "train" else cfg.test_dataloader
    dataset = DATASETS.build(loader.dataset)
    collate = FUNCTIONS.get("sa2va_collate")
    batches = [
        collate([dataset[(i * batch_size + j) % len(dataset)] for j in range(batch_size)])
        for i in range(4)
    ]
    if kind == "train":
        from mmengine.optim import build_optim_wrapper

        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        model.train()

        def step(batch: dict) -> None:
            model.train_step(batch, wrapper)
    else:
        model.eval()
        if kind == "merged":
            model.mllm.merge_lora()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

        def step(batch: dict) -> None:
            model.test_step({"inputs": batch["inputs"]})

    weights = torch.cuda.memory_allocated() / GIB if cuda else 0.0
    step(batches[0])
    step(batches[1])
    if cuda:
        torch.cuda.synchronize()
    start = time.time()
    for index in range(steps):
        step(batches[index % 4])
    if cuda:
        torch.cuda.synchronize()
    seconds = (time.time() - start) / steps
    peak = torch.cuda.max_memory_reserved() / GIB if cuda else 0.0
    allocated = torch.cuda.max_memory_allocated() / GIB if cuda else 0.0
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "case": name,
        "weights_gib": weights,
        "peak_allocated_gib": allocated,
        "peak_reserved_gib": peak,
        "seconds": seconds,
        "trainable_millions": trainable / 1e6,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "memory_cap_gib": memory_gib,
        "torch": str(torch.__version__),
    }


def main() -> None:
    """Runs every case in a process of its own and prints the table."""
    parser = argparse.ArgumentParser(description="Memory and speed at true size.")
    parser.add_argument("--data", required=True, help="folder written by tools/make_synthetic.py")
    parser.add_argument("--memory-gib", type=float, help="cap of the process's GPU memory")
    parser.add_argument("--steps", type=int, default=6, help="timed steps after two of warm-up")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["SYNTHETIC_ROOT"] = str(Path(args.data).resolve())
    if args.one:
        print("RESULT " + json.dumps(measure(args.one, args.steps, args.memory_gib)))
        return
    rows = []
    print("| case | weights | peak allocated | peak reserved | s/step |\n|---|---|---|---|---|")
    for case in args.cases:
        command = [sys.executable, __file__, "--data", args.data, "--steps", str(args.steps)]
        if args.memory_gib is not None:
            command += ["--memory-gib", str(args.memory_gib)]
        done = subprocess.run([*command, "--one", case], capture_output=True, text=True)
        lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
        if not lines:
            why = [x for x in done.stderr.splitlines() if x.strip()][-1:] or ["no message"]
            rows.append({"case": case, "failed": why[0]})
            print(f"| {case} | failed: {why[0][:200]} | | | |", flush=True)
            continue
        row = json.loads(lines[0].removeprefix("RESULT "))
        rows.append(row)
        print(
            f"| {case} | {row['weights_gib']:.2f} GiB | {row['peak_allocated_gib']:.2f} GiB | "
            f"{row['peak_reserved_gib']:.2f} GiB | {row['seconds']:.3f} |",
            flush=True,
        )
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

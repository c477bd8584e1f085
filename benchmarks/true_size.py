"""Memory and speed of one training step and one prediction at true size, with random weights.

    python benchmarks/true_size.py --data work_dirs/demo/data [--memory-gib 23.68] [--steps 6]

Every case runs in a process of its own and goes through the product's own path: config, data set,
collate function, model, parameter groups, optimiser. ``--memory-gib`` caps the process, so that a
larger card behaves like a smaller one. Prints a table; ``--out`` writes it as JSON too. The cases
"as the reference" train the whole embedding and head, which the product refuses: for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CONFIGS = ROOT / "benchmarks" / "configs"
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        kind: ``train``, ``predict``, or ``merged`` (predict, LoRA merged first).
        batch: frames of a step.
        options: overrides of the config.
        size: ``8b`` or ``2b``.
        whole_tables: train embedding and head whole, as the reference does.
    """

    kind: str
    batch: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    size: str = "8b"
    whole_tables: bool = False


_NF4 = {"model.mllm.quantization": "nf4"}
_8BIT = {"optim_wrapper.optimizer.type": "AdamW8bit"}
_NO_ROWS = {"model.mllm.train_token_rows": False}
_NOT = {"model.mllm.gradient_checkpointing": False}
_TO_CPU = {"model.mllm.gradient_checkpointing": "cpu"}
_GENERATE = {"model.answer_mode": "generate", "model.max_new_tokens": 8}
CASES = {
    "train 1024, batch 1": Case("train"),
    "train 512, batch 1": Case("train", 1, {"processor.image_size": 512}),
    "train 1024, batch 1, no checkpointing": Case("train", 1, _NOT),
    "train 1024, batch 1, checkpointing to CPU": Case("train", 1, _TO_CPU),
    "train 1024, batch 4": Case("train", 4),
    "train 1024, batch 4, no checkpointing": Case("train", 4, _NOT),
    "train 1024, batch 4, checkpointing to CPU": Case("train", 4, _TO_CPU),
    "train 1024, batch 1, AdamW not fused": Case(
        "train", 1, {"optim_wrapper.optimizer.fused": False}
    ),
    "train 1024, batch 1, 8-bit AdamW": Case("train", 1, _8BIT),
    "train 1024, batch 1, decoder frozen": Case(
        "train", 1, {"model.grounding.train_mask_decoder": False}
    ),
    "train 1024, batch 1, NF4": Case("train", 1, _NF4),
    "train 1024, batch 1, NF4, 8-bit AdamW": Case("train", 1, {**_NF4, **_8BIT}),
    "train 1024, batch 1, as the reference (modules_to_save)": Case(
        "train", 1, _NO_ROWS, whole_tables=True
    ),
    "predict 1024, batch 1, forced, NF4": Case("predict", 1, _NF4),
    "predict 1024, batch 1, forced": Case("predict"),
    "predict 1024, batch 1, forced, LoRA merged": Case("merged"),
    "predict 1024, batch 8, forced": Case("predict", 8),
    "predict 1024, batch 1, generate 8 tokens": Case("predict", 1, _GENERATE),
    "2B: train 1024, batch 1": Case("train", size="2b"),
    "2B: train 1024, batch 1, NF4": Case("train", 1, _NF4, "2b"),
    "2B: train 1024, batch 1, as the reference (modules_to_save)": Case(
        "train", 1, _NO_ROWS, "2b", whole_tables=True
    ),
    "2B: predict 1024, batch 1, forced": Case("predict", size="2b"),
}


def train_whole_tables(model: Any) -> None:
    """Puts trained float32 copies beside embedding and head, as peft's ``modules_to_save``."""
    from peft.utils import ModulesToSaveWrapper

    core = model.mllm.model.get_base_model()
    for name in ("model.language_model.embed_tokens", "lm_head"):
        wrapped = ModulesToSaveWrapper(core.get_submodule(name), "default")
        wrapped.modules_to_save["default"].float().requires_grad_(True)
        core.set_submodule(name, wrapped)


def measure(
    name: str,
    steps: int,
    memory_gib: float | None = None,
    config: Path | None = None,
    weights: Path | None = None,
) -> dict[str, Any]:
    """Runs one case in this process; returns peak memory in GiB and seconds per step.

    Args:
        name: one of :data:`CASES`.
        steps: timed steps, after two of warm-up.
        memory_gib: cap of the process's GPU memory.
        config: config in place of the case's own.
        weights: work dir of load_true_size.py, whose files are loaded; None draws weights.
    """
    # As the tools do; set PYTORCH_CUDA_ALLOC_CONF yourself to measure without.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

    import torch
    from mmengine.registry import DATASETS, FUNCTIONS, MODELS

    import projects.sa2va  # noqa: F401
    from projects.sa2va.config import load_config
    from projects.sa2va.models.prediction import move_frozen_first

    case = CASES[name]
    cuda = torch.cuda.is_available()
    if memory_gib is not None:
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gib / total))
    device = "cuda" if cuda else "cpu"
    # Random weights are drawn on the card, but for 4 bits: as with real ones, the whole model is
    # never on the card in bfloat16.
    drawn = "cpu" if "model.mllm.quantization" in case.options else device
    drawn_on = {"model.mllm.init_device": drawn, "model.grounding.init_device": device}
    own = CONFIGS / f"true_size_{case.size}.py"
    if weights is not None:
        os.environ["TRUE_SIZE_WEIGHTS"] = str(weights.resolve() / f"released_{case.size}")
        own = CONFIGS / "true_size_files.py"
    cfg = load_config(config or own, {**case.options, **drawn_on})
    model = MODELS.build(cfg.model)
    move_frozen_first(model, device)
    if case.whole_tables:
        train_whole_tables(model)
    loader = cfg.train_dataloader if case.kind == "train" else cfg.test_dataloader
    dataset = DATASETS.build(loader.dataset)
    collate = FUNCTIONS.get("sa2va_collate")
    batches = [
        collate([dataset[(i * case.batch + j) % len(dataset)] for j in range(case.batch)])
        for i in range(4)
    ]
    if case.kind == "train":
        from mmengine.optim import build_optim_wrapper

        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        model.train()

        def step(batch: dict) -> None:
            model.train_step(batch, wrapper)
    else:
        model.eval()
        if case.kind == "merged":
            model.mllm.merge_lora()
        model.prepare_for_prediction()  # as the test loop does
        if cuda:
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
    parser.add_argument(
        "--weights", type=Path, help="work dir of load_true_size.py (default: random weights)"
    )
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["SYNTHETIC_ROOT"] = str(Path(args.data).resolve())
    if args.one:
        row = measure(args.one, args.steps, args.memory_gib, weights=args.weights)
        print("RESULT " + json.dumps(row))
        return
    rows = []
    print("| case | weights | peak allocated | peak reserved | s/step |\n|---|---|---|---|---|")
    for case in args.cases:
        command = [sys.executable, __file__, "--data", args.data, "--steps", str(args.steps)]
        if args.memory_gib is not None:
            command += ["--memory-gib", str(args.memory_gib)]
        if args.weights is not None:
            command += ["--weights", str(args.weights)]
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

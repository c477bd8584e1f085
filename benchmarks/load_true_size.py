"""Whether weights load, convert and read back at true size, and what that costs the host.

    python benchmarks/load_true_size.py --size 8b --work-dir work_dirs/true_size

Writes a folder as Sa2VA is released (sharded safetensors, bfloat16, config.json, tokenizer, SAM2's
video memory) with random numbers for weights, then measures, each in a process of its own:

load    model.pretrained as configs/_base_/models/sa2va_released_8b.py has it: frozen weights in
        bfloat16, LoRA of rank 64, token rows, load report with checksums
sa2va   tools/convert.py --to sa2va; afterwards every tensor of it is compared with the source's
native  tools/convert.py --to native; likewise, under our names

Sizes: ``8b`` InternVL3-8B and SAM2-L, ``2b`` InternVL3-2B and SAM2-L (both untied), ``tiny``
for trying this script. Names and shapes are those of transformers' modules on the meta device, by
way of weights/tables.py.

Peak anonymous memory is what a process cannot do without; peak resident memory also counts mapped
pages of weight files, which the system may take back. Weights that keep their file's dtype stay
mapped, so loading needs little beside what trains (float32). Free memory for 8b: 7 GB anonymous
(one shard of 5 GB while writing or exporting, libraries, trained weights), and 32 GB in all for
the mapped files to stay cached. Disk: 16.4 GB for the source and as much again for one export; an
export is deleted once it is compared, the source at the end of a call with all stages (``--keep``
keeps them). ``--stages`` (write, load, sa2va, native) splits the work over several calls with one
--work-dir and one --out. Nothing here uses a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CONFIGS = ROOT / "configs" / "_base_" / "models"
GIB = 2**30
STAGES = ("write", "load", "sa2va", "native")
# Size of a shard, as published at 8b, and small enough to give several otherwise.
SHARDS = {"8b": "5GB", "2b": "2GB", "tiny": "8MB"}
# InternVL3-2B where it differs from 8B; its vision encoder is the same.
_TEXT_2B = dict(
    hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2
)
_POOL = 33_554_393  # a prime, so that no two rows of a table are alike


# ------------------------------------------------------------------------ in other processes


def processor_config(size: str) -> dict[str, Any]:
    """``processor`` of the recipes, at the sizes of ``size``; its tokenizer is left out."""
    from mmengine.config import Config

    name = "sa2va_tiny.py" if size == "tiny" else "sa2va_released_8b.py"
    processor = Config.fromfile(CONFIGS / name).processor.to_dict()
    return {key: value for key, value in processor.items() if key != "tokenizer"}


def model_configs(size: str, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """transformers' ``InternVLConfig``, and the ``vision_config`` of SAM2, of ``size``."""
    from mmengine.config import Config
    from transformers import InternVLConfig

    name = "sa2va_tiny.py" if size == "tiny" else "sa2va_internvl3_8b_random.py"
    model = Config.fromfile(CONFIGS / name).model.to_dict()
    mllm, vision = model["mllm"]["config"], model["grounding"]["config"]["vision_config"]
    text = mllm["text_config"]
    # Published with rows for the tokens that Sa2VA adds; far more than the small tokenizer has.
    text["vocab_size"] = text["vocab_size"] + 5 if "vocab_size" in text else len(tokenizer)
    if size == "2b":
        text |= _TEXT_2B
    text["model_type"] = "qwen2"
    # The prompt and the mask decoder keep their published width: the video memory fits it.
    vision.pop("fpn_hidden_size", None)
    return InternVLConfig(**mllm), vision


def our_shapes(mllm: Any, vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Our names to shapes of a whole Sa2VA, SAM2's video memory included."""
    import torch
    from transformers import InternVLForConditionalGeneration, Sam2VideoConfig, Sam2VideoModel

    # As SAM2 (not SAM2.1), on which Sa2VA was trained.
    sam2 = Sam2VideoConfig(
        vision_config=vision,
        enable_occlusion_spatial_embedding=False,
        enable_temporal_pos_encoding_for_object_pointers=False,
    )
    hidden, prompt = mllm.text_config.hidden_size, sam2.prompt_encoder_config.hidden_size
    with torch.device("meta"):
        parts = {
            "mllm": InternVLForConditionalGeneration(mllm),
            "grounding": Sam2VideoModel(sam2),
            "seg_projector": torch.nn.Sequential(
                torch.nn.Linear(hidden, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, prompt)
            ),
        }
    shapes = {
        f"{part}.{name}": tuple(tensor.shape)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    if mllm.tie_word_embeddings:
        del shapes["mllm.lm_head.weight"]
    return shapes


def write(size: str, folder: Path) -> dict[str, Any]:
    """Writes the released-format folder; only one shard is ever in memory."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    import projects.sa2va  # noqa: F401
    from projects.sa2va.processing import Sa2VAProcessor
    from projects.sa2va.weights.published_configs import released_config
    from projects.sa2va.weights.tables import SA2VA_RELEASED

    byte_level = Sa2VAProcessor({"type": "byte_level"}, **processor_config(size))
    mllm, vision = model_configs(size, byte_level.tokenizer)
    shapes = our_shapes(mllm, vision)
    renamed = SA2VA_RELEASED.to_theirs(shapes)
    assert not (renamed.unknown or renamed.incomplete), renamed
    empty = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for piece in renamed.pieces
        for name, shape in piece.shapes(shapes.__getitem__).items()
    }
    order = {name: index for index, name in enumerate(empty)}
    # Drawing billions of numbers would take longer than everything else: each tensor is a piece
    # of one pool, from a place of its own, so that no two tensors are alike.
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    doubled = torch.cat([pool, pool])

    def fill(name: str) -> torch.Tensor:
        flat = torch.empty(empty[name].numel(), dtype=torch.bfloat16)
        start = (order[name] * 7919 * 64) % _POOL
        for chunk in flat.split(_POOL):
            chunk.copy_(doubled[start : start + len(chunk)])
        return flat.view(empty[name].shape)

    folder.mkdir(parents=True)
    plan = split_torch_state_dict_into_shards(empty, max_shard_size=SHARDS[size])
    for file, names in plan.filename_to_tensors.items():
        save_file({name: fill(name) for name in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    template: dict[str, Any] = {"model_type": "sa2va_chat", "template": "qwen_chat"}
    if size == "tiny":  # published folders do not say it, and this size is in no list
        template["sam2_config"] = {"vision_config": vision}
    config = released_config(mllm, template)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    byte_level.tokenizer.save_pretrained(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_resident_gib": peak * 1024 / GIB,
        "tensors": len(empty),
        "parameters": sum(tensor.numel() for tensor in empty.values()),
        "shards": len(plan.filename_to_tensors),
    }


def load(size: str, folder: Path) -> dict[str, Any]:
    """Builds the recipes' model from the folder; reports its parts and their checksums."""
    from mmengine.config import Config
    from mmengine.registry import MODELS

    import projects.sa2va  # noqa: F401

    model = Config.fromfile(CONFIGS / "sa2va_released_8b.py").model
    model.pretrained = str(folder)
    tokenizer = {"type": "pretrained", "path": str(folder)}
    model.processor = {**processor_config(size), "tokenizer": tokenizer}
    start = time.time()
    built = MODELS.build(model)
    seconds = time.time() - start
    report = built.load_report()
    print(report.text())
    assert all(row.checksum for row in report.rows)
    parameters = list(built.parameters())
    return {
        "build_seconds": seconds,
        "weights_gib": sum(p.numel() * p.element_size() for p in parameters) / GIB,
        "trainable_millions": sum(p.numel() for p in parameters if p.requires_grad) / 1e6,
        "checksums": {row.part: row.checksum for row in report.rows},
    }


def compare(source: Path, export: Path, to: str) -> dict[str, Any]:
    """Every tensor of an export against the source's, one at a time.

    Raises:
        RuntimeError: names, dtypes, shapes or values differ.
    """
    import torch

    import projects.sa2va  # noqa: F401
    from projects.sa2va.weights import TensorFiles

    if to == "sa2va":
        first, second = (_by_their_name(TensorFiles(folder)) for folder in (source, export))
    else:
        # Names differ between the layouts, so both are read under ours.
        parts = (export, export / "sam2", export / "seg_projector")
        first, second = _by_our_name([source]), _by_our_name(parts)
    if first.keys() != second.keys():
        names = sorted(first.keys() ^ second.keys())
        raise RuntimeError(f"{len(names)} names are in one only: {names[:5]}")
    different = []
    for name, read in first.items():
        one, other = read(name), second[name](name)
        if one.dtype != other.dtype or not torch.equal(one, other):
            different.append(name)
    if different:
        raise RuntimeError(f"{len(different)} tensors differ: {different[:5]}")
    shards = list(export.rglob("*.safetensors"))
    return {"equal_tensors": len(first), "shards": len(shards)}


def _by_their_name(files: Any) -> dict[str, Callable[[str], Any]]:
    """Names to what reads one of them."""
    return dict.fromkeys(files, files.__getitem__)


def _by_our_name(folders: Iterable[Path]) -> dict[str, Callable[[str], Any]]:
    """Our names to what reads one of them."""
    from projects.sa2va.weights.layouts import Source, open_source

    def reader(source: Source) -> Callable[[str], Any]:
        pieces = source.renamed.by_target()
        return lambda name: pieces[name].read(source.files.__getitem__)[name]

    found: dict[str, Callable[[str], Any]] = {}
    for source in map(open_source, folders):
        found |= dict.fromkeys(source.renamed.by_target(), reader(source))
    return found


# ----------------------------------------------------------------- in this process: no torch


def measure(command: list[str], log: Path) -> dict[str, Any]:
    """Runs a command; returns its wall time and peak memory, and what it printed as RESULT.

    This process must stay small: a child's ru_maxrss starts with what its parent held.

    Raises:
        RuntimeError: it failed.
    """
    start, anonymous = time.time(), 0
    with open(log, "w") as stream:
        child = subprocess.Popen(
            [sys.executable, *command], stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT
        )
        pid = 0
        while not pid:
            anonymous = max(anonymous, _anonymous_bytes(child.pid))
            time.sleep(0.02)
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        child.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{text[-4000:]}")
    row = {
        "seconds": time.time() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_anonymous_gib": anonymous / GIB,
        "peak_resident_gib": usage.ru_maxrss * 1024 / GIB,
    }
    for line in text.splitlines():
        if line.startswith("RESULT "):
            row |= json.loads(line.removeprefix("RESULT "))
    return row


def _anonymous_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended
    return 0


def disk_gb(folder: Path) -> float:
    """Size of a folder's files in GB (10**9 bytes)."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e9


def run_stage(
    stage: str, size: str, work: Path, keep: bool, helper: ProcessPoolExecutor
) -> dict[str, Any]:
    """What one stage measured.

    Args:
        stage: one of :data:`STAGES`.
        size: of :data:`SHARDS`.
        work: folder of the source, the exports and the logs.
        keep: do not delete an export that was compared.
        helper: process for what is not measured: writing and comparing.
    """
    source, out, log = work / f"released_{size}", work / f"{stage}_{size}", work / f"{stage}.log"
    start = time.time()
    if stage == "write":
        shutil.rmtree(source, ignore_errors=True)
        row = helper.submit(write, size, source).result()
        return {"seconds": time.time() - start, **row, "disk_gb": disk_gb(source)}
    if not source.is_dir():
        raise SystemExit(f"no {source}: run --stages write first, with the same --work-dir")
    if stage == "load":
        row = measure([__file__, "--size", size, "--work-dir", str(work), "--load"], log)
        print(log.read_text().split("RESULT ")[0])
        return row
    shutil.rmtree(out, ignore_errors=True)
    command = [ROOT / "tools" / "convert.py", source, out, "--to", stage]
    try:
        row = {**measure([str(word) for word in command], log), "disk_gb": disk_gb(out)}
        print(log.read_text())
        start = time.time()
        compared = helper.submit(compare, source, out, stage).result()
        return {**row, **compared, "compare_seconds": time.time() - start}
    finally:
        if not keep:
            shutil.rmtree(out, ignore_errors=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| size | stage | wall | CPU | peak anonymous | peak resident | on disk | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cells = {
        "seconds": "{:.1f} s",
        "cpu_seconds": "{:.1f} s",
        "peak_anonymous_gib": "{:.2f} GiB",
        "peak_resident_gib": "{:.2f} GiB",
        "disk_gb": "{:.2f} GB",
    }
    notes = {
        "parameters": "{tensors} tensors of {parameters:,} numbers, {shards} shards",
        "weights_gib": "{weights_gib:.2f} GiB of weights, built in {build_seconds:.1f} s",
        "equal_tensors": "{equal_tensors} tensors equal, compared in {compare_seconds:.1f} s",
    }
    for row in rows:
        shown = [text.format(row[key]) if key in row else "" for key, text in cells.items()]
        note = [text.format(**row) for key, text in notes.items() if key in row]
        lines.append("| " + " | ".join([row["size"], row["stage"], *shown, *note]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the stages and prints the table."""
    parser = argparse.ArgumentParser(description="Loading and converting at true size.")
    parser.add_argument("--size", choices=list(SHARDS), default="8b")
    parser.add_argument("--work-dir", type=Path, required=True, help="where the folders go")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"some of {','.join(STAGES)}")
    parser.add_argument("--keep", action="store_true", help="do not delete the folders")
    parser.add_argument("--out", type=Path, help="JSON; rows of earlier calls stay in it")
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = args.work_dir.resolve()
    source = work / f"released_{args.size}"
    if args.load:
        print("RESULT " + json.dumps(load(args.size, source)))
        return
    stages = args.stages.split(",")
    if not set(stages) <= set(STAGES):
        parser.error(f"--stages {args.stages}: some of {','.join(STAGES)}")
    work.mkdir(parents=True, exist_ok=True)
    rows = json.loads(args.out.read_text()) if args.out and args.out.exists() else []
    common = {"cpus": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS", "default")}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as helper:
        for stage in (stage for stage in STAGES if stage in stages):
            row = run_stage(stage, args.size, work, args.keep, helper)
            rows = [r for r in rows if (r["size"], r["stage"]) != (args.size, stage)]
            rows.append({"size": args.size, "stage": stage, **row, **common})
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    if set(stages) == set(STAGES) and not args.keep:
        shutil.rmtree(source)


if __name__ == "__main__":
    main()

"""How far the model is from the reference implementation, at float32 and as the recipes compute.

    python benchmarks/reference_parity.py [--reference FOLDER] [--device cpu]

FOLDER holds golden numbers of bytedance/Sa2VA with tiny random weights (docs/testing.md, "Shared
data"): F1_model, F1_model_sam2_config.json, F2_preprocess, F4_forward. The weights go through
``model.pretrained``, the prompt through the processor, and one forced prediction for each image is
compared with the reference's, which ran in float32 with eager attention on a CPU.

Every case has the reference's tiles (up to 12) and ``reference_numerics``. ``bfloat16`` is
configs/_base_/models/sa2va_released_8b.py: frozen weights in bfloat16, LoRA (fresh, so it changes
nothing), token rows, both projectors and the mask decoder in float32, under bfloat16 autocast.

Prints a table; writes it, and its numbers as JSON, to benchmarks/results/ (``--out``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import projects.sa2va  # noqa: E402, F401
from projects.sa2va.datasets.image_io import read_image  # noqa: E402
from projects.sa2va.errors import SetupError, exit_on_user_error  # noqa: E402
from projects.sa2va.models import Sa2VAModel  # noqa: E402

IMAGES = ("img_a", "img_b", "img_c")
PHRASE = "blood vessel"
CASES: dict[str, dict[str, Any]] = {
    "float32, sdpa": dict(dtype="float32", attention="sdpa"),
    "float32, eager": dict(dtype="float32", attention="eager"),
    "bfloat16 (recipes), sdpa": dict(dtype="bfloat16", attention="sdpa"),
}
# Key, column head.
COLUMNS = {
    "seg_hidden": "[SEG] hidden",
    "seg_embed": "[SEG] embedding",
    "mask_logits": "mask logits",
    "iou": "predicted IoU",
    "probability": "probability",
    "pixels": "mask pixels",
}
_NEEDED = ("F1_model", "F1_model_sam2_config.json", "F2_preprocess", "F4_forward")


def find_reference(given: str | None) -> Path:
    """The folder of golden numbers: as given, or where the tests look for it.

    Raises:
        SetupError: it is not there, or is another folder.
    """
    shared = os.environ.get("SA2VA_SHARED", ROOT.parent / "shared")
    folder = Path(given) if given else Path(shared) / "reference"
    missing = [name for name in _NEEDED if not (folder / name).exists()]
    if missing:
        raise SetupError(
            found=f"no {', '.join(missing)} in {folder}",
            expected="the folder of golden numbers of the reference implementation",
            fix="give --reference FOLDER, or set SA2VA_SHARED to the folder that holds reference/",
        )
    return folder


def sam2_config(reference: Path) -> dict[str, Any]:
    """Sizes of the reference's tiny SAM2, which its config.json does not have."""
    sam = json.loads((reference / "F1_model_sam2_config.json").read_text(encoding="utf-8"))
    hiera, decoder = sam["hiera"], sam["mask_decoder"]
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_channel_list": sam["neck"]["backbone_channel_list"],
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": hiera["embed_dim"],
                "num_attention_heads": hiera["num_heads"],
                "blocks_per_stage": hiera["stages"],
                "embed_dim_per_stage": hiera["embed_dim_per_stage"],
                "num_attention_heads_per_stage": hiera["num_heads_per_stage"],
                "window_size_per_stage": hiera["window_spec"],
                "global_attention_blocks": hiera["global_att_blocks"],
            },
        },
        "mask_decoder_config": {"mlp_dim": decoder["transformer_mlp_dim"]},
    }


def build(reference: Path, dtype: str, attention: str) -> Sa2VAModel:
    """The recipes' model with the reference's weights, in eval mode; nothing trains at float32."""
    cfg = Config.fromfile(ROOT / "configs" / "_base_" / "models" / "sa2va_released_8b.py")
    model, folder = cfg.model, str(reference / "F1_model")
    model.pretrained = folder
    model.processor = {
        **cfg.processor,
        "tokenizer": {"type": "pretrained", "path": folder},
        "max_tiles": 12,
        "reference_numerics": True,
    }
    model.grounding.config = sam2_config(reference)
    for part in (model.mllm, model.grounding):
        part.dtype, part.attn_implementation = dtype, attention
    if dtype == "float32":
        model.autocast = None
        model.mllm.update(lora=None, train_token_rows=False)
    return MODELS.build(model).eval()


def predict(model: Sa2VAModel, image: Any) -> dict[str, Tensor]:
    """One forced prediction for uint8 RGB [H, W, 3], with what it goes through, float32."""
    seen: dict[str, Tensor] = {}

    def keep_embedding(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.update(seg_hidden=given[0], seg_embed=out)

    def keep_masks(_: nn.Module, __: tuple, out: tuple[Tensor, ...]) -> None:
        seen.update(masks=out[0][0, 0], iou=out[1][0, 0])

    handles = [
        model.seg_projector.register_forward_hook(keep_embedding),
        model.grounding.model.mask_decoder.register_forward_hook(keep_masks),
    ]
    processor, device = model.processor, next(model.parameters()).device
    tiles = processor.tiles(image)
    inputs = {
        "pixel_values": tiles.to(device),
        "tiles_per_image": [len(tiles)],
        "grounding_pixels": processor.grounding_pixels(image)[None].to(device),
        "prompts": [[processor.prompt_ids(PHRASE, len(tiles))]],
        "sizes": [image.shape[:2]],
    }
    seen["prompt"] = torch.cat([inputs["prompts"][0][0], processor.answer_ids()])
    seen["probability"] = model(inputs=inputs, mode="predict")[0].probabilities[0]
    for handle in handles:
        handle.remove()
    return {name: t.detach().float().cpu() for name, t in seen.items()}


def compare(own: dict[str, Tensor], golden: dict[str, Tensor]) -> dict[str, Any]:
    """Largest absolute deviations, and the share of mask pixels that differ at 0.5.

    Raises:
        RuntimeError: the prompts differ, so that there is nothing to compare.
    """
    if not torch.equal(own["prompt"].long(), golden["input_ids"]):
        raise RuntimeError("our prompt is not the reference's")
    best = int(golden["iou_scores"].argmax())
    probability = golden["final_logits"][0].sigmoid()
    pairs = {
        "seg_hidden": (own["seg_hidden"], golden["seg_hidden"]),
        "seg_embed": (own["seg_embed"], golden["seg_embed"]),
        "mask_logits": (own["masks"][best], golden["multimask_logits"][best]),
        "iou": (own["iou"], golden["iou_scores"]),
        "probability": (own["probability"], probability),
    }
    row: dict[str, Any] = {k: float((one - other).abs().max()) for k, (one, other) in pairs.items()}
    differ = (own["probability"] > 0.5) != (probability > 0.5)
    row |= {"pixels": float(differ.float().mean()), "differing": int(differ.sum())}
    row |= {"size": differ.numel(), "same_best": int(own["iou"].argmax()) == best}
    return row


def largest(reference: Path) -> dict[str, float]:
    """Largest absolute golden values: what the deviations are to be seen against."""
    goldens = [load_file(reference / "F4_forward" / f"{name}.safetensors") for name in IMAGES]
    names = {"seg_hidden": "seg_hidden", "seg_embed": "seg_embed", "iou": "iou_scores"}
    found = {k: max(float(g[n].abs().max()) for g in goldens) for k, n in names.items()}
    best = [g["multimask_logits"][int(g["iou_scores"].argmax())] for g in goldens]
    return {**found, "mask_logits": max(float(mask.abs().max()) for mask in best)}


def table(rows: list[dict[str, Any]], scale: dict[str, float]) -> str:
    """Markdown: a line for each case and image, then the worst of each case."""
    head = ["case", "image", *COLUMNS.values(), "same of three masks"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    shown = [f"{scale[key]:.3g}" if key in scale else "" for key in COLUMNS]
    lines.append(f"| largest reference value | | {' | '.join(shown)} | |")
    for row in rows:
        share = f"{100 * row['pixels']:.4g} % ({row['differing']} of {row['size']})"
        cells = [share if key == "pixels" else f"{row[key]:.1e}" for key in COLUMNS]
        bold = "**" if row["image"] == "worst" else ""
        same = "yes" if row["same_best"] else "no"
        lines.append(
            f"| {row['case']} | "
            + " | ".join(f"{bold}{c}{bold}" for c in (row["image"], *cells))
            + f" | {same} |"
        )
    return "\n".join(lines)


def worst(case: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest deviations of a case over its images."""
    most = max(rows, key=lambda row: row["pixels"])
    row = {key: max(r[key] for r in rows) for key in COLUMNS}
    counts = {key: most[key] for key in ("differing", "size")}
    same = all(r["same_best"] for r in rows)
    return {"case": case, "image": "worst", **row, **counts, "same_best": same}


@exit_on_user_error
def main() -> None:
    """Measures every case and writes the table."""
    parser = argparse.ArgumentParser(description="Deviation from the reference implementation.")
    parser.add_argument("--reference", help="folder of golden numbers")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks" / "results" / "reference_parity",
        help="files to write, without .json and .md",
    )
    args = parser.parse_args()
    reference = find_reference(args.reference)
    rows: list[dict[str, Any]] = []
    parts: dict[str, str] = {}
    for case, settings in CASES.items():
        model = build(reference, **settings).to(args.device)
        parts = {row.part: row.checksum for row in model.load_report().rows}
        own = []
        for name in IMAGES:
            image = read_image(reference / "F2_preprocess" / f"{name}.png")
            golden = load_file(reference / "F4_forward" / f"{name}.safetensors")
            row = compare(predict(model, image), golden)
            own.append({"case": case, "image": name, **row})
        rows += [*own, worst(case, own)]
    scale = largest(reference)
    text = table(rows, scale)
    print(text)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    result = {
        "rows": rows,
        "largest_reference_value": scale,
        "weights": parts,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()

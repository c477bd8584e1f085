"""The smallest experiment that runs for real: a toy model on a few small synthetic angiograms."""

from __future__ import annotations

import pprint
from pathlib import Path
from typing import Any

from projects.sa2va.datasets.synthetic import AngiogramParams, write_dataset
from tests.conftest import ROOT

BASES = ("models/sa2va_tiny", "datasets/synthetic", "schedules/scratch_adamw", "runtime")
SPLITS = ("train", "val", "test")
FRAME_SIZE = 64

_LOADER = dict(num_workers=0, persistent_workers=False)
# What makes it small. The architecture stays that of the demo, part for part.
TINY: dict[str, Any] = dict(
    processor=dict(tile_size=56, tokens_per_tile=4, image_size=64),
    model=dict(
        mllm=dict(
            lora=dict(r=2, lora_alpha=4),
            config=dict(
                text_config=dict(
                    hidden_size=32,
                    intermediate_size=64,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    max_position_embeddings=256,
                ),
                vision_config=dict(
                    image_size=[56, 56],
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                ),
            ),
        ),
        grounding=dict(
            config=dict(
                vision_config=dict(
                    backbone_config=dict(
                        hidden_size=8,
                        blocks_per_stage=[1, 1, 2, 1],
                        embed_dim_per_stage=[8, 16, 32, 64],
                        global_attention_blocks=[3],
                    ),
                    backbone_channel_list=[64, 32, 16, 8],
                    fpn_hidden_size=32,
                ),
                prompt_encoder_config=dict(hidden_size=32),
                mask_decoder_config=dict(
                    hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
                ),
            ),
        ),
    ),
    train_dataloader=dict(batch_size=2, **_LOADER),
    val_dataloader=dict(batch_size=4, **_LOADER),
    test_dataloader=dict(batch_size=4, num_workers=0),
    param_scheduler=[
        dict(type="LinearLR", start_factor=0.5, by_epoch=False, begin=0, end=2),
        dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=2, end=4),
    ],
    train_cfg=dict(max_iters=4, val_interval=2),
    default_hooks=dict(logger=dict(interval=1), checkpoint=dict(interval=2)),
    log_processor=dict(window_size=1),
    test_evaluator=dict(pictures=dict(best=1, worst=1, random=1), html_report=False),
)


def write_experiment(
    folder: Path, *, frames: tuple[int, int, int] = (8, 4, 5), **overrides: Any
) -> Path:
    """Renders a data set into ``folder`` and writes a config that trains on it for 4 iterations.

    Args:
        folder: an existing folder; ``data/``, ``tiny.py`` and ``experiment.py`` are put there.
        frames: of train, val and test; 4 a patient. A data set that is there already is used.
        **overrides: top-level keys of the config, merged over the tiny ones as mmengine merges a
            config over its base (``model=dict(mllm=dict(seed=1))``; ``_delete_=True`` replaces).

    Returns:
        Path of the config.
    """
    data = folder / "data"
    write_dataset(
        data,
        dict(zip(SPLITS, frames, strict=True)),
        size=FRAME_SIZE,
        params=AngiogramParams(difficulty=0.0),
        progress=False,
    )
    bases = [str(ROOT / "configs" / "_base_" / f"{name}.py") for name in BASES]
    _write_config(folder / "tiny.py", {"_base_": bases, "data_root": str(data), **TINY})
    config = folder / "experiment.py"
    _write_config(config, {"_base_": ["./tiny.py"], **overrides})
    return config


def _write_config(path: Path, keys: dict[str, Any]) -> None:
    lines = [f"{key} = {pprint.pformat(value, width=90)}\n" for key, value in keys.items()]
    path.write_text("".join(lines), encoding="utf-8")

"""The parts of the joint model, told from the names of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable

# First match wins. The names are those of the joint model, with and without peft's wrapping, and
# of the baselines (`network`).
PARTS: tuple[tuple[str, str], ...] = (
    ("LoRA", r"\.lora_"),
    ("token rows", r"trainable_tokens_delta|\.token_rows$"),
    ("MLLM vision encoder", r"^mllm\..*\bvision_tower\."),
    ("MLLM projector", r"^mllm\..*\bmulti_modal_projector\."),
    ("MLLM embeddings", r"^mllm\..*\bembed_tokens\."),
    ("MLLM head", r"^mllm\..*\blm_head\."),
    ("MLLM language model", r"^mllm\."),
    ("[SEG] projector", r"^seg_projector\."),
    ("SAM2 image encoder", r"^grounding\..*\bvision_encoder\."),
    ("SAM2 mask decoder", r"^grounding\..*\bmask_decoder\."),
    (
        "SAM2 video memory",
        r"^grounding\.(memory_|no_memory_pos|no_object_|occlusion_|mask_downsample\.|object_pointer_|"
        r"temporal_pos)",
    ),
    ("SAM2 prompt encoder", r"^grounding\."),
    ("high-resolution head", r"^high_resolution\."),
    ("network", r"^network\."),
    ("reconstruction head", r"^reconstruction_head\."),
)
MEMORY = "SAM2 video memory"

# Our names of the two tables whose rows are tokens.
EMBEDDING = "mllm.model.language_model.embed_tokens"
HEAD = "mllm.lm_head"


def part_of(name: str) -> str:
    """Returns the part that a weight of the joint model belongs to."""
    for part, pattern in PARTS:
        if re.search(pattern, name):
            return part
    return "other"


def by_part(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups names by part, in the order of :data:`PARTS`."""
    groups: dict[str, list[str]] = {part: [] for part, _ in PARTS} | {"other": []}
    for name in names:
        groups[part_of(name)].append(name)
    return {part: group for part, group in groups.items() if group}

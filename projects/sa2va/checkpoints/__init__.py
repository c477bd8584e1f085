"""Weights in and out: our own checkpoints, DeepSpeed folders, provenance."""

from .deepspeed_folder import allow_deepspeed_classes, is_deepspeed_folder
from .provenance import DATA_SPLITS_FILE, pack_message_hub, provenance, unpack_message_hub
from .store import (
    LoadReport,
    build_model_from_checkpoint,
    load_trained,
    read_checkpoint,
    sha256_of,
    write_atomically,
)

__all__ = [
    "DATA_SPLITS_FILE",
    "LoadReport",
    "allow_deepspeed_classes",
    "build_model_from_checkpoint",
    "is_deepspeed_folder",
    "load_trained",
    "pack_message_hub",
    "provenance",
    "read_checkpoint",
    "sha256_of",
    "unpack_message_hub",
    "write_atomically",
]

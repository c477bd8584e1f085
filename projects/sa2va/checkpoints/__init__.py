"""Weights in and out: our own checkpoints, DeepSpeed folders, provenance."""

from .deepspeed_folder import is_deepspeed_folder
from .initial import InitFrom, load_parts, read_initial
from .provenance import (
    DATA_SPLITS_FILE,
    TRAINING_RECORD,
    pack_message_hub,
    provenance,
    software,
    unpack_message_hub,
)
from .store import (
    AVERAGED,
    RAW,
    LoadReport,
    build_model_from_checkpoint,
    changed_frozen_state,
    check_kind,
    check_resumable,
    choose_weights,
    load_trained,
    read_checkpoint,
    sha256_of,
    write_atomically,
)
from .stored_config import read_stored_config

__all__ = [
    "AVERAGED",
    "DATA_SPLITS_FILE",
    "RAW",
    "TRAINING_RECORD",
    "InitFrom",
    "LoadReport",
    "build_model_from_checkpoint",
    "changed_frozen_state",
    "check_kind",
    "check_resumable",
    "choose_weights",
    "is_deepspeed_folder",
    "load_parts",
    "load_trained",
    "pack_message_hub",
    "provenance",
    "read_checkpoint",
    "read_initial",
    "read_stored_config",
    "sha256_of",
    "software",
    "unpack_message_hub",
    "write_atomically",
]

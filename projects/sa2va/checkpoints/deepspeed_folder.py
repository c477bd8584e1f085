"""Reading the trained weights out of a DeepSpeed ZeRO checkpoint folder, in float32."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from projects.sa2va.errors import CheckpointError
from projects.sa2va.weights.safe_torch import mmengine_objects, refused_code


def allow_deepspeed_classes() -> None:
    """Lets in exactly the classes that DeepSpeed writes into ZeRO checkpoints, and nothing else.

    They are plain records: loss-scale counters, an enum of ZeRO stages, fragment addresses.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals(
        [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    )


def is_deepspeed_folder(path: Path) -> bool:
    """Whether ``path`` is a checkpoint folder of DeepSpeed."""
    return path.is_dir() and any(path.glob("*model_states.pt"))


def read_deepspeed_folder(path: Path) -> dict[str, Any]:
    """Consolidates the shards to float32 and reads the provenance beside them.

    Returns:
        ``state_dict`` (trained parts only) and ``meta``, as in a checkpoint file.

    Raises:
        CheckpointError: shards are missing or cannot be read.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    allow_deepspeed_classes()
    first = sorted(path.glob("*model_states.pt"))[0]
    try:
        with mmengine_objects():
            states = torch.load(first, map_location="cpu", weights_only=True)
            state_dict = get_fp32_state_dict_from_zero_checkpoint(
                str(path.parent), tag=path.name, exclude_frozen_parameters=True
            )
    except Exception as error:
        # DeepSpeed raises anything from AssertionError to KeyError for a shard that is not there.
        raise CheckpointError(
            found=f"{path} cannot be consolidated: {_reason(error)}",
            expected="a whole DeepSpeed checkpoint folder: *model_states.pt and one "
            "*optim_states.pt for each process of the training run",
            fix="copy the whole folder, or use an earlier checkpoint",
        ) from error
    # DeepSpeed adds every buffer; SAM2's fixed position bases are the only ones, and not trained.
    buffers = set(states.get("buffer_names", []))
    trained = {name: value for name, value in state_dict.items() if name not in buffers}
    return {"state_dict": trained, "meta": states.get("meta", {})}


def _reason(error: Exception) -> str:
    """What went wrong, without torch's advice to load a file that it refuses unsafely."""
    if not isinstance(error, pickle.UnpicklingError):
        return f"{type(error).__name__}: {error}"
    code = refused_code(error)
    return f"a shard would have to run {code}" if code else "a shard is damaged"

"""Runners, loops, hooks, optimiser groups, FSDP2 (``fsdp.py``) and DeepSpeed (``zero.py``)."""

from .bare import bare_model
from .checkpoint_hook import Sa2VACheckpointHook
from .ema import WeightEMAHook
from .fsdp import Sa2VAShardedRunner
from .loops import Sa2VATestLoop, Sa2VATrainLoop, Sa2VAValLoop
from .memory import MemoryHook, Sa2VALogProcessor
from .optim import PartwiseConstructor
from .reconstruction import ReconstructionMetric, ReconstructionPictures
from .runner import Sa2VARunner
from .stopping import StopOnSignal
from .zero import Sa2VADeepSpeedStrategy, Sa2VAFlexibleRunner

__all__ = [
    "MemoryHook",
    "PartwiseConstructor",
    "ReconstructionMetric",
    "ReconstructionPictures",
    "Sa2VACheckpointHook",
    "Sa2VADeepSpeedStrategy",
    "Sa2VAFlexibleRunner",
    "Sa2VALogProcessor",
    "Sa2VARunner",
    "Sa2VAShardedRunner",
    "Sa2VATestLoop",
    "Sa2VATrainLoop",
    "Sa2VAValLoop",
    "StopOnSignal",
    "WeightEMAHook",
    "bare_model",
]

"""Runners, loops, optimiser groups, and DeepSpeed (``zero.py``)."""

from .loops import Sa2VATestLoop, Sa2VATrainLoop, Sa2VAValLoop
from .optim import PartwiseConstructor
from .runner import Sa2VARunner, bare_model
from .zero import Sa2VADeepSpeedStrategy, Sa2VAFlexibleRunner

__all__ = [
    "PartwiseConstructor",
    "Sa2VADeepSpeedStrategy",
    "Sa2VAFlexibleRunner",
    "Sa2VARunner",
    "Sa2VATestLoop",
    "Sa2VATrainLoop",
    "Sa2VAValLoop",
    "bare_model",
]

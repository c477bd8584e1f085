"""Reading training logs: curves, speed, memory, and whether a run has converged."""

from .logs import TrainingLog, read_log
from .verdict import Verdict, judge

__all__ = ["TrainingLog", "Verdict", "judge", "read_log"]

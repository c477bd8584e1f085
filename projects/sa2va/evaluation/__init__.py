"""Scoring predictions against masks: numbers, result files and pictures.

``metrics`` holds the arithmetic and the one rule for undefined values, ``vessel_metric`` the
evaluator that mmengine runs, ``writer`` the result files, ``pictures`` the six-panel pictures and
``table`` the table of the log. Nothing here is ever read by a model.
"""

from .metrics import METRIC_NAMES, Counts, FrameResult, Row, Summary, summarise
from .vessel_metric import VesselMetric

__all__ = [
    "METRIC_NAMES",
    "Counts",
    "FrameResult",
    "Row",
    "Summary",
    "VesselMetric",
    "summarise",
]

"""Scoring predictions against masks: numbers, statistics, result files and pictures.

Metrics: ``overlap``, ``ranking``, ``centreline``, ``surface`` and ``topology``, one family each,
over ``geometry``; ``metrics`` puts them together. ``rows`` is what is kept of each frame,
``summary`` the means, ``bootstrap`` their intervals, ``oracle`` the ceiling of the decoder's grid,
``phrases`` the scores by phrase,
``guards`` the checks, ``report`` all of it. ``vessel_metric`` is the evaluator that mmengine runs,
``scoring`` its work on one frame, ``writer`` the result files, ``pictures`` the six-panel pictures,
``table`` the table of the log. ``html_report`` makes a page of the files. ``run_folder`` reads
results back, ``rescore`` scores them, or masks of any origin, again, ``compare`` tells runs apart,
``presence`` finds what a run would be at other thresholds of presence.
``threshold_sweep``, ``threshold_choice`` and ``chosen_threshold`` choose a threshold, with
``postprocess``; ``calibration`` and ``reliability`` ask whether probabilities are right,
``diagrams`` draws both. Nothing here is ever read by a model.
"""

from .metrics import METRIC_NAMES, Scorer, Scores
from .overlap import Counts
from .rows import FrameResult, Row
from .summary import Summary, summarise
from .vessel_metric import VesselMetric

__all__ = [
    "METRIC_NAMES",
    "Counts",
    "FrameResult",
    "Row",
    "Scorer",
    "Scores",
    "Summary",
    "VesselMetric",
    "summarise",
]

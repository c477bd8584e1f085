"""Where a model runs when it predicts, and in which precision."""

from .choice import KINDS, Placement, choose_placement
from .precision import Precision, parse_precision
from .prepare import prepare_for_prediction

__all__ = [
    "KINDS",
    "Placement",
    "Precision",
    "choose_placement",
    "parse_precision",
    "prepare_for_prediction",
]

"""How much memory a config takes, said before anything is downloaded or loaded.

The model is built without data (torch's meta device), one training step and one prediction are
traced on tensors without data (:mod:`.tracing`), and what the strategy spreads, adds or takes off
the card is put on top (:mod:`.strategies`). :func:`make_plan` does all of it.
"""

from .card import Card
from .plan import Plan, make_plan
from .request import Request

__all__ = ["Card", "Plan", "Request", "make_plan"]

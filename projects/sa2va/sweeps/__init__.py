"""Ablations: every row of a table trained with every seed, tested alike, and compared.

``spec`` reads what is wanted, ``validate`` checks all of it before the first run, ``steps`` knows
the commands and what they leave behind, ``run`` and ``launch`` start them, ``progress`` says how
long it takes, ``statistics`` computes the numbers of the table and ``table`` writes it.
"""

from .run import Sweep
from .spec import Spec, read_spec
from .validate import check_data, resolve

__all__ = ["Spec", "Sweep", "check_data", "read_spec", "resolve"]

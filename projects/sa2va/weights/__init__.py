"""The formats that weights come in, below the model: reading, recognising, naming, reporting.

Nothing here knows our modules; the adapters of ``models`` ask for the tensors of their part, and
``checkpoints`` builds on both.
"""

from .report import LoadReport, PartRow, checksum
from .safe_torch import safe_torch_load
from .tensor_files import TensorFiles

__all__ = ["LoadReport", "PartRow", "TensorFiles", "checksum", "safe_torch_load"]

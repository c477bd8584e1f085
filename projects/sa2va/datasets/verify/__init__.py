"""The check of a data set: all findings, their pictures, and corrected annotations."""

from .findings import KINDS, Finding, FrameRef
from .run import Checked, label_config, verify

__all__ = ["KINDS", "Checked", "Finding", "FrameRef", "label_config", "verify"]

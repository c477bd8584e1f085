"""From config and weights to a model that is ready for prediction, in this process."""

from __future__ import annotations

from mmengine.registry import MODELS

from ..checkpoints import load_trained
from ..models import SegmentationModel
from ..placement import Placement, Precision, prepare_for_prediction
from ..weights.report import LoadReport
from .sources import ModelSource


def build_model(
    source: ModelSource, placement: Placement, precision: Precision
) -> tuple[SegmentationModel, LoadReport]:
    """Builds, loads strictly, and puts the model where it runs.

    Args:
        source: config (with ``precision.before_build`` in it, and ``test_cfg.merge_lora``) and
            checkpoint.
        placement: where it runs.
        precision: of its parts.

    Raises:
        UserError: the weights are not those of the config's model.
    """
    model = MODELS.build(source.cfg.model).eval()
    if source.checkpoint is None:
        report = model.load_report()
    else:
        report = load_trained(model, source.checkpoint, source.path, source.weights())
    merge_lora = source.cfg.test_cfg.merge_lora
    prepare_for_prediction(model, merge_lora=merge_lora, precision=precision, placement=placement)
    return model, report


def readers(processes: int = 1) -> int:
    """Threads that read images for one process of ``processes`` on this machine."""
    import os

    return max(2, min(8, len(os.sched_getaffinity(0)) // processes))

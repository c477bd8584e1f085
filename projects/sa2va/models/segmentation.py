"""What runners, loops, hooks and checkpoints need of a model: the one seam between them."""

from __future__ import annotations

import abc
import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from projects.sa2va.errors import ConfigError
from projects.sa2va.processing import Sa2VAProcessor
from projects.sa2va.weights.report import LoadReport

from .building import resolve_dtype
from .outputs import Prediction
from .prediction_parts import PredictionPart, exact_float32
from .trained import load_trained_state_dict, trained_parameters

_MOST_PIXELS = 2**25  # of maps that wait on a card to be brought to the host


class SegmentationModel(BaseModel, abc.ABC):
    """A model that segments phrases in images; the engine knows no more of it than this.

    Args:
        processor: keyword arguments of :class:`Sa2VAProcessor`; the same as the data sets'.
        autocast: dtype of autocast around the whole model, or None.
        data_preprocessor: mmengine's, which brings a batch to the device.

    Attributes:
        is_trainable: whether there is anything to train; class attribute, read before a model is
            built.
        kind: name of the class, also where a wrapper has changed it (fully_shard does).
        predicts_masks: whether it can be tested; class attribute, as above.
        answer_mode: how phrases are answered.
        mark: told where the parts of a step begin; engine/memory.py listens.
        changed_frozen: names of frozen weights that a checkpoint replaced (checkpoints/store.py).
        base_fingerprint: identity of the frozen weights by part (``parameters.fingerprint``).
        part_dtypes: dtype of the arithmetic of prediction by part, of those that have another
            than ``autocast`` says (placement/precision.py).
    """

    CONFIG_SCHEMAS: ClassVar[dict[str, Any]] = {"processor": Sa2VAProcessor}
    is_trainable: ClassVar[bool] = True
    predicts_masks: ClassVar[bool] = True
    answer_mode: str

    def __init__(
        self, processor: dict, autocast: str | None = None, data_preprocessor: dict | None = None
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.kind = type(self).__name__
        self.processor = Sa2VAProcessor(**processor)
        self.autocast_dtype = resolve_dtype(autocast) if autocast is not None else None
        self.mark: Callable[[str], None] = _no_mark
        self.changed_frozen: list[str] = []
        self.base_fingerprint: dict[str, str] = {}
        self.part_dtypes: dict[str, torch.dtype] = {}

    def answering(self) -> dict[str, Any]:
        """What decides the answers, for metrics.json."""
        return {"answer_mode": self.answer_mode}

    def init_weights(self) -> None:
        """Does nothing: mmengine would re-draw LoRA and every pretrained submodule."""

    def forward(
        self,
        inputs: dict[str, Any],
        masks: list[Tensor] | None = None,
        meta: list[dict] | None = None,
        mode: Literal["loss", "predict"] = "loss",
        skeletons: list[Tensor] | None = None,
    ) -> dict[str, Tensor] | list[Prediction]:
        """Losses of a training batch, or predictions of a test batch.

        Args:
            inputs: what the collate function puts there; see :meth:`loss` and :meth:`predict`.
            masks: training only: per sample uint8 [K, H, W].
            meta: training only: per sample a dict whose ``frame`` names it in messages.
            mode: ``loss`` or ``predict``.
            skeletons: training only: per sample uint8 [K, H, W], of data sets that make them.
        """
        device = inputs["grounding_pixels"].device.type
        whole = self.autocast_dtype is not None and not self.part_dtypes
        with torch.autocast(device, self.autocast_dtype, enabled=whole):
            if mode == "loss":
                read = self.processor.normalised(inputs, training=True)
                return self.loss(read, masks or [], meta or [], skeletons)
            if mode == "predict":
                if masks is not None or meta is not None or skeletons is not None:
                    raise ValueError(
                        "prediction takes images and phrases only, never masks or meta"
                    )
                return self.predict(self.processor.normalised(inputs))
        raise ValueError(f"mode is {mode!r}, expected 'loss' or 'predict'")

    def compute_dtype(self, part: str) -> torch.dtype | None:
        """Dtype of autocast around ``part`` in prediction; None where there is no autocast."""
        dtype = self.part_dtypes.get(part, self.autocast_dtype)
        return None if dtype is torch.float32 else dtype

    @contextlib.contextmanager
    def computing(self, part: str, device: torch.device) -> Iterator[None]:
        """Around all arithmetic of ``part`` in prediction: its own autocast, where it has one."""
        if not self.part_dtypes:  # that of forward() is around everything
            yield
            return
        dtype = self.compute_dtype(part)
        exact = self.part_dtypes.get(part) is torch.float32
        with (
            torch.autocast(device.type, dtype, enabled=dtype is not None),
            exact_float32() if exact else contextlib.nullcontext(),
        ):
            yield

    def prediction_parts(self) -> dict[str, PredictionPart]:
        """What can predict in a precision of its own; nothing by default."""
        return {}

    @abc.abstractmethod
    def loss(
        self,
        inputs: dict[str, Any],
        masks: list[Tensor],
        meta: list[dict],
        skeletons: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one batch: float32 scalars whose names begin with ``loss_``."""

    @abc.abstractmethod
    def predict(self, inputs: dict[str, Any]) -> list[Prediction]:
        """One prediction an image, at its original size."""

    @property
    @abc.abstractmethod
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grid that masks are drawn on before they are enlarged."""

    @abc.abstractmethod
    def load_report(self) -> LoadReport:
        """Where the weights come from, by part."""

    def added_tokens(self) -> dict[str, int]:
        """Names and ids of tokens that were added to a base tokenizer, whose rows are trained."""
        return {}

    def merge_lora(self) -> None:
        """Puts LoRA into the weights, for good.

        Raises:
            ConfigError: there is none.
        """
        raise ConfigError(
            found=f"test_cfg.merge_lora=True and model.type={self.kind!r}",
            expected="a model with LoRA",
            fix="set test_cfg.merge_lora=False",
        )

    def prepare_for_prediction(self) -> None:
        """Frees what only training needs, for good; predictions stay the same, bit for bit."""

    def rounded_for_prediction(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of :meth:`trained_state_dict`, the smallest that gives the same predictions."""
        return state

    def _to_original(self, logits: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Logit maps [N, h, w] to N probability maps [H, W] on the CPU, by way of the input size as
        the reference. Each is enlarged by itself, so that its bits do not depend on its batch."""
        side = self.processor.image_size
        exact = [(int(height), int(width)) for height, width in sizes]
        maps: list[Tensor] = []
        for size, group in itertools.groupby(range(len(logits)), exact.__getitem__):
            # A card is waited for once for many of them.
            for some in logits[list(group)].split(max(1, _MOST_PIXELS // math.prod(size))):
                enlarged = []
                for logit in some:
                    for target in ((side, side), size):
                        logit = F.interpolate(logit[None, None], target, mode="bilinear")[0, 0]
                    enlarged.append(logit.float().sigmoid())
                maps += torch.stack(enlarged).cpu().unbind()
        return maps

    def trained_state_dict(self) -> dict[str, Tensor]:
        """The tensors of everything that trains, on the CPU, under this model's own names."""
        return {
            name: parameter.detach().cpu().clone()
            for name, parameter in trained_parameters(self).items()
        }

    def load_trained_state_dict(self, state: dict[str, Tensor], source: str) -> dict[str, int]:
        """Loads what :meth:`trained_state_dict` gave; see :mod:`.trained`."""
        return load_trained_state_dict(self, state, source)


def nothing_to_train(kind: str) -> ConfigError:
    """The error of a training run with a model that has no parameters.

    Args:
        kind: ``model.type``.
    """
    return ConfigError(
        found=f"model.type={kind!r}: nothing to train",
        expected="a model with parameters",
        fix="score it as it is: python tools/test.py CONFIG --checkpoint none",
    )


def predicts_no_masks(kind: str) -> ConfigError:
    """The error of a prediction with a model that only pretrains another's weights.

    Args:
        kind: ``model.type``.
    """
    return ConfigError(
        found=f"model.type={kind!r}: it predicts no masks",
        expected="a model that segments, such as Sa2VAModel",
        fix="train one from these weights, init_from=dict(checkpoint=FILE, parts=['SAM2 image "
        "encoder']), and test that; validation while this one trains says how well it does",
    )


def _no_mark(part: str) -> None:
    """Nobody measures memory."""

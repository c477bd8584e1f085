"""What the joint model needs of a multimodal language model: one adapter class per family."""

from __future__ import annotations

import abc

from torch import Tensor, nn

from projects.sa2va.weights.report import PartRow

from .prediction_parts import PredictionPart


class MLLMAdapter(nn.Module, abc.ABC):
    """What the joint model needs of a multimodal language model.

    A new family (Qwen2.5-VL, Qwen3-VL) is one subclass. ``T`` is the number of visual tokens of a
    tile, ``D`` the hidden size.

    Attributes:
        rows: where the weights come from, for the load report.
    """

    rows: list[PartRow]

    @property
    @abc.abstractmethod
    def hidden_size(self) -> int:
        """D."""

    def merge_lora(self) -> None:
        """Puts adapters into the weights they stand on, where a family has any."""

    @abc.abstractmethod
    def prediction_parts(self) -> dict[str, PredictionPart]:
        """``llm`` and ``vit``: what is below the language model and the vision encoder."""

    @abc.abstractmethod
    def visual_tokens(self, pixel_values: Tensor) -> Tensor:
        """Encodes tiles [n, 3, S, S] to visual tokens [n, T, D]."""

    @abc.abstractmethod
    def embed(self, input_ids: Tensor, visual_tokens: Tensor) -> Tensor:
        """Embeds ids [B, L], visual tokens [*, T, D] in place of image tokens, to [B, L, D]."""

    @abc.abstractmethod
    def hidden_states(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """Runs the language model on [B, L, D]; gives its last hidden state [B, L, D] only."""

    @abc.abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits [N, V] of hidden states [N, D]."""

    @abc.abstractmethod
    def generate(self, embeddings: Tensor, attention_mask: Tensor, max_new_tokens: int) -> Tensor:
        """Greedy continuation [B, new] of left-padded prompts [B, L, D], without image tokens."""

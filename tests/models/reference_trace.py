"""Records what one prediction goes through, under the names that the golden files (F4) use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from projects.sa2va.models import Prediction, Sa2VAModel

from .conftest import PHRASE, predict_inputs


class Trace:
    """Whole tensors of one prediction; a name that is met again keeps its last value.

    Args:
        model: a model in eval mode.
        image: uint8 RGB [H, W, 3], asked about ``PHRASE``.

    Attributes:
        prediction: what the model gave.
        answers: generated ids, one list for each phrase; empty where the answer is forced.
        highres: for each [SEG] the logits at SAM2's input size.
        final: for each [SEG] the logits at the image's size, [H, W].
    """

    def __init__(self, model: Sa2VAModel, image: np.ndarray) -> None:
        self.seen: dict[str, Tensor] = {}
        self.answers: list[list[int]] = []
        self.highres: list[Tensor] = []
        self.final: list[Tensor] = []
        self._handles: list[Any] = []
        inputs = predict_inputs(model.processor, [image], [[PHRASE]])
        with pytest.MonkeyPatch.context() as patch:
            self._watch(model, patch)
            self.prediction: Prediction = model(inputs=inputs, mode="predict")[0]
        for handle in self._handles:
            handle.remove()

    def __getitem__(self, name: str) -> Tensor:
        return self.seen[name]

    def _watch(self, model: Sa2VAModel, patch: pytest.MonkeyPatch) -> None:
        mllm, sam = model.mllm._core.model, model.grounding.model
        self._after(mllm.vision_tower, lambda _, out: {"vit_last_hidden": out.last_hidden_state})
        self._after(mllm.multi_modal_projector, lambda _, out: {"vit_embeds": out})
        self._after(
            mllm.language_model,
            lambda given, out: {
                "hidden0": given["inputs_embeds"],
                "last_hidden": out.last_hidden_state,
            },
        )
        for number, layer in enumerate(mllm.language_model.layers, start=1):
            self._after(layer, lambda _, out, name=f"hidden{number}": {name: out})
        self._after(
            model.seg_projector, lambda given, out: {"seg_hidden": given[0], "seg_embed": out}
        )
        self._after(
            sam.vision_encoder.backbone,
            lambda _, out: {
                f"trunk{stage}": maps.permute(0, 3, 1, 2)
                for stage, maps in enumerate(out.intermediate_hidden_states)
            },
        )
        self._after(
            sam.vision_encoder,
            lambda _, out: {
                f"fpn{level}": maps for level, maps in enumerate(out.fpn_hidden_states)
            },
        )
        self._after(sam.mask_decoder, _decoder_maps)
        embed, to_original, generate = model.mllm.embed, model._to_original, model._generate

        def watched_embed(ids: Tensor, visual: Tensor) -> Tensor:
            self.seen["input_ids"] = ids
            return embed(ids, visual)

        def watched_generate(*args: Any) -> list[Tensor]:
            answers = generate(*args)
            self.answers += [answer.tolist() for answer in answers]
            return answers

        def watched_to_original(logits: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
            interpolate, steps = nn.functional.interpolate, []
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(
                    nn.functional,
                    "interpolate",
                    lambda *a, **k: steps.append(interpolate(*a, **k)) or steps[-1],
                )
                probabilities = to_original(logits, sizes)
            self.highres += [step[0, 0] for step in steps[::2]]
            self.final += [step[0, 0] for step in steps[1::2]]
            return probabilities

        patch.setattr(model.mllm, "embed", watched_embed)
        patch.setattr(model, "_generate", watched_generate)
        patch.setattr(model, "_to_original", watched_to_original)

    def _after(self, module: nn.Module, read: Any) -> None:
        """Keeps ``read(arguments, output)`` after each call of ``module``."""

        def hook(_: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            self.seen.update(read(kwargs or args, out))

        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))


def _decoder_maps(given: dict[str, Any], out: tuple[Tensor, ...]) -> dict[str, Tensor]:
    stride4, stride8 = given["high_resolution_features"]
    masks, iou, tokens, score = out
    return {
        "feat_s0": stride4,
        "feat_s1": stride8,
        "decoder_image_embeddings": given["image_embeddings"],
        "dense_pe": given["image_positional_embeddings"],
        "sparse_prompt": given["sparse_prompt_embeddings"][:, 0],
        "dense_prompt": given["dense_prompt_embeddings"],
        "multimask_logits": masks[:, 0],
        "iou_scores": iou[:, 0],
        "mask_tokens_out": tokens[:, 0],
        "object_score_logits": score[:, 0],
    }

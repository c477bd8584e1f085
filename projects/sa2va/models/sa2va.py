"""The joint model: the hidden state of [SEG] prompts SAM2's mask decoder.

Source: Sa2VA (Yuan et al., 2025; bytedance/Sa2VA, projects/sa2va/models/sa2va.py and
hf/models/modeling_sa2va_chat.py). Differences, on purpose: objects are decoded as they are (not
repeated to five), [SEG] tokens and masks that do not pair up are an error, masks are supervised at
a resolution that keeps vessels, and prediction never sees a mask.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from projects.sa2va.errors import ConfigError, DataError, listing
from projects.sa2va.weights.report import LoadReport, PartRow

from .answering import ANSWER_MODES, AnsweringModel
from .building import random_rows
from .grounding import GroundingAdapter, ImageFeatures
from .high_resolution import HighResolutionHead, build_head
from .losses import build_mask_loss
from .mllm import MLLMAdapter
from .outputs import DEFAULT_PRESENCE_THRESHOLD
from .parameters import fingerprint, frozen_tensors
from .prediction import round_trained_linears, trained_linears
from .prediction_parts import PredictionPart
from .pretrained import Sa2VAWeights


@MODELS.register_module()
class Sa2VAModel(AnsweringModel):
    """Multimodal LLM + [SEG] projector + mask model.

    Args:
        mllm: config of an :class:`MLLMAdapter` (``type='InternVLAdapter'``).
        grounding: config of a :class:`GroundingAdapter` (``type='Sam2Adapter'``).
        processor: keyword arguments of :class:`Sa2VAProcessor`; the same as the data sets'.
        pretrained: hub id or local folder of a whole Sa2VA (released, or exported by
            tools/convert.py): MLLM, SAM2 and [SEG] projector. None takes each from its own key,
            and draws the projector from ``seed``.
        high_resolution: keyword arguments of :class:`HighResolutionHead` (``stride``, ``width``,
            ``context``), which corrects SAM2's masks at the input's resolution; None: SAM2's masks
            as they are.
        mask_loss: config of the mask loss; ``processor.reference_numerics`` sets its weighing.
        language_loss_weight: weight of the cross-entropy over labelled tokens.
        answer_mode: ``forced`` predicts with one pass over question + answer template;
            ``generate`` decodes greedily and reports whether [SEG] came; ``choice`` takes the
            likelier of the templates for a phrase that is there and one that is not
            (:mod:`.answering`).
        presence_threshold: of ``choice``: a phrase is answered as present from this probability
            on, in [0, 1]. 0 gives every phrase a mask, and its presence with it.
        max_new_tokens: longest generated answer.
        max_phrases_per_pass: phrases that go through the language model together in prediction;
            a batch with more takes several passes.
        autocast: dtype of autocast around the whole model, or None. bfloat16 beside bfloat16
            frozen weights, None for a float32 model.
        seed: seed of the [SEG] projector and of the high-resolution head.

    Shapes: B samples, L tokens, n tiles in all, N phrases in all, S the mask model's input size.
    """

    CONFIG_SCHEMAS: ClassVar = {
        "high_resolution": (
            HighResolutionHead,
            ("embedding_size", "prompt_size", "seed"),
        )
    }

    def __init__(
        self,
        mllm: dict,
        grounding: dict,
        processor: dict,
        pretrained: str | None = None,
        high_resolution: dict | None = None,
        mask_loss: dict | None = None,
        language_loss_weight: float = 1.0,
        answer_mode: Literal["forced", "generate", "choice"] = "forced",
        presence_threshold: float = DEFAULT_PRESENCE_THRESHOLD,
        max_new_tokens: int = 32,
        max_phrases_per_pass: int = 16,
        autocast: str | None = "bfloat16",
        seed: int = 0,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(processor, autocast, data_preprocessor)
        if max_phrases_per_pass < 1:
            raise ConfigError(
                found=f"model.max_phrases_per_pass={max_phrases_per_pass}",
                expected="at least 1",
                fix="correct model.max_phrases_per_pass",
            )
        if answer_mode not in ANSWER_MODES:
            raise ConfigError(
                found=f"model.answer_mode={answer_mode!r}",
                expected=f"one of {', '.join(ANSWER_MODES)}",
                fix="correct model.answer_mode",
            )
        if (
            isinstance(presence_threshold, bool)
            or not isinstance(presence_threshold, int | float)
            or not 0 <= presence_threshold <= 1
        ):
            raise ConfigError(
                found=f"model.presence_threshold={presence_threshold!r}",
                expected="a probability in [0, 1]",
                fix="correct model.presence_threshold",
            )
        if presence_threshold != DEFAULT_PRESENCE_THRESHOLD and answer_mode != "choice":
            raise ConfigError(
                found=f"model.presence_threshold={presence_threshold!r} with model.answer_mode="
                f"{answer_mode!r}",
                expected="answers that are chosen: no other kind has a presence",
                fix="set model.answer_mode=choice, or "
                f"model.presence_threshold={DEFAULT_PRESENCE_THRESHOLD}",
            )
        if self.processor.image_only:
            raise ConfigError(
                found="processor.image_only=True and model.type='Sa2VAModel'",
                expected="prompts and tiles: the language model reads them",
                fix="set processor.image_only=False",
            )
        whole = Sa2VAWeights(pretrained) if pretrained is not None else None
        if whole is not None:
            whole.check_vocabulary(self.processor)
            mllm, grounding = whole.configs(mllm, grounding)
        self.mllm: MLLMAdapter = MODELS.build({**mllm, "processor": self.processor})
        self.grounding: GroundingAdapter = MODELS.build(
            {**grounding, "image_size": self.processor.image_size}
        )
        self.mask_loss = build_mask_loss(mask_loss, self.processor.reference_numerics)
        self.language_loss_weight = language_loss_weight
        self.answer_mode = answer_mode
        self.presence_threshold = presence_threshold
        self.max_new_tokens = max_new_tokens
        self.max_phrases_per_pass = max_phrases_per_pass
        hidden, prompt = self.mllm.hidden_size, self.grounding.prompt_size
        with torch.random.fork_rng():
            torch.manual_seed(seed + 3)
            self.seg_projector = nn.Sequential(
                nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, prompt)
            )
        if whole is None:
            self.projector_rows = random_rows("seg_projector.", self.seg_projector, seed)
        else:
            self.projector_rows = whole.load_projector(self.seg_projector)
        self.high_resolution = build_head(
            high_resolution, self.grounding.embedding_size, prompt, seed
        )
        self.head_rows: list[PartRow] = []
        if self.high_resolution is not None:
            self.head_rows = random_rows("high_resolution.", self.high_resolution, seed)
        self.base_fingerprint = fingerprint(frozen_tensors(self))

    def loss(
        self,
        inputs: dict[str, Any],
        masks: list[Tensor],
        meta: list[dict],
        skeletons: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            inputs: ``input_ids``, ``labels``, ``attention_mask`` int64 [B, L]; ``pixel_values``
                [n, 3, T, T]; ``grounding_pixels`` [B, 3, S, S].
            masks: per sample uint8 [K, H, W]; K may be 0 (language loss only).
            meta: per sample a dict with ``frame``.
            skeletons: per sample uint8 [K, H, W], where the data set makes them.

        Returns:
            ``loss_mask``, ``loss_dice``, what else the mask loss has, and ``loss_language``:
            float32 scalars.

        Raises:
            DataError: a sample whose [SEG] tokens and masks do not pair up.
        """
        ids, labels = inputs["input_ids"], inputs["labels"]
        is_seg = ids == self.processor.seg_token_id
        self._check_pairs(is_seg.sum(dim=1).tolist(), masks, meta)
        self.mark("vision")
        visual = self.mllm.visual_tokens(inputs["pixel_values"])
        self.mark("language")
        hidden = self.mllm.hidden_states(self.mllm.embed(ids, visual), inputs["attention_mask"])
        self.mark("sam2")
        features = self.encode_images(inputs["grounding_pixels"])
        self.mark("masks")

        owner = is_seg.nonzero()[:, 0]
        if len(owner):
            logits = self._decode(
                features.select(owner), self.seg_projector(self._projectable(hidden[is_seg]))
            )
            losses = self.mask_loss(logits, masks, skeletons=skeletons)
        else:
            # Every trained part takes part in every backward pass, or DDP and ZeRO-3 wait forever.
            first = torch.zeros(1, dtype=torch.long, device=ids.device)
            logits = self._decode(
                features.select(first), self.seg_projector(self._projectable(hidden[:1, 0]))
            )
            losses = {name: logits.sum() * 0.0 for name in self.mask_loss.names}
        losses["loss_language"] = self.language_loss_weight * self._language_loss(hidden, labels)
        self.mark("backward")
        return losses

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """What the mask model, and the high-resolution head, see in images [B, 3, S, S]."""
        features = self.grounding.encode(images)
        if self.high_resolution is not None:
            features.stem = self.high_resolution.stem(images)
        return features

    def _decode(self, features: ImageFeatures, embeddings: Tensor) -> Tensor:
        """Mask logits of N [SEG] embeddings [N, C], float32 [N, h, w]."""
        head = self.high_resolution
        if head is None:
            return self.grounding.decode(features, embeddings).logits
        decoded = self.grounding.decode(features, embeddings, with_upscaled=True)
        return head(decoded.logits, decoded.upscaled, features.stem, embeddings)

    def _language_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy at labelled positions; logits are computed nowhere else."""
        targets = labels[:, 1:]
        labelled = targets != -100
        if not bool(labelled.any()):
            return self.mllm.logits(hidden[:1, 0]).float().sum() * 0.0
        logits = self.mllm.logits(hidden[:, :-1][labelled])
        return F.cross_entropy(logits.float(), targets[labelled])

    @staticmethod
    def _check_pairs(counts: list[int], masks: list[Tensor], meta: list[dict]) -> None:
        if len(masks) != len(counts):
            raise ValueError(f"{len(counts)} samples, {len(masks)} entries in masks")
        wrong = [
            f"{_name(meta, i)} ({count} [SEG], {len(masks[i])} masks)"
            for i, count in enumerate(counts)
            if count != len(masks[i])
        ]
        if wrong:
            raise DataError(
                found="[SEG] tokens and masks that do not pair up: " + listing(wrong),
                expected="one mask for every [SEG] in the answer",
                fix="give each phrase one mask; if the answer is cut, raise the length limit or "
                "lower max_phrases_per_sample of the data set",
            )

    def prepare_for_prediction(self) -> None:
        """Frees what only training needs, for good; predictions stay the same, bit for bit."""
        freed: Counter[torch.dtype | None] = Counter()
        for name in ("llm", "vit"):
            dtype = self.compute_dtype(name)
            for module in self.prediction_parts()[name].modules:
                freed[dtype] += round_trained_linears(module, dtype)
        for dtype, size in freed.items():
            if size:
                torch.cuda.empty_cache()
                print_log(
                    f"Trained linear layers in {dtype} as autocast rounds them: "
                    f"{size / 2**20:,.1f} MiB less",
                    logger="current",
                )

    def rounded_for_prediction(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.autocast_dtype is None:
            return state
        parts = {"mllm": self.mllm, "seg_projector": self.seg_projector}
        names = {f"{part}.{name}" for part, m in parts.items() for name, _ in trained_linears(m)}
        return {k: v.to(self.autocast_dtype) if k in names else v for k, v in state.items()}

    def prediction_parts(self) -> dict[str, PredictionPart]:
        parts = self.mllm.prediction_parts()
        llm = replace(parts["llm"], modules=(*parts["llm"].modules, self.seg_projector))
        sam2 = self.grounding.prediction_part()
        if self.high_resolution is not None:
            head = (self.high_resolution,)
            sam2 = replace(sam2, modules=sam2.modules + head, trained=sam2.trained + head)
        return {**parts, "llm": llm, "sam2": sam2}

    def load_report(self) -> LoadReport:
        parts = self.mllm.rows, self.grounding.rows, self.projector_rows, self.head_rows
        return LoadReport([row for rows in parts for row in rows])

    def added_tokens(self) -> dict[str, int]:
        ids, tokenizer = self.processor.added_token_ids, self.processor.tokenizer
        tokens = dict(zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True))
        # Ours in number and order: with others every row of the tables would mean another text.
        return tokens | {word: tokenizer.encode(word)[0] for word in self.processor.words}

    @property
    def grid_size(self) -> tuple[int, int]:
        if self.high_resolution is not None:
            return (self.processor.image_size // self.high_resolution.stride,) * 2
        return self.grounding.grid_size

    def merge_lora(self) -> None:
        self.mllm.merge_lora()


def _name(meta: list[dict], index: int) -> str:
    return str(meta[index].get("frame", index)) if index < len(meta) else str(index)

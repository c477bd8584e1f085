"""The joint model: the hidden state of [SEG] prompts SAM2's mask decoder.

Source: Sa2VA (Yuan et al., 2025; bytedance/Sa2VA, projects/sa2va/models/sa2va.py and
hf/models/modeling_sa2va_chat.py). Differences, on purpose: objects are decoded as they are (not
repeated to five), [SEG] tokens and masks that do not pair up are an error, masks are supervised at
a resolution that keeps vessels, and prediction never sees a mask.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from projects.sa2va.errors import ConfigError, DataError, listing
from projects.sa2va.weights.report import LoadReport

from .building import random_rows
from .grounding import GroundingAdapter, ImageFeatures
from .losses import build_mask_loss
from .mllm import MLLMAdapter
from .outputs import Prediction
from .parameters import fingerprint, frozen_tensors
from .prediction import round_trained_linears, trained_linears
from .prediction_parts import PredictionPart, check_finite
from .pretrained import Sa2VAWeights
from .segmentation import SegmentationModel


@MODELS.register_module()
class Sa2VAModel(SegmentationModel):
    """Multimodal LLM + [SEG] projector + mask model.

    Args:
        mllm: config of an :class:`MLLMAdapter` (``type='InternVLAdapter'``).
        grounding: config of a :class:`GroundingAdapter` (``type='Sam2Adapter'``).
        processor: keyword arguments of :class:`Sa2VAProcessor`; the same as the data sets'.
        pretrained: hub id or local folder of a whole Sa2VA (released, or exported by
            tools/convert.py): MLLM, SAM2 and [SEG] projector. None takes each from its own key,
            and draws the projector from ``seed``.
        mask_loss: config of the mask loss; ``processor.reference_numerics`` sets its weighing.
        language_loss_weight: weight of the cross-entropy over labelled tokens.
        answer_mode: ``forced`` predicts with one pass over question + answer template;
            ``generate`` decodes greedily and reports whether [SEG] came.
        max_new_tokens: longest generated answer.
        max_phrases_per_pass: phrases that go through the language model together in prediction;
            a batch with more takes several passes.
        autocast: dtype of autocast around the whole model, or None. bfloat16 beside bfloat16
            frozen weights, None for a float32 model.
        seed: seed of the [SEG] projector.

    Shapes: B samples, L tokens, n tiles in all, N phrases in all, S the mask model's input size.
    """

    def __init__(
        self,
        mllm: dict,
        grounding: dict,
        processor: dict,
        pretrained: str | None = None,
        mask_loss: dict | None = None,
        language_loss_weight: float = 1.0,
        answer_mode: Literal["forced", "generate"] = "forced",
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
        if answer_mode not in ("forced", "generate"):
            raise ConfigError(
                found=f"model.answer_mode={answer_mode!r}",
                expected="forced or generate",
                fix="correct model.answer_mode",
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
        self.base_fingerprint = fingerprint(frozen_tensors(self))

    def loss(
        self, inputs: dict[str, Any], masks: list[Tensor], meta: list[dict]
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            inputs: ``input_ids``, ``labels``, ``attention_mask`` int64 [B, L]; ``pixel_values``
                [n, 3, T, T]; ``grounding_pixels`` [B, 3, S, S].
            masks: per sample uint8 [K, H, W]; K may be 0 (language loss only).
            meta: per sample a dict with ``frame``.

        Returns:
            ``loss_mask``, ``loss_dice`` and ``loss_language``, float32 scalars.

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
        features = self.grounding.encode(inputs["grounding_pixels"])
        self.mark("masks")

        owner = is_seg.nonzero()[:, 0]
        if len(owner):
            logits, _ = self.grounding.decode(
                features.select(owner), self.seg_projector(self._projectable(hidden[is_seg]))
            )
            losses = self.mask_loss(logits, masks)
        else:
            # Every trained part takes part in every backward pass, or DDP and ZeRO-3 wait forever.
            first = torch.zeros(1, dtype=torch.long, device=ids.device)
            logits, _ = self.grounding.decode(
                features.select(first), self.seg_projector(self._projectable(hidden[:1, 0]))
            )
            losses = {"loss_mask": logits.sum() * 0.0, "loss_dice": logits.sum() * 0.0}
        losses["loss_language"] = self.language_loss_weight * self._language_loss(hidden, labels)
        self.mark("backward")
        return losses

    def _language_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy at labelled positions; logits are computed nowhere else."""
        targets = labels[:, 1:]
        labelled = targets != -100
        if not bool(labelled.any()):
            return self.mllm.logits(hidden[:1, 0]).float().sum() * 0.0
        logits = self.mllm.logits(hidden[:, :-1][labelled])
        return F.cross_entropy(logits.float(), targets[labelled])

    def _projectable(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.seg_projector[0].weight.dtype)

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

    @torch.no_grad()
    def predict(self, inputs: dict[str, Any]) -> list[Prediction]:
        """Probability maps for phrases; each image is encoded once, whatever its phrases.

        Args:
            inputs: ``pixel_values`` [n, 3, T, T] with ``tiles_per_image`` [B];
                ``grounding_pixels`` [B, 3, S, S]; ``prompts``: per image int64 [L] prompts;
                ``sizes``: per image (H, W).

        Returns:
            B predictions.
        """
        prompts: list[list[Tensor]] = inputs["prompts"]
        device = inputs["pixel_values"].device
        owner = [image for image, group in enumerate(prompts) for _ in group]
        if not owner:
            return self._collect(prompts, [], [], inputs["sizes"])
        with self.computing("vit", device):
            tokens = self.mllm.visual_tokens(inputs["pixel_values"])
        self._check_range("vit", tokens)
        by_image = tokens.split(list(inputs["tiles_per_image"]))
        with self.computing("sam2", device):
            features = self.grounding.encode(inputs["grounding_pixels"])
        flat = [prompt.to(device) for group in prompts for prompt in group]
        answers: list[Tensor] = []
        maps: list[Tensor | None] = []
        step = len(flat) if is_sharded(self) else self.max_phrases_per_pass
        for start in range(0, len(flat), step):
            images = owner[start : start + step]
            more = self._answer(
                flat[start : start + step],
                torch.cat([by_image[image] for image in images]),
                features.select(torch.tensor(images, device=device)),
                [inputs["sizes"][image] for image in images],
            )
            answers += more[0]
            maps += more[1]
        return self._collect(prompts, answers, maps, inputs["sizes"])

    def _answer(
        self,
        prompts: list[Tensor],
        visual: Tensor,
        features: ImageFeatures,
        sizes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Answers (int64 ids) and probability maps ([H, W], None without [SEG]) of N prompts.

        Args:
            prompts: N times int64 [L].
            visual: visual tokens of the prompts' tiles, in their order.
            features: the mask model's features of the N prompts' images.
            sizes: N times (H, W).
        """
        device = visual.device
        with self.computing("llm", device):
            answers, rows, embeddings = self._prompt_embeddings(prompts, visual)
        nothing = len(rows) == 0
        if nothing:
            # Decoded all the same, and dropped: under ZeRO-3 others wait for these weights.
            rows = rows.new_zeros(1)
        maps: list[Tensor | None] = [None] * len(prompts)
        with self.computing("sam2", device):
            logits, _ = self.grounding.decode(features.select(rows), embeddings)
            self._check_range("sam2", logits)
            if nothing:
                return answers, maps
            found = rows.tolist()
            probabilities = self._to_original(logits, [sizes[row] for row in found])
            for row, probability in zip(found, probabilities, strict=True):
                earlier = maps[row]
                # An answer with several [SEG] means all of them.
                maps[row] = probability if earlier is None else earlier.maximum(probability)
        return answers, maps

    def _prompt_embeddings(
        self, prompts: list[Tensor], visual: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """What the language model says to N prompts, and what it tells the mask model.

        Returns:
            Answers; the prompt of each of K [SEG] in them, int64 [K]; their embeddings [K, C], or
            one that means nothing where K is 0.
        """
        if self.answer_mode == "forced":
            answers = [self.processor.answer_ids().to(prompts[0].device)] * len(prompts)
        else:
            answers = self._generate(prompts, visual)
        full = [torch.cat(pair) for pair in zip(prompts, answers, strict=True)]
        ids, attention = _pad(full, self.processor.pad_token_id, side="right")
        hidden = self.mllm.hidden_states(self.mllm.embed(ids, visual), attention)
        self._check_range("llm", hidden, attention.bool())
        # Only the answer counts: a user's phrase may hold the text "[SEG]".
        is_seg = (ids == self.processor.seg_token_id) & attention.bool()
        for row, prompt in enumerate(prompts):
            is_seg[row, : len(prompt)] = False
        rows = is_seg.nonzero()[:, 0]
        if len(rows) == 0:
            is_seg[0, 0] = True
        embeddings = self.seg_projector(self._projectable(hidden[is_seg.to(hidden.device)]))
        self._check_range("llm", embeddings)
        return answers, rows, embeddings

    def _check_range(self, part: str, values: Tensor, where: Tensor | None = None) -> None:
        """Raises ConfigError where float16 could not hold ``values`` (at ``where``, bool)."""
        if self.compute_dtype(part) is torch.float16:
            check_finite(part, values if where is None else values[where.to(values.device)])

    def _generate(self, prompts: list[Tensor], visual: Tensor) -> list[Tensor]:
        """Greedy answers, each cut after its end-of-turn token."""
        ids, attention = _pad(prompts, self.processor.pad_token_id, side="left")
        new = self.mllm.generate(self.mllm.embed(ids, visual), attention, self.max_new_tokens)
        answers = []
        for row in new.to(ids.device):
            end = (row == self.processor.eos_token_id).nonzero()
            answers.append(row[: int(end[0]) + 1] if len(end) else row)
        return answers

    def _collect(
        self,
        prompts: list[list[Tensor]],
        answers: list[Tensor],
        maps: list[Tensor | None],
        sizes: list[tuple[int, int]],
    ) -> list[Prediction]:
        predictions, row = [], 0
        for group, size in zip(prompts, sizes, strict=True):
            rows = range(row, row + len(group))
            row += len(group)
            height, width = (int(s) for s in size)
            own = [m if (m := maps[r]) is not None else torch.zeros(height, width) for r in rows]
            predictions.append(
                Prediction(
                    probabilities=torch.stack(own) if own else torch.zeros(0, height, width),
                    answers=[self.processor.decode(answers[r]) for r in rows],
                    seg_emitted=[maps[r] is not None for r in rows],
                )
            )
        return predictions

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
        return {**parts, "llm": llm, "sam2": self.grounding.prediction_part()}

    def load_report(self) -> LoadReport:
        return LoadReport([*self.mllm.rows, *self.grounding.rows, *self.projector_rows])

    def added_tokens(self) -> dict[str, int]:
        ids = self.processor.added_token_ids
        names = self.processor.tokenizer.convert_ids_to_tokens(ids)
        return dict(zip(names, ids, strict=True))

    @property
    def grid_size(self) -> tuple[int, int]:
        return self.grounding.grid_size

    def merge_lora(self) -> None:
        self.mllm.merge_lora()


def is_sharded(model: nn.Module) -> bool:
    """Whether ZeRO-3 or FSDP2 holds the weights in shards: then all processes must keep step."""
    return any(hasattr(p, "ds_id") or isinstance(p, DTensor) for p in model.parameters())


def _name(meta: list[dict], index: int) -> str:
    return str(meta[index].get("frame", index)) if index < len(meta) else str(index)


def _pad(rows: list[Tensor], pad_id: int, side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Pads int64 rows to one length: ids and attention mask, both [N, L]."""
    length = max(len(row) for row in rows)
    ids = rows[0].new_full((len(rows), length), pad_id)
    attention = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, where] = row
        attention[index, where] = 1
    return ids, attention

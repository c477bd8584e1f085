"""Prediction: what is answered about each phrase, and the map of every [SEG] in the answers.

Three ways to an answer, ``model.answer_mode``:

* ``forced``: the template for a phrase that is there, whatever the image.
* ``generate``: greedy decoding.
* ``choice``: of the two templates, for a phrase that is there and one that is not, the one whose
  first token of its own is the likelier (greedy decoding by a model that knows just these two). The
  probability of the former against the latter is the phrase's presence; ``presence_threshold``
  moves the bound from 0.5. It takes no further pass: what stands behind a position cannot change
  the hidden state there, so one pass over question and "there" template has the decision and, if it
  is that template, its [SEG]. Of several phrases in one question each is decided after those before
  it, a pass each.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .grounding import GroundingAdapter, ImageFeatures
from .mllm import MLLMAdapter
from .outputs import Prediction
from .prediction_parts import check_finite
from .segmentation import SegmentationModel

ANSWER_MODES = ("forced", "generate", "choice")
_UNNAMED = ("",)  # the one phrase of a prompt that came without its phrases


@dataclass(frozen=True)
class Answer:
    """What is said to a prompt about n phrases.

    Attributes:
        ids: int64 [A].
        slots: number of the phrase that each [SEG] in it is for, in order; [SEG] beyond these do
            not count.
        mapped: False for an answer to several phrases that names them otherwise than they were
            asked.
        presence: n probabilities, where the answer was chosen.
    """

    ids: Tensor
    slots: list[int]
    mapped: bool = True
    presence: list[float] | None = None


@dataclass(frozen=True)
class _Read:
    """What the language model read: ids, attention mask [N, L] and hidden states [N, L, D]."""

    ids: Tensor
    attention: Tensor
    hidden: Tensor


class AnsweringModel(SegmentationModel):
    """The predicting half of :class:`~.sa2va.Sa2VAModel`, which builds and trains the parts."""

    mllm: MLLMAdapter
    grounding: GroundingAdapter
    seg_projector: nn.Sequential
    presence_threshold: float
    max_new_tokens: int
    max_phrases_per_pass: int

    @abc.abstractmethod
    def encode_images(self, images: Tensor) -> ImageFeatures:
        """What the mask model sees in images [B, 3, S, S]."""

    @abc.abstractmethod
    def _decode(self, features: ImageFeatures, embeddings: Tensor) -> Tensor:
        """Mask logits of N [SEG] embeddings [N, C], float32 [N, h, w]."""

    def answering(self) -> dict[str, Any]:
        """See :meth:`SegmentationModel.answering`."""
        chosen = self.answer_mode == "choice"
        own = {"presence_threshold": self.presence_threshold} if chosen else {}
        return {**super().answering(), **own}

    @torch.no_grad()
    def predict(self, inputs: dict[str, Any]) -> list[Prediction]:
        """Probability maps for phrases; each image is encoded once, whatever its phrases.

        Args:
            inputs: ``pixel_values`` [n, 3, T, T] with ``tiles_per_image`` [B];
                ``grounding_pixels`` [B, 3, S, S]; ``prompts``: per image int64 [L] prompts;
                ``asked``: per image and prompt a tuple of its phrases, without which each prompt
                is about one; ``sizes``: per image (H, W).

        Returns:
            B predictions, with a map for each phrase of each prompt, in order.
        """
        prompts: list[list[Tensor]] = inputs["prompts"]
        groups = inputs.get("asked") or [[_UNNAMED] * len(group) for group in prompts]
        device = inputs["pixel_values"].device
        owner = [image for image, group in enumerate(prompts) for _ in group]
        answers: list[Answer] = []
        maps: list[list[Tensor | None]] = []
        if not owner:
            return self._collect(groups, answers, maps, inputs["sizes"])
        with self.computing("vit", device):
            tokens = self.mllm.visual_tokens(inputs["pixel_values"])
        self._check_range("vit", tokens)
        by_image = tokens.split(list(inputs["tiles_per_image"]))
        with self.computing("sam2", device):
            features = self.encode_images(inputs["grounding_pixels"])
        flat = [prompt.to(device) for group in prompts for prompt in group]
        asked = [phrases for group in groups for phrases in group]
        step = len(flat) if is_sharded(self) else self.max_phrases_per_pass
        for start in range(0, len(flat), step):
            images = owner[start : start + step]
            more = self._answer(
                flat[start : start + step],
                torch.cat([by_image[image] for image in images]),
                features.select(torch.tensor(images, device=device)),
                [inputs["sizes"][image] for image in images],
                asked[start : start + step],
            )
            answers += more[0]
            maps += more[1]
        return self._collect(groups, answers, maps, inputs["sizes"])

    def _answer(
        self,
        prompts: list[Tensor],
        visual: Tensor,
        features: ImageFeatures,
        sizes: list[tuple[int, int]],
        asked: Sequence[Sequence[str]] | None = None,
    ) -> tuple[list[Answer], list[list[Tensor | None]]]:
        """Answers to N prompts, and a map ([H, W], None without [SEG]) for each of their phrases.

        Args:
            prompts: N times int64 [L].
            visual: visual tokens of the prompts' tiles, in their order.
            features: the mask model's features of the N prompts' images.
            sizes: N times (H, W).
            asked: phrases of each prompt; None: one each.
        """
        device = visual.device
        asked = asked or [_UNNAMED] * len(prompts)
        with self.computing("llm", device):
            answers, rows, embeddings = self._prompt_embeddings(prompts, visual, asked)
        nothing = len(rows) == 0
        if nothing:
            # Decoded all the same, and dropped: under ZeRO-3 others wait for these weights.
            rows = rows.new_zeros(1)
        maps: list[list[Tensor | None]] = [[None] * len(phrases) for phrases in asked]
        with self.computing("sam2", device):
            logits = self._decode(features.select(rows), embeddings)
            self._check_range("sam2", logits)
            if nothing:
                return answers, maps
            found = rows.tolist()
            probabilities = self._to_original(logits, [sizes[row] for row in found])
            slots = [slot for answer in answers for slot in answer.slots]
            for row, slot, probability in zip(found, slots, probabilities, strict=True):
                earlier = maps[row][slot]
                # An answer about one phrase with several [SEG] means all of them.
                maps[row][slot] = probability if earlier is None else earlier.maximum(probability)
        return answers, maps

    def _prompt_embeddings(
        self, prompts: list[Tensor], visual: Tensor, asked: Sequence[Sequence[str]]
    ) -> tuple[list[Answer], Tensor, Tensor]:
        """What the language model says to N prompts, and what it tells the mask model.

        Returns:
            Answers; the prompt of each of K [SEG] that count, int64 [K]; their embeddings [K, C],
            or one that means nothing where K is 0.
        """
        if self.answer_mode == "choice":
            answers, read = self._choose(prompts, visual, asked)
        else:
            said = (
                self._forced(prompts, asked)
                if self.answer_mode == "forced"
                else self._generate(prompts, visual, self._longest(asked))
            )
            answers = [self._mapped(ids, phrases) for ids, phrases in zip(said, asked, strict=True)]
            read = self._read(prompts, said, visual)
        # Only the answer counts: a user's phrase may hold the text "[SEG]".
        is_seg = (read.ids == self.processor.seg_token_id) & read.attention.bool()
        for row, prompt in enumerate(prompts):
            is_seg[row, : len(prompt)] = False
        counted = torch.tensor([[len(answer.slots)] for answer in answers], device=is_seg.device)
        is_seg &= is_seg.cumsum(dim=1) <= counted
        rows = is_seg.nonzero()[:, 0]
        if len(rows) == 0:
            is_seg[0, 0] = True
        embeddings = self.seg_projector(
            self._projectable(read.hidden[is_seg.to(read.hidden.device)])
        )
        self._check_range("llm", embeddings)
        return answers, rows, embeddings

    def _projectable(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.seg_projector[0].weight.dtype)

    def _read(self, prompts: list[Tensor], answers: list[Tensor], visual: Tensor) -> _Read:
        """One pass of the language model over prompts and answers."""
        full = [torch.cat(pair) for pair in zip(prompts, answers, strict=True)]
        ids, attention = _pad(full, self.processor.pad_token_id, side="right")
        hidden = self.mllm.hidden_states(self.mllm.embed(ids, visual), attention)
        self._check_range("llm", hidden, attention.bool())
        return _Read(ids, attention, hidden)

    def _mapped(self, ids: Tensor, phrases: Sequence[str]) -> Answer:
        """An answer with the phrase of each of its [SEG]."""
        count = int((ids == self.processor.seg_token_id).sum())
        if len(phrases) == 1:
            return Answer(ids, [0] * count)
        there = self.processor.templates.read(self.processor.decode(ids), phrases)
        # The letters "[SEG]" can be spelt without being the token.
        if there is None or sum(there) != count:
            return Answer(ids, [], mapped=False)
        return Answer(ids, _slots(there))

    def _forced(self, prompts: list[Tensor], asked: Sequence[Sequence[str]]) -> list[Tensor]:
        """The answers that say that everything is there."""
        # A question of the user's own words has no phrase, so the template alone must do where it
        # can.
        one = None if self.processor.templates.answer_names_phrase else self.processor.answer_ids()
        if one is None and not all(phrase for phrases in asked for phrase in phrases):
            raise ValueError("processor.answer with {phrase} needs the prompts' phrases: `asked`")
        return [
            one.to(prompt.device)
            if one is not None and len(phrases) == 1
            else self._ids(phrases, [True] * len(phrases), prompt.device)
            for prompt, phrases in zip(prompts, asked, strict=True)
        ]

    def _choose(
        self, prompts: list[Tensor], visual: Tensor, asked: Sequence[Sequence[str]]
    ) -> tuple[list[Answer], _Read]:
        """Answers by ``choice``, and the last pass, which has read each up to its last [SEG]."""
        if not all(phrase for phrases in asked for phrase in phrases):
            raise ValueError("answer_mode='choice' needs the phrases of the prompts: `asked`")
        device = prompts[0].device
        there: list[list[bool]] = [[] for _ in asked]
        presence: list[list[float]] = [[] for _ in asked]
        for turn in range(max(map(len, asked))):
            said, rows, positions, tokens = [], [], [], []
            for row, phrases in enumerate(asked):
                rest = [True] * (len(phrases) - turn - 1)
                if turn >= len(phrases):  # decided before; the others go on
                    said.append(self._ids(phrases, there[row], device))
                    continue
                yes = self._ids(phrases, [*there[row], True, *rest], device)
                no = self._ids(phrases, [*there[row], False, *rest], device)
                first = first_difference(yes, no)
                said.append(yes)
                rows.append(row)
                positions.append(len(prompts[row]) + first - 1)
                tokens.append((int(yes[first]), int(no[first])))
            read = self._read(prompts, said, visual)
            where = torch.tensor([rows, positions], device=read.hidden.device)
            logits = self.mllm.logits(read.hidden[where[0], where[1]]).float()
            both = logits.gather(1, torch.tensor(tokens, device=logits.device))
            odds = (both[:, 0] - both[:, 1]).sigmoid().tolist()
            for row, probability in zip(rows, odds, strict=True):
                presence[row].append(probability)
                there[row].append(probability >= self.presence_threshold)
        answers = [
            Answer(self._ids(phrases, flags, device), _slots(flags), presence=probabilities)
            for phrases, flags, probabilities in zip(asked, there, presence, strict=True)
        ]
        return answers, read

    def _ids(self, phrases: Sequence[str], there: Sequence[bool], device: torch.device) -> Tensor:
        return self.processor.answer_ids_for(phrases, there).to(device)

    def _check_range(self, part: str, values: Tensor, where: Tensor | None = None) -> None:
        """Raises ConfigError where float16 could not hold ``values`` (at ``where``, bool)."""
        if self.compute_dtype(part) is torch.float16:
            check_finite(part, values if where is None else values[where.to(values.device)])

    def _longest(self, asked: Sequence[Sequence[str]]) -> int:
        """Most new tokens: an answer that names its phrases takes as many as its template."""
        named = self.processor.templates.answer_names_phrase
        templates = [
            len(self.processor.answer_ids_for(phrases, [there] * len(phrases)))
            for phrases in asked
            if len(phrases) > 1 or (named and phrases != _UNNAMED)
            for there in (True, False)
        ]
        return max([self.max_new_tokens, *templates])

    def _generate(self, prompts: list[Tensor], visual: Tensor, max_new_tokens: int) -> list[Tensor]:
        """Greedy answers, each cut after its end-of-turn token."""
        ids, attention = _pad(prompts, self.processor.pad_token_id, side="left")
        new = self.mllm.generate(self.mllm.embed(ids, visual), attention, max_new_tokens)
        answers = []
        for row in new.to(ids.device):
            end = (row == self.processor.eos_token_id).nonzero()
            answers.append(row[: int(end[0]) + 1] if len(end) else row)
        return answers

    def _collect(
        self,
        groups: Sequence[Sequence[Sequence[str]]],
        answers: list[Answer],
        maps: list[list[Tensor | None]],
        sizes: list[tuple[int, int]],
    ) -> list[Prediction]:
        """A prediction an image of what was said to all of its prompts."""
        predictions, row = [], 0
        for group, size in zip(groups, sizes, strict=True):
            said = answers[row : row + len(group)]
            found = [one for phrases in maps[row : row + len(group)] for one in phrases]
            row += len(group)
            height, width = (int(s) for s in size)
            own = [one if one is not None else torch.zeros(height, width) for one in found]
            texts = [self.processor.decode(answer.ids) for answer in said]
            each = [number for number, phrases in enumerate(group) for _ in phrases]
            chosen = self.answer_mode == "choice"
            predictions.append(
                Prediction(
                    probabilities=torch.stack(own) if own else torch.zeros(0, height, width),
                    answers=[texts[number] for number in each],
                    seg_emitted=[one is not None for one in found],
                    presence=[p for answer in said for p in answer.presence or ()]
                    if chosen
                    else None,
                    mapped=[said[number].mapped for number in each],
                )
            )
        return predictions


def is_sharded(model: nn.Module) -> bool:
    """Whether ZeRO-3 or FSDP2 holds the weights in shards: then all processes must keep step."""
    return any(hasattr(p, "ds_id") or isinstance(p, DTensor) for p in model.parameters())


def first_difference(a: Tensor, b: Tensor) -> int:
    """First position at which int64 ids [A] and [B] differ; neither is the beginning of the other.

    Raises:
        ValueError: one is.
    """
    length = min(len(a), len(b))
    differ = (a[:length] != b[:length]).nonzero()
    if not len(differ):
        raise ValueError("two answers of which one is the beginning of the other")
    return int(differ[0])


def _slots(there: Sequence[bool]) -> list[int]:
    return [number for number, flag in enumerate(there) if flag]


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

"""The single place that knows how an image and a phrase become tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import LongTensor, Tensor

from ..errors import ConfigError, DataError
from . import images, prompts
from .answers import AnswerTemplates
from .tokenizer import IM_END, IMG_CONTEXT, SEG, add_tokens, build_tokenizer

_REMEMBERED = 256  # prompts


class Sa2VAProcessor:
    """Tokens, tiles and SAM2 input of a Sa2VA model; equal in training, testing and inference.

    It holds settings and a tokenizer only, so that data workers get it by pickling. Only
    ``reference_numerics`` makes training and inference differ.

    Args:
        tokenizer: ``dict(type='pretrained', path=<folder or hub id>)`` or
            ``dict(type='byte_level')``.
        tile_size: side of InternVL's tiles in pixels.
        tokens_per_tile: ``<IMG_CONTEXT>`` tokens of a tile; (tile_size / 28) ** 2 for patches of
            14 pixels and a pixel shuffle of 0.5.
        min_tiles: smallest number of tiles, thumbnail not counted.
        max_tiles: largest number of tiles, thumbnail not counted.
        use_thumbnail: append the whole image where it is cut into more than one tile.
        image_size: side of SAM2's square input in pixels, a multiple of 32.
        question: what is asked; ``{phrase}`` stands for the phrase.
        answer: what is answered, with exactly one ``[SEG]``. With ``{phrase}`` before it the hidden
            state at [SEG] stands behind the phrase's own tokens.
        absent_answer: what is answered where the phrase is not in the image, without ``[SEG]``.
        clauses: of the answer to a question about several phrases, for one that is there (with
            ``[SEG]``) and one that is not; see :mod:`.answers`.
        separators: between the phrases of such a question, and before the last one.
        added_tokens: tokens of Sa2VA that a base model's tokenizer does not have.
        reference_numerics: compute as the reference implementation (bytedance/Sa2VA) does where
            this project does not by default; to reproduce its numbers, with
            ``model.mask_loss.supervision='nearest'`` for its training. It changes, and nothing
            else: SAM2's mean and deviation are rounded to bfloat16 at inference (training has the
            exact ones there too); the mask loss weighs objects and divides the sampled Dice as
            there (``reference_weighting`` of :class:`~projects.sa2va.models.losses.MaskLoss`,
            which the model sets from here).
        image_only: items hold the image and the phrases as text, and neither tiles nor tokens: for
            models that do not read them.

    Attributes:
        tokenizer: transformers tokenizer with the added tokens.
        base_vocab_size: number of tokens without ``added_tokens``, be they new or found.
        vocab_size: number of tokens with them.
        added_token_ids: their ids, in the order of ``added_tokens``.
        words: the further words of a byte-level tokenizer.
        new_tokens: those of ``added_tokens`` that the tokenizer as published does not have.
        templates: the texts of questions and answers.
        seg_token_id, image_token_id, eos_token_id, pad_token_id: ids of ``[SEG]``,
            ``<IMG_CONTEXT>``, ``<|im_end|>`` and the padding token.

    Raises:
        ConfigError: a setting that cannot be.
        SetupError: the tokenizer can't be loaded, or is not InternVL's.
    """

    def __init__(
        self,
        tokenizer: dict,
        *,
        tile_size: int = 448,
        tokens_per_tile: int = 256,
        min_tiles: int = 1,
        max_tiles: int = 12,
        use_thumbnail: bool = True,
        image_size: int = 1024,
        question: str = "Please segment the {phrase} in this image.",
        answer: str = "Sure, [SEG].",
        absent_answer: str = "There is no {phrase} in this image.",
        clauses: Sequence[str] = ("{phrase}: [SEG]", "{phrase}: none"),
        separators: Sequence[str] = (", the ", " and the "),
        added_tokens: Sequence[str] = (SEG, "<p>", "</p>", "<vp>", "</vp>"),
        reference_numerics: bool = False,
        image_only: bool = False,
    ) -> None:
        images.check_positive("tile_size", tile_size)
        images.check_positive("tokens_per_tile", tokens_per_tile)
        images.check_tile_limits(min_tiles, max_tiles)
        images.check_image_size(image_size)
        _check_flag("use_thumbnail", use_thumbnail)
        _check_flag("reference_numerics", reference_numerics)
        _check_flag("image_only", image_only)
        self.templates = AnswerTemplates(
            question, answer, absent_answer, _pair(clauses), _pair(separators)
        )
        _check_added_tokens(added_tokens)
        if not isinstance(tokenizer, Mapping):
            raise ConfigError(
                found=f"processor.tokenizer = {tokenizer!r}",
                expected="dict(type='pretrained', path=...) or dict(type='byte_level')",
                fix="write processor.tokenizer as a dict",
            )
        self.tile_size, self.tokens_per_tile = tile_size, tokens_per_tile
        self.min_tiles, self.max_tiles, self.use_thumbnail = min_tiles, max_tiles, use_thumbnail
        self.image_size, self.reference_numerics = image_size, reference_numerics
        self.question, self.answer = question, answer
        self.image_only = image_only

        self.tokenizer = build_tokenizer(tokenizer)
        self.words: tuple[str, ...] = tuple(tokenizer.get("words", ()))
        known = self.tokenizer.get_vocab()
        self.new_tokens: list[str] = [name for name in added_tokens if name not in known]
        add_tokens(self.tokenizer, added_tokens)
        self.vocab_size: int = len(self.tokenizer)
        self.base_vocab_size: int = self.vocab_size - len(added_tokens)
        self.added_token_ids: list[int] = self.tokenizer.convert_tokens_to_ids(list(added_tokens))
        self.seg_token_id: int = self.tokenizer.convert_tokens_to_ids(SEG)
        self.image_token_id: int = self.tokenizer.convert_tokens_to_ids(IMG_CONTEXT)
        self.eos_token_id: int = self.tokenizer.convert_tokens_to_ids(IM_END)
        self.pad_token_id: int = self.tokenizer.pad_token_id
        # One question is asked of thousands of images.
        self._prompts: dict[tuple[str, int], list[int]] = {}

    def tiles(self, image: np.ndarray) -> Tensor:
        """InternVL's input of one image.

        Args:
            image: uint8 RGB [H, W, 3].

        Returns:
            float32 [n_tiles, 3, tile_size, tile_size], normalised, the thumbnail last.

        Raises:
            DataError: not an RGB image of 8 bits.
        """
        limits = (self.min_tiles, self.max_tiles, self.use_thumbnail)
        return images.normalise_tiles(images.split_tiles(image, self.tile_size, *limits))

    def grounding_pixels(self, image: np.ndarray, *, training: bool = False) -> Tensor:
        """SAM2's input of one image: float32 [3, image_size, image_size], normalised.

        Args:
            image: uint8 RGB [H, W, 3]; it is stretched to the square.
            training: whether the image is of a training sample; the same result but under
                ``reference_numerics``.

        Raises:
            DataError: not an RGB image of 8 bits.
        """
        square = images.grounding_square(image, self.image_size)
        return images.normalise_grounding(square, self.reference_numerics and not training)

    def question_for(self, phrase: str) -> str:
        """The question about ``phrase``.

        Raises:
            DataError: the phrase is empty or holds control tokens.
        """
        return self.templates.question_for([phrase])

    def turn(self, phrases: Sequence[str], present: Sequence[bool]) -> tuple[str, str]:
        """Question about one or several phrases, and its answer: of which each is there or not.

        Raises:
            DataError: phrases that cannot be asked, or not together.
        """
        question = self.templates.question_for(phrases)
        return question, self.templates.answer_for(phrases, present)

    def check_question(self, question: str) -> None:
        """Raises DataError for a question that is empty or holds control tokens."""
        prompts.check_template("question", question)

    def prompt_ids(self, phrase: str, num_tiles: int) -> LongTensor:
        """int64 [L]: image and question about ``phrase``, up to ``<|im_start|>assistant\\n``.

        Raises:
            DataError: the phrase is empty or holds control tokens, or there is no tile.
        """
        return self.question_ids(self.question_for(phrase), num_tiles)

    def question_ids(self, question: str, num_tiles: int) -> LongTensor:
        """As :meth:`prompt_ids` for a question of the user's own words.

        Raises:
            DataError: the question is empty or holds control tokens, or there is no tile.
        """
        tokens = self._image_tokens(num_tiles)
        known = self._prompts.get((question, tokens))
        if known is None:
            known = prompts.prompt_ids(self.tokenizer, question, tokens)
            if len(self._prompts) < _REMEMBERED:
                self._prompts[question, tokens] = known
        return torch.tensor(known, dtype=torch.int64)

    def prediction_item(
        self,
        image: np.ndarray,
        phrases: Sequence[str | Sequence[str]],
        questions: Sequence[str] | None = None,
        *,
        normalised: bool = True,
    ) -> dict[str, Any]:
        """What a model predicts from, for one image.

        Args:
            image: uint8 RGB [H, W, 3].
            phrases: of each of K questions its phrase, or several.
            questions: K questions; those of the template by default.
            normalised: False leaves pixels as uint8, a quarter of the bytes to send to a card; the
                model normalises them there, with the same result (:meth:`normalised`).

        Returns:
            grounding_pixels float32 [3, S, S]; size (H, W); pixel_values float32 [n, 3, T, T],
            prompts (K times int64 [L]) and asked (K tuples of phrases), or with ``image_only``
            phrases (all of them, as texts) instead.

        Raises:
            DataError: not an RGB image of 8 bits, or a text that cannot be asked.
        """
        item: dict[str, Any] = self.pixels(image)
        asked = [(one,) if isinstance(one, str) else tuple(one) for one in phrases]
        if self.image_only:
            item["phrases"] = [phrase for group in asked for phrase in group]
        else:
            if questions is None:
                questions = [self.templates.question_for(group) for group in asked]
            tiles = len(item["pixel_values"])
            item["prompts"] = [self.question_ids(question, tiles) for question in questions]
            item["asked"] = asked
        return {**(self.normalised(item) if normalised else item), "size": image.shape[:2]}

    def pixels(self, image: np.ndarray) -> dict[str, Tensor]:
        """What the models read of an image, before it is normalised.

        Args:
            image: uint8 RGB [H, W, 3].

        Returns:
            grounding_pixels uint8 [3, S, S] and, without ``image_only``, pixel_values uint8
            [n, 3, T, T].

        Raises:
            DataError: not an RGB image of 8 bits.
        """
        square = torch.from_numpy(images.grounding_square(image, self.image_size))
        read = {"grounding_pixels": square.permute(2, 0, 1).contiguous()}
        if not self.image_only:
            limits = (self.min_tiles, self.max_tiles, self.use_thumbnail)
            tiles = images.split_tiles(image, self.tile_size, *limits)
            read["pixel_values"] = torch.from_numpy(tiles)
        return read

    def normalised(self, inputs: Mapping[str, Any], *, training: bool = False) -> dict[str, Any]:
        """``inputs`` with pixels as float32; those that are so already stay.

        Args:
            inputs: of a model; what is not pixels stays too.
            training: as for :meth:`grounding_pixels`.
        """
        rounded = {
            "pixel_values": False,
            "grounding_pixels": self.reference_numerics and not training,
        }
        return {
            key: images.normalise(value, rounded[key])
            if key in rounded and value.dtype == torch.uint8
            else value
            for key, value in inputs.items()
        }

    def answer_ids(self) -> LongTensor:
        """int64 [A]: the answer template and ``<|im_end|>``; follows :meth:`prompt_ids`.

        Raises:
            ValueError: the template names the phrase: see :meth:`answer_ids_for`.
        """
        if self.templates.answer_names_phrase:
            raise ValueError(f"processor.answer={self.answer!r} needs the phrase")
        return self._said(self.answer)

    def answer_ids_for(self, phrases: Sequence[str], present: Sequence[bool]) -> LongTensor:
        """int64 [A]: the answer to a question about n phrases, of which each is there or not."""
        return self._said(self.templates.answer_for(phrases, present))

    def _said(self, answer: str) -> LongTensor:
        return torch.tensor(prompts.answer_ids(self.tokenizer, answer), dtype=torch.int64)

    def conversation(
        self, turns: Sequence[tuple[str, str]], num_tiles: int
    ) -> tuple[LongTensor, LongTensor]:
        """Ids and labels of (question, answer) turns about one image.

        Returns:
            input_ids and labels, int64 [L]; labels are -100 but for the answers and their
            ``<|im_end|>``. The image stands in the first turn.

        Raises:
            DataError: no turn or tile, or an empty text or one with control tokens.
        """
        return prompts.conversation(self.tokenizer, turns, self._image_tokens(num_tiles))

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of token ids [L], special tokens included."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _image_tokens(self, num_tiles: int) -> int:
        if num_tiles < 1:
            raise DataError(
                found=f"an image of {num_tiles} tiles",
                expected="at least one tile",
                fix="pass the length of what Sa2VAProcessor.tiles returns",
            )
        return num_tiles * self.tokens_per_tile


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(
            found=f"processor.{name} = {value!r}",
            expected="True or False",
            fix=f"correct processor.{name}",
        )


def _pair(texts: Any) -> Any:
    """A list as a config writes it, as a tuple; anything else is for the templates to refuse."""
    return tuple(texts) if isinstance(texts, list) else texts


def _check_added_tokens(added_tokens: object) -> None:
    if (
        isinstance(added_tokens, str)
        or not isinstance(added_tokens, Sequence)
        or not all(isinstance(name, str) and name.strip() for name in added_tokens)
        or SEG not in added_tokens
    ):
        raise ConfigError(
            found=f"processor.added_tokens = {added_tokens!r}",
            expected=f"a list of token names with {SEG} among them",
            fix=f"set processor.added_tokens=['{SEG}', '<p>', '</p>', '<vp>', '</vp>']",
        )

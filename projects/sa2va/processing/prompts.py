"""The conversation template ``qwen_chat`` of Sa2VA, as token ids and labels.

Same ids as the reference (bytedance/Sa2VA, template ``qwen_chat``; golden ids in F3_prompt and
F6_train). Question and answer are tokenized on their own, as there, so that the ids of the answer
do not depend on what precedes it; that is what makes a forced answer equal a generated one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import LongTensor
from transformers import PreTrainedTokenizerBase

from ..errors import DataError, listing
from .tokenizer import IM_END, IM_START, IMG_CONTEXT, IMG_END, IMG_START, PAD, SEG

IGNORE_INDEX = -100

# Written in a text they would end the turn or stand for image features that do not exist.
_CONTROL = (PAD, IM_START, IM_END, IMG_START, IMG_END, IMG_CONTEXT)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, question: str, image_tokens: int = 0
) -> list[int]:
    """Token ids of one question, up to and with ``<|im_start|>assistant\\n``.

    Args:
        tokenizer: one of :func:`build_tokenizer`.
        question: the text of the turn.
        image_tokens: how many ``<IMG_CONTEXT>`` stand before the question; 0 for a later turn of
            a conversation or a question without an image, which then has no ``<img></img>``.

    Raises:
        DataError: empty question, or one with control tokens or ``[SEG]`` in it.
    """
    _check("question", question, (*_CONTROL, SEG))
    head, tail = f"{IM_START}user\n", f"{question}{IM_END}\n{IM_START}assistant\n"
    if not image_tokens:
        return _encode(tokenizer, head + tail)
    # Thousands of placeholders are cheaper as a list than as text that is split again.
    context = [tokenizer.convert_tokens_to_ids(IMG_CONTEXT)] * image_tokens
    before, after = _encode(tokenizer, head + IMG_START), _encode(tokenizer, f"{IMG_END}\n{tail}")
    return before + context + after


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Token ids of ``answer`` and ``<|im_end|>``: what the model has to say.

    Raises:
        DataError: empty answer, or one with control tokens in it.
    """
    _check("answer", answer, _CONTROL)
    return _encode(tokenizer, answer + IM_END)


def conversation(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], image_tokens: int
) -> tuple[LongTensor, LongTensor]:
    """Ids and labels of a conversation about one image, which stands in the first turn.

    Args:
        tokenizer: one of :func:`build_tokenizer`.
        turns: (question, answer) pairs, at least one.
        image_tokens: number of ``<IMG_CONTEXT>`` in the first turn.

    Returns:
        input_ids and labels, int64 [L] both. Labelled are the answers and their ``<|im_end|>``;
        everything else, also the line break after ``<|im_end|>``, is -100.

    Raises:
        DataError: no turn, or an empty text or one with control tokens.
    """
    if not turns:
        raise DataError(
            found="a conversation without turns",
            expected="at least one question with its answer",
            fix="give every image at least one phrase, or leave it out of the data set",
        )
    ids: list[int] = []
    labels: list[int] = []
    line_break = _encode(tokenizer, "\n")
    for number, (question, answer) in enumerate(turns):
        prompt = prompt_ids(tokenizer, question, image_tokens if number == 0 else 0)
        said = answer_ids(tokenizer, answer)
        ids += prompt + said + line_break
        labels += [IGNORE_INDEX] * len(prompt) + said + [IGNORE_INDEX] * len(line_break)
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)


def check_phrase(phrase: str) -> str:
    """Returns ``phrase`` without white space around it.

    Raises:
        DataError: nothing is left, or it holds control tokens or ``[SEG]``.
    """
    _check("phrase", phrase, (*_CONTROL, SEG))
    return phrase.strip()


def check_template(what: str, text: str) -> None:
    """Raises DataError for a template that no sample could be made with; 'answer' has a [SEG]."""
    _check(what, text, _CONTROL if what == "answer" else (*_CONTROL, SEG))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _check(what: str, text: object, forbidden: tuple[str, ...]) -> None:
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            found=f"an empty {what} ({text!r})",
            expected="a text that names what to segment, for example 'blood vessel'",
            fix=f"fill in the {what} in the annotations or the config",
        )
    held = [token for token in forbidden if token in text]
    if held:
        raise DataError(
            found=f"the {what} {text!r} holds {listing(held)}",
            expected="plain text: the template adds these tokens itself",
            fix=f"take them out of the {what} in the annotations or the config",
        )

"""What is asked about an image: a phrase, or a whole question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import DataError, listing
from ..processing import Sa2VAProcessor

DEFAULT_TEXT = "Please segment the blood vessel in this image."
_ENDS = (".", "?", "!")


@dataclass(frozen=True)
class Question:
    """One question, which gets one map.

    Attributes:
        phrase: what is segmented; names files and columns.
        text: what the language model reads.
    """

    phrase: str
    text: str


def make_questions(text: str | Sequence[str], processor: Sa2VAProcessor) -> list[Question]:
    """Questions from what a user wrote.

    Args:
        text: one or several of: a phrase ('blood vessel'), which is put into
            ``processor.question``; or a whole question, which ends with . ? or ! and is asked as it
            is.
        processor: the model's.

    Raises:
        DataError: no text, an empty one, one twice, or one with control tokens.
    """
    several = text if isinstance(text, Iterable) else ()
    texts = [text] if isinstance(text, str) else list(several)
    if not texts:
        raise DataError(
            found="no text to ask",
            expected=f"a phrase or a question, for example {DEFAULT_TEXT!r}",
            fix="give --text (in Python: text=...)",
        )
    questions = [_question(one, processor) for one in texts]
    phrases = [question.phrase for question in questions]
    twice = sorted({phrase for phrase in phrases if phrases.count(phrase) > 1})
    if twice:
        raise DataError(
            found=f"the same text twice: {listing(twice)}",
            expected="texts that differ: each gets a map and files of its own",
            fix="leave one of them out of --text (in Python: text=...)",
        )
    return questions


def _question(text: str, processor: Sa2VAProcessor) -> Question:
    whole = isinstance(text, str) and text.strip().endswith(_ENDS)
    if not whole:
        asked = processor.question_for(text)
        return Question(text.strip(), asked)
    text = text.strip()
    processor.check_question(text)
    before, _, after = processor.question.partition("{phrase}")
    if text.startswith(before) and text.endswith(after) and len(text) > len(before + after):
        return Question(text[len(before) : len(text) - len(after)].strip(), text)
    return Question(text, text)

"""What is asked about an image: a phrase, or a whole question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import DataError, listing
from ..processing import Sa2VAProcessor
from ..processing.phrases import repeated

DEFAULT_TEXT = "Please segment the blood vessel in this image."
_ENDS = (".", "?", "!")


@dataclass(frozen=True)
class Question:
    """One question, which gets a map for each of its phrases.

    Attributes:
        phrases: what is segmented; names files and columns.
        text: what the language model reads.
        own_words: whether the text is none of the template's, and its own phrase.
    """

    phrases: tuple[str, ...]
    text: str
    own_words: bool = False


def make_questions(text: str | Sequence[str], processor: Sa2VAProcessor) -> list[Question]:
    """Questions from what a user wrote.

    Args:
        text: one or several of: a phrase ('blood vessel'), which is put into
            ``processor.question``; or a whole question, which ends with . ? or ! and is asked as it
            is. A question that follows the template may be about several phrases ('Please segment
            the A, the B and the C in this image.'): it is asked once, and gets a map for each.
        processor: the model's.

    Raises:
        DataError: no text, an empty one, one phrase twice, or one with control tokens.
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
    phrases = [phrase for question in questions for phrase in question.phrases]
    twice = repeated(phrases)
    if twice:
        raise DataError(
            found=f"the same phrase twice: {listing(twice)}",
            expected="phrases that differ by more than case and white space, also in one question: "
            "each gets a map and files of its own",
            fix="leave one of them out of --text (in Python: text=...)",
        )
    return questions


def _question(text: str, processor: Sa2VAProcessor) -> Question:
    whole = isinstance(text, str) and text.strip().endswith(_ENDS)
    if not whole:
        asked = processor.question_for(text)
        return Question((text.strip(),), asked)
    text = text.strip()
    processor.check_question(text)
    phrases = processor.templates.phrases_of(text)
    if phrases is None:
        return Question((text,), text, own_words=True)
    return Question(tuple(phrases), text)


def check_own_words(
    questions: Iterable[Question], answer_mode: str, processor: Sa2VAProcessor
) -> None:
    """Raises DataError for a question in own words whose answer is a template with its phrase."""
    own = [question.text for question in questions if question.own_words]
    forced = answer_mode == "forced" and processor.templates.answer_names_phrase
    if own and (forced or answer_mode == "choice"):
        raise DataError(
            found=f"a question in words of its own with model.answer_mode={answer_mode!r}: "
            f"{listing(own)}",
            expected="phrases, or questions of the template: the answer's template names them",
            fix="ask for a phrase (--text 'blood vessel'), or set model.answer_mode=generate",
        )

"""What is asked about one or several phrases, what is answered, and how an answer is read back.

One phrase has two answers, ``answer`` ("Sure, [SEG].") and ``absent_answer``. Several phrases in
one question ("Please segment the A, the B and the C in this image.") have one answer with a clause
for each, in the order of the question:

    A: [SEG]; B: none; C: [SEG].

The phrase stands before its [SEG], so that the hidden state there has read which one it is, and the
token behind the colon is a decision about that phrase alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError, DataError, listing
from . import prompts
from .phrases import repeated
from .tokenizer import IM_END, SEG

_BETWEEN, _END = "; ", "."
_PLACE = "{phrase}"
_SEG_AND_BLANKS = re.compile(rf"\s*{re.escape(SEG)}\s*")


@dataclass(frozen=True)
class AnswerTemplates:
    """The texts of questions and answers; see ``Sa2VAProcessor`` for what each is.

    Raises:
        ConfigError: a text that no sample could be made with, or answers that cannot be told apart.
    """

    question: str
    answer: str
    absent_answer: str
    clauses: tuple[str, str]
    separators: tuple[str, str]

    def __post_init__(self) -> None:
        if not isinstance(self.question, str) or self.question.count(_PLACE) != 1:
            raise ConfigError(
                found=f"processor.question = {self.question!r}",
                expected="a text with {phrase} in it, once",
                fix="set processor.question='Please segment the {phrase} in this image.'",
            )
        text = self.answer
        if not isinstance(text, str) or text.count(SEG) != 1 or text.count(_PLACE) > 1:
            raise ConfigError(
                found=f"processor.answer = {text!r}",
                expected=f"a text with exactly one {SEG}: one answer is one mask; and with "
                "{phrase} in it at most once",
                fix=f"set processor.answer='Sure, {SEG}.'",
            )
        text = self.absent_answer
        if not isinstance(text, str) or SEG in text or text.count(_PLACE) > 1 or not text.strip():
            raise ConfigError(
                found=f"processor.absent_answer = {text!r}",
                expected=f"a text without {SEG}, with {{phrase}} in it at most once: what is not "
                "there has no mask",
                fix="set processor.absent_answer='There is no {phrase} in this image.'",
            )
        self._check_several()
        for name in ("question", "answer", "absent_answer"):
            try:
                prompts.check_template(name, getattr(self, name))
            except DataError as error:
                raise ConfigError(
                    found=f"processor.{name}: {error.found}", expected=error.expected, fix=error.fix
                ) from error

    def _check_several(self) -> None:
        good = _two_texts(self.clauses) and all(text.count(_PLACE) == 1 for text in self.clauses)
        if good:
            present, absent = self.clauses
            good = present.count(SEG) == 1 and SEG not in absent
            good = good and not (present.startswith(absent) or absent.startswith(present))
        if not good:
            raise ConfigError(
                found=f"processor.clauses = {self.clauses!r}",
                expected=f"two texts, for a phrase that is there (with one {SEG}) and one that is "
                "not (without), each with {phrase} once, neither the beginning of the other",
                fix=f"set processor.clauses=['{{phrase}}: {SEG}', '{{phrase}}: none']",
            )
        if not _two_texts(self.separators):
            raise ConfigError(
                found=f"processor.separators = {self.separators!r}",
                expected="two texts: between the phrases of a question, and before the last one",
                fix="set processor.separators=[', the ', ' and the ']",
            )

    @property
    def answer_names_phrase(self) -> bool:
        """Whether the answer about one phrase names it, so that there is none without it."""
        return _PLACE in self.answer

    def question_for(self, phrases: Sequence[str]) -> str:
        """The question about one or several phrases.

        Raises:
            DataError: no phrase, an empty one, one with control tokens, or, of several, one twice
                (case and white space aside) or one that holds a separator.
        """
        asked = [prompts.check_phrase(phrase) for phrase in phrases]
        if not asked:
            raise DataError(
                found="a question about no phrase",
                expected="at least one phrase",
                fix="name what to segment, for example 'blood vessel'",
            )
        comma, last = self.separators
        if len(asked) > 1:
            self._check_asked(asked)
        text = asked[0] if len(asked) == 1 else last.join((comma.join(asked[:-1]), asked[-1]))
        # Not str.format: a brace in the phrase or elsewhere in the template is ordinary text.
        return self.question.replace(_PLACE, text)

    def _check_asked(self, asked: Sequence[str]) -> None:
        twice = repeated(asked)
        split = [phrase for phrase in asked if any(s in phrase for s in self.separators)]
        if twice or split:
            raise DataError(
                found=f"one question about {', '.join(map(repr, asked))}"
                + (f", the same phrase twice: {listing(twice)}" if twice else ""),
                expected="phrases that differ by more than case and white space, and do not hold "
                + " or ".join(map(repr, self.separators)),
                fix="ask in questions of their own, or set processor.separators",
            )

    def phrases_of(self, question: str) -> list[str] | None:
        """The phrases of a question that follows the template; None for one that does not.

        One that is asked for twice is there twice.
        """
        before, _, after = self.question.partition(_PLACE)
        inside = len(question) > len(before + after)
        if not (inside and question.startswith(before) and question.endswith(after)):
            return None
        comma, last = self.separators
        text = question[len(before) : len(question) - len(after)]
        # Without an ' and the ' there is one phrase, whatever else is in it.
        first, found, final = text.rpartition(last)
        parts = [*first.split(comma), final] if found else [text]
        phrases = [part.strip() for part in parts]
        if found:  # "the A, the B, and the C"
            phrases = [phrase.removesuffix(",").rstrip() for phrase in phrases]
        # With an empty part it is no list: the text is one phrase.
        return phrases if all(phrases) else [text.strip()]

    def answer_for(self, phrases: Sequence[str], present: Sequence[bool]) -> str:
        """The answer to :meth:`question_for`, with a [SEG] for each phrase that is there.

        Args:
            phrases: n phrases.
            present: n flags.
        """
        if len(phrases) == 1:
            text = self.answer if present[0] else self.absent_answer
            return text.replace(_PLACE, phrases[0].strip())
        clauses = [
            self.clauses[not there].replace(_PLACE, phrase.strip())
            for phrase, there in zip(phrases, present, strict=True)
        ]
        return _BETWEEN.join(clauses) + _END

    def read(self, answer: str, phrases: Sequence[str]) -> list[bool] | None:
        """Which of several phrases an answer says are there.

        The rule: the whole answer must be :meth:`answer_for` of these phrases and some flags,
        blanks around [SEG] aside. No clause is the beginning of the other, so there is only one
        reading.

        Args:
            answer: with or without its end-of-turn token.
            phrases: n phrases of the question, n > 1.

        Returns:
            n flags; None for any other answer, whose [SEG] cannot be told apart.
        """
        clauses = [
            [re.escape(_tight(text.replace(_PLACE, phrase.strip()))) for text in self.clauses]
            for phrase in phrases
        ]
        pattern = re.escape(_BETWEEN).join(f"(?:({there})|{absent})" for there, absent in clauses)
        text = _tight(answer.strip().removesuffix(IM_END).strip())
        found = re.fullmatch(pattern + re.escape(_END), text)
        return None if found is None else [group is not None for group in found.groups()]


def _tight(text: str) -> str:
    return _SEG_AND_BLANKS.sub(SEG, text)


def _two_texts(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 2
        and all(isinstance(text, str) and text.strip() for text in value)
    )

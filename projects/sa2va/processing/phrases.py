"""When two phrases are one: where they differ in nothing but case and white space.

They are not written alike for the user, since a model reads every letter of them: what would count
one phrase as two is refused, with both spellings.
"""

from __future__ import annotations

from collections.abc import Iterable


def phrase_key(phrase: str) -> str:
    """What two spellings of one phrase have in common."""
    return " ".join(phrase.split()).casefold()


def repeated(phrases: Iterable[str]) -> list[str]:
    """The phrases that are there more than once, for a message.

    Returns:
        Of each its spelling, or all of its spellings: ``ramus``, ``'Ramus' and 'ramus'``.
    """
    found: dict[str, list[str]] = {}
    for phrase in phrases:
        found.setdefault(phrase_key(phrase), []).append(phrase)
    return [spellings(same) for same in found.values() if len(same) > 1]


def spellings(phrases: Iterable[str]) -> str:
    """One phrase as it is written, or in quotes where it is written in several ways."""
    ways = list(dict.fromkeys(phrases))
    return ways[0] if len(ways) == 1 else " and ".join(map(repr, ways))

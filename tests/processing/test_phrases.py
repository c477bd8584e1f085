"""Case and white space make no other phrase."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from projects.sa2va.processing.phrases import phrase_key, repeated

WORDS = st.lists(st.text("abßİé", min_size=1), min_size=1)


@given(WORDS, st.sampled_from([" ", "  ", "\t", "\n ", "\u00a0"]))
def test_words_alone_count(words, blank):
    phrase = " ".join(words)
    assert phrase_key(blank + blank.join(words) + blank) == phrase_key(phrase)
    assert phrase_key(phrase_key(phrase)) == phrase_key(phrase)
    assert repeated([phrase, phrase + "x"]) == []
    assert repeated([phrase, "y", phrase]) == [phrase]


def test_all_spellings_are_named_in_order():
    given_ = ["Ramus", "left main", "ramus", "RAMUS", "ramus", "Left  main"]
    assert repeated(given_) == ["'Ramus' and 'ramus' and 'RAMUS'", "'left main' and 'Left  main'"]
    assert repeated([]) == repeated(["ramus", "ramus 2"]) == []

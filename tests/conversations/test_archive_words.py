"""Words of texts and queries, whatever somebody writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bxmesh.server.conversations.archive.words import MOST_TEXT, snippet, terms_of, words_of
from bxmesh.server.errors import MeshError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("R-free is 0.21!", "r free is 0 21"),
        ("2mFo-DFc map of 1abc.pdb", "2mfo dfc map of 1abc pdb"),
        ("Ångström NAÏVE Straße ﬁt", "angstrom naive strasse fit"),
        ("a_b\0c\ud800d", "a b c d"),
        ("結晶 structure", "結晶 structure"),
        ("…!?", ""),
        ("x" * 100, "x" * 64),
    ],
)
def test_words(text: str, words: str) -> None:
    assert words_of(text) == words


@given(st.text(st.characters(codec=None), max_size=300))
def test_any_text_has_words_of_letters_and_digits_only(text: str) -> None:
    words = words_of(text)
    assert all(word.isalnum() for word in words.split())
    assert words.encode().decode() == words
    # What is stored and what is looked for agree.
    assert words_of(words) == words


def test_a_text_without_end_is_cut() -> None:
    assert len(words_of("ﷺ" * 300_000)) <= MOST_TEXT


def test_terms() -> None:
    assert terms_of("The R-free, the r-FREE") == ("the", "r", "free")
    assert len(terms_of(" ".join(f"w{index}" for index in range(500)))) == 32


@pytest.mark.parametrize(
    "query", ["", " ", "\0", "\ud800", '"()*:^', "🙂", "x" * 4097, "!" * 10_000_000]
)
def test_queries_without_words_are_refused(query: str) -> None:
    with pytest.raises(MeshError) as raised:
        terms_of(query)
    assert raised.value.code.name == "INVALID_ARGUMENT"


def test_snippets() -> None:
    text = "Once upon a time " * 50 + "the R-free fell\nto 0.21 after " + "a long refinement " * 50
    found = snippet(text, ["free"])
    assert "the R-free fell to 0.21 after" in found
    assert found.startswith("…")
    assert found.endswith("…")
    assert len(found) < 300
    assert snippet("Short.", ["nothing"]) == "Short."
    assert snippet("carefree free", ["free"]) == "carefree free"
    # Where nothing is found word for word, the place that was near.
    assert snippet("a " * 400 + "near here", ["far"], 800) == "…near here"
    assert len(snippet("x" * 1_000_000, ["y"], 500_000)) < 1000

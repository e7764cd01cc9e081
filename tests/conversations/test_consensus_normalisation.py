from __future__ import annotations

import pytest

from bxmesh.server.conversations.consensus.normalisation import (
    LONGEST_TEXT,
    data_key,
    plain_value,
    text_key,
    words_of,
)
from bxmesh.server.json_values import NotJsonError


def key(text: str) -> str:
    return text_key(text, words_of(text))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", " paris. "),
        ("The answer", "answer"),
        ("An apple a day", "apple day"),
        ("**42**", "42"),
        ("`P212121`", "p212121"),
        ("“Yes!”", "yes"),
        ("1.50", "1.5"),
        ("1.50 Å", "1.5Å"),
        ("1.8 \u212b", "1.8 Å"),
        ("1,000", "1000"),
        ("1,5", "1.5"),
        ("+5", "5"),
        (".5", "0.5"),
        ("-0.0", "0"),
        ("1e3", "1000"),
        ("1.5 × 10^3", "1500"),
        ("1.5·10³", "1.5e3"),
        ("3.1-Å", "3.1 Å"),
        ("ｆｕｌｌ１２", "full12"),
        ("ﬁve", "five"),
        ("a\u200bb", "ab"),
        ("H₂O", "H2O"),
        ("It's fine", "It’s fine"),
        ("−5", "-5"),
        ("straße", "STRASSE"),
        ("(see below)", "see below"),
        ("1\u00a0000 m", "1 000 m"),
    ],
)
def test_what_is_only_written_differently_is_the_same(one: str, other: str) -> None:
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5", "-5"),
        ("5 Å", "5"),
        ("5 mPa", "5 MPa"),
        ("5 %", "5"),
        ("$5", "€5"),
        ("$5", "5"),
        ("10²", "102"),
        ("x²", "x2"),
        ("1½", "11/2"),
        ("1.5", "15"),
        ("0,123", "123"),
        ("5/6", "56"),
        ("1-2", "12"),
        ("x < 5", "x > 5"),
        ("C++", "C"),
        ("C#", "C"),
        ("!true", "true"),
        ("A", "B"),
        ("Chain A is wrong", "The chain is wrong"),
        ("option a", "option b"),
        ("?", "!"),
        ("(R)-carvone", "(S)-carvone"),
        ("P2(1)2(1)2(1)", "P2(1)2(1)2"),
        ("1.0000000000000000000000000000000000000001", "1"),
        ("1e9999", "1e999"),
        ("it is", "it is not"),
    ],
)
def test_what_says_something_else_is_not(one: str, other: str) -> None:
    assert key(one) != key(other)


def test_long_texts_are_the_same_only_letter_for_letter() -> None:
    long = "word " * LONGEST_TEXT
    assert key(long) == key(f" {long}")
    assert key(long) != key(long.upper())
    assert key(long + "x") != key(long + "y")


def test_values_are_compared_as_json() -> None:
    assert data_key(plain_value({"a": 1.0, "b": [2]})) == data_key(
        plain_value({"b": [2.0], "a": 1})
    )
    assert data_key(plain_value([1, 2])) != data_key(plain_value([2, 1]))
    assert data_key(plain_value([True])) != data_key(plain_value([1]))
    assert data_key(plain_value([-0.0])) == data_key(plain_value([0]))
    with pytest.raises(NotJsonError):
        plain_value([float("nan")])


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        "**" * 50_000,
        "1 " * 2_000 + "x" * 90,
        "1" * 4_000,
        "1," * 2_000,
        "9e" * 2_000,
        "5 " + " " * 4_000 + "x10^5",
        "\ufdfa" * 4_000,
        "½" * 4_000,
        "²" * 4_000,
        "\ud800" * 10,
        "m/" * 2_000,
        "\u200b" * 100,
        "5" + "/m" * 30,
    ],
    ids=ascii,
)
def test_hostile_texts_have_a_form_too(text: str) -> None:
    assert key(text) == key(text)

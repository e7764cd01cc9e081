"""The one form of answers that differ only in how they are written.

Compatibility characters, case, blanks, punctuation, emphasis and articles do not count, and numbers
are compared as numbers. Units count, with their case: mPa is not MPa.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata

from bxmesh.server.conversations.consensus.numbers import is_unit, read_quantity
from bxmesh.server.json_values import Json, json_of, value_of

__all__ = ["LONGEST_TEXT", "data_key", "plain_value", "text_key", "words_of"]

LONGEST_TEXT = 4096
"""Characters of a text that are looked into. Longer ones are the same only letter for letter."""

_MOST_VALUE_BYTES = 1 << 20

# Compatibility forms of these would change a number: 10² is not 102, and 1½ is not 11/2.
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_FRACTION = re.compile("[¼-¾⅐-⅞]")
_POWER_OF_TEN = re.compile(r"(\d)\s*[×x*·]\s*10\s*\^\s*([+-]?\d{1,4})(?!\d)", re.ASCII)
_EMPHASIS = re.compile(r"\*\*([^*]+)\*\*")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_ALIKE = str.maketrans("‘’‚“”„−‐‑–—⁄", "'''\"\"\"-----/")

_OPENING = "\"'«»‹›¿¡"
_CLOSING = ".,;:!?…\"'«»‹›"
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_PAIRED = {closing: opening for opening, closing in _PAIRS.items()}
# Brackets within brackets; what has more is left as it is.
_LAYERS = 4


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def text_key(text: str, words: tuple[str, ...] | None) -> str:
    """Returns what two texts share exactly when they are the same; `words` are those of the text."""
    if words is None:
        data = text.strip().encode("utf-8", "surrogatepass")
        return f"sha256 {hashlib.sha256(data).hexdigest()}"
    return "text " + " ".join(words)


def words_of(text: str) -> tuple[str, ...] | None:
    """Returns a text in its normal form, a number and its unit apart; None when it is too long."""
    text = text.strip()
    if len(text) > LONGEST_TEXT:
        return None
    if not text.isascii():
        text = _RAISED.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]), text)
        text = _FRACTION.sub(r" \g<0>", text)
        text = unicodedata.normalize("NFKC", text.translate(_ALIKE)).translate(_ALIKE)
        text = _INVISIBLE.sub("", text)
        if len(text) > LONGEST_TEXT:
            return None
    text = _POWER_OF_TEN.sub(r"\1e\2", _EMPHASIS.sub(r"\1", text.replace("`", "")))
    tokens = [
        inner
        for token in text.split()
        if (inner := token if token.isalpha() else _without_punctuation(token))
    ]
    words: list[str] = []
    after_number = False
    for index, token in enumerate(tokens):
        quantity = None if token[0].isalpha() else read_quantity(token)
        if quantity is not None:
            words.append(quantity.number)
            if quantity.unit:
                words.append(quantity.unit)
        elif after_number and is_unit(token):
            words.append(token)
        elif not _is_article(token, index, len(tokens)):
            words.append(token.casefold())
        after_number = quantity is not None and not quantity.unit
    # An answer of punctuation alone means it.
    return tuple(words) or tuple(text.split())


def data_key(value: Json) -> str:
    """Returns what two values of JSON share exactly when they are equal."""
    return "json " + _encode(value)


def plain_value(value: Json) -> Json:
    """Returns a value in its normal form: whole numbers are integers, objects new.

    Raises NotJsonError for what is no JSON, or too much of it.
    """
    return json_of(value_of(value, _MOST_VALUE_BYTES))


def _is_article(token: str, index: int, count: int) -> bool:
    if index == count - 1:
        return False
    # A capital within a sentence names something: "chain A".
    return token.casefold() in ("the", "an") or token == "a" or (token == "A" and index == 0)


def _without_punctuation(token: str) -> str:
    for _ in range(_LAYERS):
        before = token
        token = token.rstrip(_CLOSING).lstrip(_OPENING)
        if token[:1] in _PAIRS and token.find(_PAIRS[token[0]]) in (-1, len(token) - 1):
            token = token[1:].removesuffix(_PAIRS[token[0]])
        if token[-1:] in _PAIRED and _PAIRED[token[-1]] not in token:
            token = token[:-1]
        if token == before:
            break
    return token

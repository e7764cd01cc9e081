"""The words of texts, the same for what is stored and what is looked for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from bxmesh.server.errors import invalid_argument

__all__ = ["MOST_QUERY", "MOST_TEXT", "snippet", "terms_of", "words_of"]

MOST_TEXT = 100_000
"""So many characters of a text are searched. PostgreSQL indexes no more than 1 MiB of words."""
MOST_QUERY = 4096
"""The longest query, in characters."""
_MOST_WORD = 64
_MOST_TERMS = 32
_BEFORE = 60
_SNIPPET = 240

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> str:
    """Returns the words of a text with a space between them, without case, accents and punctuation:
    whatever a database may take for syntax is gone."""
    text = text[:MOST_TEXT]
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text.casefold())
        text = "".join(char for char in text if not unicodedata.combining(char))
    return " ".join(word[:_MOST_WORD] for word in _WORD.findall(text.lower()))[:MOST_TEXT]


def terms_of(query: str) -> tuple[str, ...]:
    """Returns the words to look for, each once, at most 32. Raises MeshError INVALID_ARGUMENT for a
    query that is too long or has none."""
    if len(query) > MOST_QUERY:
        raise invalid_argument("query", f"is longer than {MOST_QUERY} characters")
    terms = tuple(dict.fromkeys(words_of(query).split()))[:_MOST_TERMS]
    if not terms:
        raise invalid_argument("query", "has no letter and no digit to look for")
    return terms


def snippet(text: str, terms: Sequence[str], start: int = 0) -> str:
    """Returns what stands around the first of the terms, or else at a place, on one line."""
    found = re.search(
        rf"(?<![^\W_])(?:{'|'.join(map(re.escape, terms))})(?![^\W_])",
        text[:MOST_TEXT],
        re.IGNORECASE,
    )
    begin = max(0, found.start() - _BEFORE) if found else start
    end = begin + _SNIPPET
    # Not in the middle of a word.
    while 0 < begin < len(text) and not text[begin - 1].isspace() and end - begin < 2 * _SNIPPET:
        begin -= 1
    piece = " ".join(text[begin:end].split())
    return f"{'…' if begin > 0 else ''}{piece}{'…' if end < len(text) else ''}"

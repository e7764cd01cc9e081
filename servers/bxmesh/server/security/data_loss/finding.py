"""What detectors share: they look at text as UTF-8, in time linear in it, for candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import re2

__all__ = [
    "MOST_CANDIDATES",
    "MOST_HITS",
    "Finder",
    "Found",
    "Span",
    "by_compiled",
    "by_pattern",
    "find",
    "in_turn",
    "is_fraction",
    "is_valid",
]

MOST_HITS = 1_000
"""So many of one detector are enough to know."""
MOST_CANDIDATES = 10_000
"""So many are checked by one detector; a text with more is treated as if it had a hit."""

Span = tuple[int, int]
Finder = Callable[[bytes], Iterator[Span | None]]
"""Yields where each thing is that it looks for, and None for a candidate that is none."""
Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Found:
    """What a detector found in a text."""

    spans: tuple[Span, ...]
    candidates: int
    """How many it looked at."""
    complete: bool
    """Whether it came to the end of the text."""

    def __bool__(self) -> bool:
        # What was too much to look at is not taken for harmless.
        return bool(self.spans) or not self.complete


def find(finder: Finder, text: bytes) -> Found:
    """Looks for things in a text, up to the limits."""
    spans: list[Span] = []
    candidates = 0
    for span in finder(text):
        if len(spans) == MOST_HITS or candidates == MOST_CANDIDATES:
            return Found(tuple(spans), candidates, complete=False)
        candidates += 1
        if span is not None:
            spans.append(span)
    return Found(tuple(spans), candidates, complete=True)


def by_pattern(pattern: str, check: Check | None = None) -> Finder:
    """Returns a finder of what fits an RE2 pattern, or its group if it has one, and passes a
    check."""
    compiled: Any = re2.compile(pattern.encode())
    return by_compiled(compiled, min(1, compiled.groups), check)


def by_compiled(compiled: Any, group: int = 0, check: Check | None = None) -> Finder:
    """Returns a finder of a group of a compiled pattern of bytes; 0 is all that fits."""

    def finder(text: bytes) -> Iterator[Span | None]:
        for match in compiled.finditer(text):
            start, end = match.span(group)
            span = text[start:end]
            if span and (
                check is None
                or (not is_fraction(text, start) and check(span.decode(errors="replace")))
            ):
                yield start, end
            else:
                yield None

    return finder


def is_fraction(text: bytes, start: int) -> bool:
    """Whether the digits that begin somewhere are those behind a decimal point."""
    before = text[max(0, start - 2) : start]
    return before[1:] == b"." and before[:1].isdigit() and text[start : start + 1].isdigit()


def in_turn(*finders: Finder) -> Finder:
    """Returns a finder of what any of several finds."""

    def finder(text: bytes) -> Iterator[Span | None]:
        for each in finders:
            yield from each(text)

    return finder


def is_valid(module: str) -> Check:
    """Returns the check of a module of the package stdnum, which is not loaded before it is used."""

    @cache
    def load() -> Check:
        check: Check = import_module(f"stdnum.{module}").is_valid
        return check

    return lambda text: load()(text)

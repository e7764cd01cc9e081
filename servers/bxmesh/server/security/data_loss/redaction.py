"""A message without what was found in it."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

import re2

from bxmesh.agent.v1.message_pb2 import Envelope

from .content import Content, plain
from .finding import Span
from .texts import visit

__all__ = ["redacted"]

Hit = tuple[int, int, str]
_TOKEN: Any = re2.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?')


def redacted(
    envelope: Envelope, content: Content, hits: Iterable[tuple[Span, str]]
) -> Envelope | None:
    """Returns a message with names in brackets in the places of spans of its content; None when one
    is where nothing can be changed."""
    by_part: dict[int, list[Hit]] = defaultdict(list)
    for span, name in hits:
        for number, (start, end) in content.parts_of(span):
            if content.parts[number].kind == "fixed":
                return None
            by_part[number].append((start, end, name))
    changed = Envelope()
    changed.CopyFrom(envelope)
    try:
        visit(changed, _Redactor(by_part))
    except ValueError:
        return None
    return changed


class _Redactor:
    def __init__(self, by_part: dict[int, list[Hit]]) -> None:
        self._by_part = by_part
        self._next = 0

    def _hits(self) -> list[Hit]:
        hits = self._by_part.get(self._next, [])
        self._next += 1
        return _merged(hits)

    def fixed(self, place: str, text: bytes) -> None:
        if text:
            self._next += 1

    def key(self, place: str, text: str) -> None:
        self._next += 1

    def text(self, place: str, text: str) -> str:
        hits = self._hits()
        return _replaced(plain(text), hits).decode(errors="replace") if hits else text

    def number(self, place: str, text: str) -> str:
        hits = self._hits()
        return f"[{hits[0][2]}]" if hits else text

    def json(self, place: str, text: str) -> str:
        hits = self._hits()
        return _without(plain(text), hits).decode(errors="replace") if hits else text


def _merged(hits: list[Hit]) -> list[Hit]:
    """Hits that do not overlap, in order, under the name of the first of those that did."""
    merged: list[Hit] = []
    for start, end, name in sorted(hits):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]), merged[-1][2])
        else:
            merged.append((start, end, name))
    return merged


def _replaced(text: bytes, hits: list[Hit]) -> bytes:
    pieces: list[bytes] = []
    position = 0
    for start, end, name in hits:
        pieces += (text[position:start], b"[%s]" % name.encode())
        position = end
    return b"".join((*pieces, text[position:]))


def _without(text: bytes, hits: list[Hit]) -> bytes:
    """A JSON text without hits, JSON again; raises ValueError for what is none."""
    try:
        # Within JSON that is right, the tokens are found in linear time.
        json.loads(text, parse_int=len, parse_float=len)
    except RecursionError as error:
        raise ValueError("too deep") from error
    pieces: list[bytes] = []
    waiting = deque(hits)
    position = 0
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        inner: list[Hit] = []
        while waiting and waiting[0][0] < end:
            hit = waiting.popleft()
            if hit[1] > start:
                inner.append(hit)
        if inner:
            pieces += (text[position:start], _token_without(text[start:end], start, inner))
            position = end
            if inner[-1][1] > end:
                waiting.appendleft(inner[-1])
    return b"".join((*pieces, text[position:]))


def _token_without(token: bytes, offset: int, hits: list[Hit]) -> bytes:
    if token[:1] != b'"' or b"\\" in token:
        # Half an escape is none.
        return b'"[%s]"' % hits[0][2].encode()
    last = len(token) - 1
    inside = [
        (max(1, start - offset), min(last, end - offset), name)
        for start, end, name in hits
        if start - offset < last and end - offset > 1
    ]
    return _replaced(token, inside)

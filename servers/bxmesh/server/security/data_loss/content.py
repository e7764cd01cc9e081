"""All texts of a message in one, for detectors: as they are, and once decoded."""

from __future__ import annotations

import binascii
import json
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote_to_bytes

import re2

from bxmesh.agent.v1.message_pb2 import Envelope

from .finding import Span
from .texts import visit

__all__ = ["Content", "Part", "read"]

_MOST_BYTES = 4 << 20
"""So much is looked at, decoded texts included; a message that has more is not known to be clean."""
# Between the texts, what no detector takes for a part of its thing; as in JSON, a key is followed
# by its value.
_AFTER_KEY = b'": "'
_AFTER_TEXT = b'"\n'


@dataclass(frozen=True, slots=True)
class Part:
    """A text of a message within its content."""

    start: int
    end: int
    place: str
    """Where in the message."""
    kind: str
    """fixed, text, number or json: whether, and how, it can be changed."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a message says."""

    text: bytes
    parts: tuple[Part, ...]
    """In order."""
    decoded: tuple[tuple[Span, Span], ...]
    """Where in the text is what was decoded, and from where."""
    complete: bool
    """Whether that is all."""

    def parts_of(self, span: Span) -> Iterator[tuple[int, Span]]:
        """Yields the numbers of the parts that a span comes from, each with the span within it."""
        for start, end in self._sources(span):
            first = bisect_right(self.parts, start, key=lambda part: part.start) - 1
            for number in range(max(0, first), len(self.parts)):
                part = self.parts[number]
                if part.start >= end:
                    break
                if part.end > start:
                    yield (
                        number,
                        (max(start, part.start) - part.start, min(end, part.end) - part.start),
                    )

    def _sources(self, span: Span) -> Iterator[Span]:
        first = self.decoded[0][0][0] if self.decoded else len(self.text)
        if span[0] < first:
            yield span[0], min(span[1], first)
        if span[1] > first:
            index = bisect_right(self.decoded, span[0], key=lambda each: each[0][0]) - 1
            for (start, end), source in self.decoded[max(0, index) :]:
                if start >= span[1]:
                    break
                if end > span[0]:
                    yield source


def read(envelope: Envelope) -> Content:
    """Returns what a message says."""
    working = Envelope()
    working.CopyFrom(envelope)
    collector = _Collector()
    visit(working, collector)
    buffer = collector.buffer
    original = bytes(buffer)
    decoded: list[tuple[Span, Span]] = []
    complete = collector.complete
    for source, text in _decoded(original, collector.parts):
        if len(buffer) + len(text) > _MOST_BYTES:
            complete = False
            break
        decoded.append(((len(buffer), len(buffer) + len(text)), source))
        buffer += text
        buffer += _AFTER_TEXT
    return Content(bytes(buffer), tuple(collector.parts), tuple(decoded), complete)


class _Collector:
    def __init__(self) -> None:
        self.buffer = bytearray()
        self.parts: list[Part] = []
        self.complete = True

    def _add(self, place: str, kind: str, text: bytes, after: bytes = _AFTER_TEXT) -> None:
        start = len(self.buffer)
        if start + len(text) > _MOST_BYTES:
            self.complete = False
            return
        self.buffer += text
        self.parts.append(Part(start, len(self.buffer), place, kind))
        self.buffer += after

    def fixed(self, place: str, text: bytes) -> None:
        if text:
            self._add(place, "fixed", text)

    def key(self, place: str, text: str) -> None:
        self._add(place, "fixed", plain(text), _AFTER_KEY)

    def text(self, place: str, text: str) -> str:
        self._add(place, "text", plain(text))
        return text

    def number(self, place: str, text: str) -> str:
        self._add(place, "number", text.encode())
        return text

    def json(self, place: str, text: str) -> str:
        self._add(place, "json", plain(text))
        return text


@cache
def _ascii_forms() -> dict[int, str | None]:
    """ASCII for digits, letters and dashes that only look different; nothing for what is not seen."""
    forms: dict[int, str | None] = {}
    for code in range(0x80, 0x1FBFA):
        character = chr(code)
        match unicodedata.category(character):
            case "Nd":
                forms[code] = str(unicodedata.decimal(character))
            case "Pd":
                forms[code] = "-"
            case "Zs":
                forms[code] = " "
            case "Cf":
                forms[code] = None
    forms |= {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    forms[0x2212] = "-"
    return forms


def plain(text: str) -> bytes:
    """Returns a text as detectors know it."""
    if not text.isascii():
        text = text.translate(_ascii_forms())
    return text.encode(errors="replace")


_BASE64: Any = re2.compile(rb"[A-Za-z0-9+/_-]{16}[A-Za-z0-9+/_-]*={0,2}")
_PERCENT: Any = re2.compile(rb"[!#$&-;=?-\[\]-~]*%[0-9A-Fa-f]{2}[!#$%&-;=?-\[\]-~]*")
_ESCAPED: Any = re2.compile(rb'"((?:[^"\\]|\\.)*)"')
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def _decoded(text: bytes, parts: Sequence[Part]) -> Iterator[tuple[Span, bytes]]:
    for match in _BASE64.finditer(text):
        if decoded := _from_base64(match.group()):
            yield match.span(), decoded
    if b"%" in text:
        for match in _PERCENT.finditer(text):
            yield match.span(), plain(unquote_to_bytes(match.group()).decode(errors="replace"))
    if b"\\" in text:
        for part in parts:
            for match in _ESCAPED.finditer(text, part.start, part.end):
                if b"\\" in match.group():
                    yield match.span(1), _from_json(match.group())


def _from_base64(text: bytes) -> bytes:
    digits = text.rstrip(b"=").translate(_TO_STANDARD)
    try:
        return plain(binascii.a2b_base64(digits + b"=" * (-len(digits) % 4)).decode())
    except ValueError:
        return b""


def _from_json(text: bytes) -> bytes:
    try:
        return plain(json.loads(text, strict=False))
    except ValueError:
        return b""

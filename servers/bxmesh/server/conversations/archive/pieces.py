"""What vectors stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["MOST_CHUNKS", "Hit", "Piece", "VectorsAwayError"]

MOST_CHUNKS = 8
"""Vectors that a message may have."""


class VectorsAwayError(Exception):
    """The store of vectors does not answer as it should."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a message; the text itself stays in the database."""

    conversation_id: str
    message_id: int
    place: int
    chunk: int
    sees: tuple[str, ...]
    """Who sees it, as `seeing.seen_by` has it."""


class Hit(NamedTuple):
    """A piece that is near."""

    message_id: int
    conversation_id: str
    chunk: int

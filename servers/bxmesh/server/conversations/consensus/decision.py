"""What a method decides, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from bxmesh.server.conversations.consensus.answers import Answer, Candidate
from bxmesh.server.conversations.consensus.voices import Voice
from bxmesh.server.json_values import Json

__all__ = ["Decision", "Votes", "confidence_of", "evidence_of", "mean_sureness"]

Votes = int | Fraction
"""How much a voice counts; exact, so that neither order nor rounding decides."""

_MOST_EVIDENCE = 64
_LONGEST_EVIDENCE = 1024


@dataclass(frozen=True)
class Decision:
    """The answer of one method, for the whole or for one part of it."""

    answer: Json
    """As data."""
    text: str
    """In words."""
    share: float
    """The part of the votes behind it, 0 to 1."""
    sureness: float
    """The mean confidence of those behind it, 0 to 1."""
    supporters: frozenset[int]
    """Who is behind it, by position."""
    agreement: Sequence[float | None]
    """The part of the votes that it had in each earlier turn; None where nobody answered."""
    groups: Sequence[Candidate] = ()
    """All answers, most votes first."""
    spread: float | None = None
    """For numbers: half the distance between the quartiles."""
    outliers: frozenset[int] = frozenset()
    """For numbers: who is far off, by position."""


def mean_sureness(voices: Iterable[tuple[Voice, Votes]]) -> float:
    """Returns the mean confidence of voices by their votes; the plain mean where all have none."""
    pairs = [(voice.answer.sureness, float(votes)) for voice, votes in voices]
    total = math.fsum(votes for _, votes in pairs)
    if total == 0:
        return math.fsum(sure for sure, _ in pairs) / len(pairs)
    # Divided first: a product of small numbers may vanish.
    return min(1.0, math.fsum(sure * (votes / total) for sure, votes in pairs))


def confidence_of(decision: Decision) -> float:
    """Returns how sure a decision is, 0 to 1.

    It is the share times the mean confidence behind it. What participants say of themselves is
    calibrated, once there are earlier turns, against how far they agreed: half of it is what they say, half
    the mean share that the answer had in those turns.
    """
    sure = decision.sureness
    earlier = [share for share in decision.agreement if share is not None]
    if earlier:
        sure = (sure + math.fsum(earlier) / len(earlier)) / 2
    return min(1.0, max(0.0, decision.share * sure))


def evidence_of(answers: Iterable[Answer]) -> tuple[str, ...]:
    """Returns what answers name in their support, each once and in order: the first 64, long ones cut."""
    found: dict[str, None] = {}
    for answer in answers:
        for item in answer.evidence[:_MOST_EVIDENCE]:
            if len(found) == _MOST_EVIDENCE:
                return tuple(found)
            text = item.strip()
            if len(text) > _LONGEST_EVIDENCE:
                text = text[: _LONGEST_EVIDENCE - 1] + "…"
            if text:
                found[text.encode("utf-8", "replace").decode()] = None
    return tuple(found)

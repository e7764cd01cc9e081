"""What goes in: answers, and what may help to tell and to choose between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bxmesh.server.json_values import Json

__all__ = ["UNSTATED_CONFIDENCE", "Answer", "Candidate", "Judge", "Meaning", "Verdict"]

UNSTATED_CONFIDENCE = 0.5
"""How sure a participant counts as that did not say."""


@dataclass(frozen=True)
class Answer:
    """What one participant answered in one turn."""

    participant_id: str
    """Who, one of the conversation's participants."""
    text: str = ""
    """What was said."""
    value: Json = None
    """The answer as data; it goes before the text where it is JSON. None for none."""
    confidence: float | None = None
    """How sure it is; what is not within 0 to 1 is moved there, and NaN counts as not said."""
    weight: float = 1.0
    """Its weight in a weighted vote, finite and not negative."""
    ranking: Sequence[Json] = ()
    """For a ranked choice: participants, for what they answered, or else answers, best first."""
    evidence: Sequence[str] = ()
    """What it names in its support."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"the weight of {self.participant_id!r} is {self.weight}")

    @property
    def sureness(self) -> float:
        """How sure the participant counts as, 0 to 1."""
        if self.confidence is None or math.isnan(self.confidence):
            return UNSTATED_CONFIDENCE
        return min(1.0, max(0.0, self.confidence))


@dataclass(frozen=True)
class Candidate:
    """An answer that may become the consensus, and who gave it."""

    answer: Json
    """As data; text that is long is cut."""
    text: str
    """In words; cut when it is long."""
    participant_ids: tuple[str, ...]
    """Who gave it, in the order of the conversation's participants."""
    share: float
    """The part of the votes it has, 0 to 1."""
    confidence: float
    """The mean confidence behind it, 0 to 1."""
    stable_since: int
    """The turn, from 1, since when one of them has kept to it."""
    stable_participant_id: str
    """Who that is: the first in the order of the participants."""


@dataclass(frozen=True)
class Verdict:
    """What a judge decided."""

    index: int
    """Which of the candidates."""
    reason: str = ""
    """Why."""


class Judge(Protocol):
    """Decides between answers; a model or an agent is behind it, so that it may fail."""

    async def decide(self, question: str, candidates: Sequence[Candidate]) -> Verdict:
        """Returns which of two or more candidates answers the question best."""


class Meaning(Protocol):
    """Places texts so that what means the same is near; may fail."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Returns a vector for each text, of shape (texts, dimensions)."""

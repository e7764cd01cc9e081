"""Answers, settings and helpers that the tests of the consensus share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bxmesh.agent.v1.conversation_pb2 import ConsensusMethod, ConsensusSettings
from bxmesh.server.conversations.consensus import Answer, Candidate, Outcome, Verdict, consensus

MAJORITY = ConsensusMethod.CONSENSUS_METHOD_MAJORITY
WEIGHTED = ConsensusMethod.CONSENSUS_METHOD_WEIGHTED
RANKED = ConsensusMethod.CONSENSUS_METHOD_RANKED
JUDGE = ConsensusMethod.CONSENSUS_METHOD_JUDGE
NUMERIC = ConsensusMethod.CONSENSUS_METHOD_NUMERIC
STRUCTURED = ConsensusMethod.CONSENSUS_METHOD_STRUCTURED


def said(*answers: Any, **of_all: Any) -> list[Answer]:
    """Answers of p0, p1, …: a text, other data, a mapping of fields, or None for no answer."""
    made = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        if isinstance(answer, str):
            fields: Mapping[str, Any] = {"text": answer}
        elif isinstance(answer, Fields):
            fields = answer
        else:
            fields = {"value": answer}
        made.append(Answer(f"p{index}", **{**of_all, **fields}))
    return made


class Fields(dict[str, Any]):
    """The fields of an answer."""


async def reach(
    *answers: Any, method: ConsensusMethod.ValueType = MAJORITY, quorum: int = 0, **more: Any
) -> Outcome:
    """The consensus of p0, p1, … by `said`."""
    settings = ConsensusSettings(method=method, quorum=quorum)
    if "schema" in more:
        settings.answer_schema.update(more.pop("schema"))
    participants = [f"p{index}" for index in range(len(answers))]
    return await consensus(said(*answers), settings, participants=participants, **more)


class Deciding:
    """A judge that decides by a function of the texts, and remembers what it was asked."""

    def __init__(self, choose: Callable[[Sequence[str]], int]) -> None:
        self.choose = choose
        self.asked: list[tuple[str, list[str]]] = []

    async def decide(self, question: str, candidates: Sequence[Candidate]) -> Verdict:
        texts = [candidate.text for candidate in candidates]
        self.asked.append((question, texts))
        return Verdict(self.choose(texts), "so it is")


class Placed:
    """Meaning by a table of vectors; texts that it lacks are each alone."""

    def __init__(self, places: Mapping[str, Sequence[float]]) -> None:
        self.places = places
        self.asked: list[list[str]] = []

    async def embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        self.asked.append(list(texts))
        width = max((len(place) for place in self.places.values()), default=0)
        vectors = np.zeros((len(texts), width + len(texts)))
        for index, text in enumerate(texts):
            place = self.places.get(text)
            if place is None:
                vectors[index, width + index] = 1
            else:
                vectors[index, : len(place)] = place
        return vectors

"""What comes out, and its form in the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bxmesh.agent.v1.conversation_pb2 import AnswerGroup, Consensus, ConsensusMethod
from bxmesh.server.conversations.consensus.answers import Candidate
from bxmesh.server.json_values import Json, value_of

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """The one answer, and how it was reached."""

    answer: Json
    """As data; a text where answers were texts."""
    text: str
    """In words."""
    confidence: float
    """How sure it is, 0 to 1."""
    method: ConsensusMethod.ValueType
    """The method by which it was reached."""
    groups: Sequence[Candidate]
    """All answers, the one with most votes first."""
    tie_break: str
    """The last means that a tie needed: "confidence", "judge", "first_stable"; empty for no tie."""
    spread: float | None
    """Half the distance between the quartiles of numbers; None for other methods."""
    evidence: Sequence[str]
    """What those behind the answer name in its support."""
    supporters: Sequence[str]
    """The participants behind it, in their order; of a structured answer, who agrees with half of it."""
    abstentions: Mapping[str, str]
    """The participants that said nothing usable, and why."""
    outliers: Sequence[str]
    """The participants whose numbers are far off."""
    judge_reasons: Sequence[str]
    """What the judge said."""

    def to_message(self, turn: int) -> Consensus:
        """Returns it as the consensus after a turn."""
        return Consensus(
            answer=value_of(self.answer),
            text=self.text,
            confidence=self.confidence,
            method=self.method,
            groups=[
                AnswerGroup(
                    answer=value_of(group.answer),
                    participant_ids=group.participant_ids,
                    share=group.share,
                )
                for group in self.groups
            ],
            tie_break=self.tie_break,
            spread=self.spread,
            evidence=self.evidence,
            turn=turn,
        )

"""One answer out of many: the consensus of a conversation."""

from bxmesh.server.conversations.consensus.answers import (
    UNSTATED_CONFIDENCE,
    Answer,
    Candidate,
    Judge,
    Meaning,
    Verdict,
)
from bxmesh.server.conversations.consensus.grouping import SIMILARITY
from bxmesh.server.conversations.consensus.outcome import Outcome
from bxmesh.server.conversations.consensus.reaching import consensus

__all__ = [
    "SIMILARITY",
    "UNSTATED_CONFIDENCE",
    "Answer",
    "Candidate",
    "Judge",
    "Meaning",
    "Outcome",
    "Verdict",
    "consensus",
]

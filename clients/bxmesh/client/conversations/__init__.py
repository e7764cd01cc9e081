"""Conversations: several agents, one answer.

Agents that take part handle tasks of the type `ASKED`, whose parameters are a `Question`, and return
an `AgentAnswer`, a text or a number.
"""

from bxmesh.client.conversations.archived import (
    ConversationStats,
    Exported,
    ModelStats,
    Purged,
    SearchMode,
    SearchResult,
)
from bxmesh.client.conversations.calls import AsyncConversations
from bxmesh.client.conversations.conversation import (
    AnswerGroup,
    Consensus,
    ConsensusMethod,
    Conversation,
    ConversationFailed,
    ConversationState,
    Turn,
)
from bxmesh.client.conversations.events import ConversationEvent, ParticipantLeft, TextDelta
from bxmesh.client.conversations.options import ConversationFilter, ConversationOptions
from bxmesh.client.conversations.participants import Participant, ParticipantSource, Personality
from bxmesh.client.conversations.question import (
    ASKED,
    LANGUAGE_MODEL,
    AgentAnswer,
    Question,
    Said,
)

__all__ = [
    "ASKED",
    "LANGUAGE_MODEL",
    "AgentAnswer",
    "AnswerGroup",
    "AsyncConversations",
    "Consensus",
    "ConsensusMethod",
    "Conversation",
    "ConversationEvent",
    "ConversationFailed",
    "ConversationFilter",
    "ConversationOptions",
    "ConversationState",
    "ConversationStats",
    "Exported",
    "ModelStats",
    "Participant",
    "ParticipantLeft",
    "ParticipantSource",
    "Personality",
    "Purged",
    "Question",
    "Said",
    "SearchMode",
    "SearchResult",
    "TextDelta",
    "Turn",
]

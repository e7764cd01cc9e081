"""Conversations: several agents, one answer.

Agents that take part handle tasks of the type `ASKED`, whose parameters are a `Question`, and return
an `AgentAnswer`, a text or a number.
"""

from bxmesh.client.conversations.question import (
    ASKED,
    LANGUAGE_MODEL,
    AgentAnswer,
    Question,
    Said,
)

__all__ = ["ASKED", "LANGUAGE_MODEL", "AgentAnswer", "Question", "Said"]

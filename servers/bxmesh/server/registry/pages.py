"""Pages of agents in the order of their names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bxmesh.registry.v1.agent_pb2 import Agent, ListAgentsRequest
from bxmesh.server.errors import invalid_argument

__all__ = ["cut", "start"]

_DEFAULT_SIZE = 100


def start(request: ListAgentsRequest) -> str:
    """Returns the name after which the page begins.

    Raises MeshError INVALID_ARGUMENT for a token that is none, or of another filter.
    """
    if not request.page_token:
        return ""
    digest, _, name = request.page_token.partition(":")
    if digest != _digest(request) or not name:
        raise invalid_argument(
            "page_token",
            "is not the next_page_token of a page with this filter",
            reason="PAGE_TOKEN_INVALID",
        )
    return name


def cut(agents: Sequence[Agent], after: str, request: ListAgentsRequest) -> tuple[list[Agent], str]:
    """Returns a page of the sorted agents and the token of the next page, empty on the last."""
    rest = [agent for agent in agents if agent.agent_id > after]
    page = rest[: request.page_size or _DEFAULT_SIZE]
    return page, f"{_digest(request)}:{page[-1].agent_id}" if len(page) < len(rest) else ""


def _digest(request: ListAgentsRequest) -> str:
    # Order means nothing in a filter, but in its bytes.
    wanted = request.filter
    parts = (
        sorted(wanted.capabilities),
        wanted.agent_type,
        wanted.version,
        sorted(wanted.metadata.items()),
        sorted(wanted.statuses),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

"""What the RPCs of the security service share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from bxmesh.server.settings import Settings

from .addresses import Addresses
from .audit import AuditLog
from .directory import Directory
from .events import SecurityEvents
from .mesh_key import MeshKey
from .mirror import Mirror
from .policies import Policies
from .token_keys import TokenKeys
from .tokens import Tokens
from .usage import Usage
from .violations import Violations

__all__ = ["SecurityMesh"]


@dataclass(frozen=True, slots=True)
class SecurityMesh:
    """The mechanisms of security in one server."""

    settings: Settings
    redis: Redis
    key: MeshKey
    mirror: Mirror
    directory: Directory
    events: SecurityEvents
    policies: Policies
    addresses: Addresses
    usage: Usage
    audit_log: AuditLog
    violations: Violations
    tokens: Tokens
    token_keys: TokenKeys
    open_circuits: Callable[[], Awaitable[Sequence[str]]]
    """Says which circuit breakers are open now, by target."""

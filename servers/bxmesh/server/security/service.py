"""SecurityService: who may do what, and proof of who did."""

from __future__ import annotations

from bxmesh.server.open_streams import OpenStreams

from .audit_rpcs import AuditRpcs
from .identity_rpcs import IdentityRpcs
from .key_rpcs import KeyRpcs
from .mesh import SecurityMesh
from .policy_rpcs import PolicyRpcs
from .role_rpcs import RoleRpcs
from .token_rpcs import TokenRpcs
from .violation_rpcs import ViolationRpcs

__all__ = ["SecurityService"]


class SecurityService(
    IdentityRpcs, RoleRpcs, KeyRpcs, TokenRpcs, PolicyRpcs, ViolationRpcs, AuditRpcs
):
    """All RPCs of the security service. Who may call which is decided before."""

    def __init__(self, mesh: SecurityMesh) -> None:
        self._mesh = mesh
        self._streams = OpenStreams()

    def drain(self) -> None:
        """Ends open streams with UNAVAILABLE (SERVER_STOPPING) and takes no more."""
        self._streams.end()

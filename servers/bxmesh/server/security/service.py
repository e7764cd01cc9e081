"""SecurityService: who may do what, and proof of who did."""

from __future__ import annotations

from .identity_rpcs import IdentityRpcs
from .key_rpcs import KeyRpcs
from .mesh import SecurityMesh
from .role_rpcs import RoleRpcs

__all__ = ["SecurityService"]


class SecurityService(IdentityRpcs, RoleRpcs, KeyRpcs):
    """All RPCs of the security service. Who may call which is decided before."""

    def __init__(self, mesh: SecurityMesh) -> None:
        self._mesh = mesh

"""Who calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from bxmesh.security.v1.policy_pb2 import RateLimit

from ..errors import MeshError, permission_denied

__all__ = ["EVERYTHING", "Identity", "OnUse", "missing_permission"]

EVERYTHING = "*"


OnUse = Callable[[str, tuple[str, ...]], None]
"""Is told whose permissions were used."""


def _not_counted(identity_id: str, permissions: tuple[str, ...]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller whose credential was found valid, with what that credential allows."""

    id: str
    """The name, unique in the mesh."""
    kind: str
    """What it is: admin, user, agent or service."""
    permissions: frozenset[str] = frozenset()
    """What it may do by this credential; EVERYTHING stands for all there is."""
    team: str = ""
    """With whom it may share; empty means with no team."""
    roles: frozenset[str] = frozenset()
    """Its roles, for policies; what they allow is in the permissions already."""
    credential: str = ""
    """The name of the credential: an API key's key_id, a token's jti or a certificate's SAN."""
    issued_by: str = ""
    """By which credentials a token was issued, with spaces between them: it ends with any of them."""
    expires: float = float("inf")
    """When the credential ends, in seconds since 1970."""
    born: str = ""
    """Tells it from one of the same name that was there before, or comes after."""
    rate_limit: RateLimit | None = field(default=None, compare=False)
    """The credential's own rate limit instead of the policy's."""
    on_use: OnUse = field(default=_not_counted, repr=False, compare=False)
    """Is told of permissions that a handler asks for."""
    token: Any = field(default=None, repr=False, compare=False)
    """What its token says, for who verified it; None by any other credential."""

    @property
    def credentials(self) -> str:
        """Its credential, and those that this ends with."""
        return f"{self.credential} {self.issued_by}".strip()

    def may(self, permission: str) -> bool:
        """Returns whether it has a permission."""
        return permission in self.permissions or EVERYTHING in self.permissions

    def require(self, *permissions: str) -> None:
        """Raises MeshError PERMISSION_DENIED (PERMISSION_MISSING) unless it has all of them."""
        missing = [name for name in dict.fromkeys(permissions) if not self.may(name)]
        if missing:
            raise missing_permission(self.id, missing)
        self.on_use(self.id, permissions)

    def may_all(self, permissions: Iterable[str]) -> bool:
        """Returns whether it has all of them."""
        return all(self.may(permission) for permission in permissions)


def missing_permission(identity_id: str, missing: Iterable[str], what: str = "") -> MeshError:
    """Returns the error for a caller without permissions for something."""
    names = list(missing)
    return permission_denied(
        f"{identity_id} lacks {', '.join(names)}{f' for {what}' if what else ''}. Whoever has "
        f"security_admin can give it: bxmesh security grant {identity_id} {' '.join(names)}",
        reason="PERMISSION_MISSING",
        identity=identity_id,
        permissions=",".join(names),
    )

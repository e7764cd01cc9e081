"""Nobody can give what they have not."""

from __future__ import annotations

from collections.abc import Iterable

from bxmesh.server.errors import invalid_argument, permission_denied

from .directory import Directory
from .identities import Identity
from .permissions import PERMISSIONS

__all__ = ["check_permissions", "check_roles", "require_covers", "require_lasting"]


def check_permissions(names: Iterable[str], field: str) -> None:
    """Raises MeshError INVALID_ARGUMENT for a permission that nothing asks for."""
    for index, name in enumerate(names):
        if name not in PERMISSIONS:
            raise invalid_argument(
                f"{field}[{index}]",
                f"nothing asks for {name}; `bxmesh security roles permissions` lists all there are",
                reason="PERMISSION_UNKNOWN",
            )


def check_roles(directory: Directory, names: Iterable[str], field: str) -> None:
    """Raises MeshError INVALID_ARGUMENT for a role that does not exist."""
    for index, name in enumerate(names):
        if directory.role(name) is None:
            raise invalid_argument(
                f"{field}[{index}]",
                f"there is no role {name}; `bxmesh security roles list` lists all there are",
                reason="ROLE_UNKNOWN",
            )


def require_covers(giver: Identity, permissions: Iterable[str], receiver: str) -> None:
    """Raises MeshError PERMISSION_DENIED unless the giver has what is given."""
    beyond = sorted(name for name in permissions if not giver.may(name))
    if beyond:
        raise permission_denied(
            f"{giver.id} cannot give {receiver} what it has not by this credential: "
            f"{', '.join(beyond)}.",
            reason="CANNOT_GRANT",
            permissions=",".join(beyond),
        )


def require_lasting(giver: Identity) -> None:
    """Raises MeshError PERMISSION_DENIED for a token: no credential comes of what ends soon."""
    if giver.credential.startswith("token/"):
        raise permission_denied(
            "A token makes no credentials. Call with an API key or a certificate.",
            reason="TOKEN_MAKES_NONE",
        )

"""Who may call what, by the table of permissions."""

from __future__ import annotations

from bxmesh.server.errors import MeshError, permission_denied

from .identities import EVERYTHING, Identity, missing_permission
from .permissions import METHODS

__all__ = ["authorize", "denial"]


def authorize(identity: Identity, method: str) -> tuple[str, ...]:
    """Returns the permissions that a full method asks for.

    Raises MeshError PERMISSION_DENIED for an identity that lacks one of them.
    """
    rule = METHODS.get(method)
    if rule is None:
        # It may be a method of another version; to say so is of use to an admin alone.
        if EVERYTHING in identity.permissions:
            return ()
        raise permission_denied(
            f"{identity.id} may not call {method}.", reason="METHOD_NOT_ALLOWED", method=method
        )
    if not identity.may_all(rule.permissions):
        raise denial(identity, rule.permissions, method)
    return rule.permissions


def denial(identity: Identity, permissions: tuple[str, ...], what: str) -> MeshError:
    """Returns the error for an identity that lacks some of the permissions for something."""
    return missing_permission(
        identity.id, [name for name in permissions if not identity.may(name)], what
    )

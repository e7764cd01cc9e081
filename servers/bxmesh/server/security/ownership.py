"""Things belong to identities; others see them only when they are shared."""

from __future__ import annotations

from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL, VISIBILITY_TEAM, Visibility

from .identities import Identity

__all__ = ["may_change", "sees", "shared_team"]

_ANY_OWNER = "mesh_operate"


def may_change(identity: Identity, *owners: str) -> bool:
    """Whether an identity is one of the owners, or sees and mends what belongs to others."""
    return identity.id in owners or identity.may(_ANY_OWNER)


def sees(identity: Identity, *owners: str, visibility: Visibility.ValueType, team: str) -> bool:
    """Whether an identity sees a thing of owners that is shared with all, with a team or nobody."""
    return (
        may_change(identity, *owners)
        or visibility == VISIBILITY_ALL
        or (visibility == VISIBILITY_TEAM and team != "" and team == identity.team)
    )


def shared_team(owner: Identity, visibility: Visibility.ValueType) -> str:
    """Returns the team that sees a new thing of an owner; empty when none does."""
    return owner.team if visibility == VISIBILITY_TEAM else ""

"""Whose bundles are whose: who holds them, and who sees them."""

from __future__ import annotations

from bxmesh.geometry.v1.bundle_pb2 import Bundle, BundleHolder
from bxmesh.geometry.v1.gradients_pb2 import TARGET_GEOMETRY, GradientOptions
from bxmesh.security.v1.visibility_pb2 import Visibility
from bxmesh.server.bundles import BundleStore
from bxmesh.server.errors import not_found, permission_denied
from bxmesh.server.interceptors import current_identity
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.ownership import may_change, sees, shared_team

__all__ = [
    "held_by_caller",
    "holder",
    "require_held",
    "require_target",
    "seen_by",
    "seen_by_caller",
    "shown",
]


def holder(
    identity: Identity, visibility: Visibility.ValueType = Visibility.VISIBILITY_UNSPECIFIED
) -> BundleHolder:
    """Returns an identity as the holder of a bundle."""
    return BundleHolder(
        identity_id=identity.id, visibility=visibility, team=shared_team(identity, visibility)
    )


def seen_by(identity: Identity, bundle: Bundle) -> bool:
    """Whether an identity sees a bundle."""
    return may_change(identity) or any(_by(identity, one) for one in bundle.holders)


def seen_by_caller(store: BundleStore, bundle_id: str) -> Bundle:
    """Returns a bundle that the caller sees; raises MeshError NOT_FOUND for any other."""
    bundle = store.get(bundle_id)
    if not seen_by(current_identity(), bundle):
        # Just as if there were none.
        raise not_found(
            f"there is no bundle {bundle_id}; upload it first", reason="BUNDLE_NOT_FOUND"
        )
    return bundle


def require_held(store: BundleStore, bundle_id: str) -> str | None:
    """Returns as whose the caller may delete a bundle, None as everybody's.

    Raises MeshError NOT_FOUND, or PERMISSION_DENIED for one that the caller only sees.
    """
    identity = current_identity()
    bundle = seen_by_caller(store, bundle_id)
    if held_by_caller(bundle):
        return identity.id
    if may_change(identity):
        return None
    raise permission_denied(
        f"{bundle_id} belongs to others, who share it with you.",
        reason="NOT_YOURS",
        bundle_id=bundle_id,
    )


def held_by_caller(bundle: Bundle) -> bool:
    """Whether the caller holds a bundle."""
    return any(one.identity_id == current_identity().id for one in bundle.holders)


def require_target(options: GradientOptions) -> None:
    """Raises MeshError PERMISSION_DENIED when the caller may not compute the target."""
    if options.target != TARGET_GEOMETRY:
        current_identity().require("target_calculation")


def shown(bundle: Bundle) -> Bundle:
    """Returns a bundle as the caller sees it: without holders that do not share it."""
    identity = current_identity()
    if may_change(identity):
        return bundle
    visible = Bundle()
    visible.CopyFrom(bundle)
    del visible.holders[:]
    visible.holders.extend(one for one in bundle.holders if _by(identity, one))
    names = [one.identity_id for one in visible.holders]
    if visible.owner not in names:
        visible.owner = names[0] if names else ""
    return visible


def _by(identity: Identity, one: BundleHolder) -> bool:
    return sees(identity, one.identity_id, visibility=one.visibility, team=one.team)

"""Calls that are made for somebody else: both must be allowed to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from bxmesh.server.errors import invalid_argument

from .directory import Directory
from .identities import EVERYTHING, Identity, missing_permission

__all__ = ["Delegation", "Principals", "by_directory", "nobody_else"]


class Principals(NamedTuple):
    """Who makes a call, and for whom."""

    caller: Identity
    """With what both may do."""
    others: tuple[Identity, ...]
    """For whom else; empty for the caller alone."""


Delegation = Callable[[Identity, str, tuple[str, ...]], Principals]
"""Takes the caller, for whom it calls (empty for itself), and what for that is needed. Raises MeshError
INVALID_ARGUMENT (IDENTITY_UNKNOWN), and PERMISSION_DENIED when the other may not."""


def by_directory(directory: Directory) -> Delegation:
    """Returns what looks identities up."""

    def delegate(caller: Identity, name: str, needed: tuple[str, ...]) -> Principals:
        if not name or name == caller.id:
            return Principals(caller, ())
        other = directory.resolve(name, None, "", float("inf"))
        if other is None:
            raise invalid_argument(
                "on_behalf_of", f"there is no identity {name}", reason="IDENTITY_UNKNOWN"
            )
        missing = [permission for permission in needed if not other.may(permission)]
        if missing:
            raise missing_permission(other.id, missing, f"what {caller.id} does for it")
        return Principals(replace(caller, permissions=_both(caller, other)), (other,))

    return delegate


def nobody_else(caller: Identity, name: str, needed: tuple[str, ...]) -> Principals:
    """Refuses to call for others, where nobody knows them."""
    if name and name != caller.id:
        raise invalid_argument(
            "on_behalf_of", f"there is no identity {name}", reason="IDENTITY_UNKNOWN"
        )
    return Principals(caller, ())


def _both(one: Identity, other: Identity) -> frozenset[str]:
    if EVERYTHING in one.permissions:
        return other.permissions
    if EVERYTHING in other.permissions:
        return one.permissions
    return one.permissions & other.permissions

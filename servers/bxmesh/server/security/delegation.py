"""Calls that are made for somebody else: both must be allowed to."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import NamedTuple

from bxmesh.server.errors import MeshError, permission_denied

from .directory import Directory
from .identities import EVERYTHING, Identity

__all__ = ["Delegation", "Principals", "by_directory", "nobody_else"]


class Principals(NamedTuple):
    """Who makes a call, and for whom."""

    caller: Identity
    """With what both may do."""
    others: tuple[Identity, ...]
    """For whom else; empty for the caller alone."""


Delegation = Callable[[Identity, str, tuple[str, ...]], Principals]
"""Takes the caller, for whom it calls (empty for itself), and what for that is needed. Raises MeshError
PERMISSION_DENIED (PERMISSION_MISSING) when the other may not, or is not there: who there is concerns
not everybody."""


def by_directory(directory: Directory) -> Delegation:
    """Returns what looks identities up."""

    def delegate(caller: Identity, name: str, needed: tuple[str, ...]) -> Principals:
        if not name or name == caller.id:
            return Principals(caller, ())
        other = directory.resolve(name, None, "", float("inf"))
        if other is None or not other.may_all(needed):
            raise _may_not(caller, name, needed)
        return Principals(replace(caller, permissions=_both(caller, other)), (other,))

    return delegate


def nobody_else(caller: Identity, name: str, needed: tuple[str, ...]) -> Principals:
    """Refuses to call for others, where nobody knows them."""
    if name and name != caller.id:
        raise _may_not(caller, name, needed)
    return Principals(caller, ())


def _may_not(caller: Identity, name: str, needed: Collection[str]) -> MeshError:
    return permission_denied(
        f"{name} lacks {' or '.join(needed)} for what {caller.id} does for it, or is no identity of "
        "this mesh.",
        reason="PERMISSION_MISSING",
        identity=name,
        permissions=",".join(needed),
    )


def _both(one: Identity, other: Identity) -> frozenset[str]:
    if EVERYTHING in one.permissions:
        return other.permissions
    if EVERYTHING in other.permissions:
        return one.permissions
    return one.permissions & other.permissions

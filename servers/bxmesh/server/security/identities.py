"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EVERYTHING", "Identity"]

EVERYTHING = "*"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller whose credential was found valid."""

    id: str
    """The name, unique in the mesh."""
    kind: str
    """What it is: admin, user, agent or service."""
    permissions: frozenset[str] = frozenset()
    """What it may do; EVERYTHING stands for all there is."""

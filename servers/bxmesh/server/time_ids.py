"""Names that sort by the time at which they were given."""

from __future__ import annotations

import secrets
import time

__all__ = ["age_of", "id_at", "time_id"]


def time_id() -> str:
    """Returns a name that sorts after earlier ones, and cannot be guessed."""
    return id_at(time.time()) + secrets.token_hex(8)


def age_of(name: str) -> float:
    """Returns how many seconds ago a name was given."""
    return time.time() - int(name[:16], 16) / 1e9


def id_at(seconds: float) -> str:
    """Returns what sorts before all names that are given from a time on, in seconds since 1970."""
    return f"{int(seconds * 1e9):016x}"

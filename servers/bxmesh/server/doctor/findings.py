"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Level", "fail", "ok", "warn"]


class Level(StrEnum):
    """How good it is."""

    OK = "OK"
    WARN = "WARN"
    """It works, but not as well or as long as it should."""
    FAIL = "FAIL"
    """The mesh, or a part of it, does not work like this."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """What was looked at."""
    level: Level
    message: str
    """What was found, in one line."""
    remedy: str = ""
    """What to do about it, in one line; empty when all is well."""


def ok(check: str, message: str) -> Finding:
    """Returns that all is well."""
    return Finding(check, Level.OK, message)


def warn(check: str, message: str, remedy: str) -> Finding:
    """Returns something that should be better."""
    return Finding(check, Level.WARN, message, remedy)


def fail(check: str, message: str, remedy: str) -> Finding:
    """Returns something that keeps the mesh from working."""
    return Finding(check, Level.FAIL, message, remedy)

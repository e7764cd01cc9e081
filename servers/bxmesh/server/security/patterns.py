"""Patterns in policies, where "*" stands for any characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import re2

__all__ = ["Matcher", "matcher"]


class Matcher(Protocol):
    """A compiled pattern."""

    def fullmatch(self, text: str) -> Any:
        """Returns something true when the whole text fits."""


def matcher(patterns: Iterable[str]) -> Matcher | None:
    """Returns what fully matches any of the patterns, None when there are none.

    In time linear in the text, whatever the pattern.
    """
    parts = [".*".join(map(re2.escape, pattern.split("*"))) for pattern in patterns]
    if not parts:
        return None
    compiled: Matcher = re2.compile("(?s)" + "|".join(f"(?:{part})" for part in parts))
    return compiled

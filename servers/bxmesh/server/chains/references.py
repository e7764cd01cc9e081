"""References to stored functions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bxmesh.server.errors import invalid_argument

__all__ = ["FunctionReference"]

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}|sha256:[0-9a-f]{64}")
_LONGEST_NAME = 128


@dataclass(frozen=True)
class FunctionReference:
    """A function's name, and its version, digest or alias; empty means the latest."""

    name: str
    version: str = ""

    @classmethod
    def parse(cls, text: str, field: str) -> FunctionReference:
        """Reads "name", "name@version", "name@digest" or "name@alias"; raises MeshError
        INVALID_ARGUMENT (FUNCTION_REFERENCE_INVALID)."""
        name, sign, version = text.partition("@")
        if (
            len(name) > _LONGEST_NAME
            or not _NAME.fullmatch(name)
            or (sign and not _VERSION.fullmatch(version))
        ):
            raise invalid_argument(
                field,
                'must be "name", "name@version" or "name@alias", and the name like a capability',
                reason="FUNCTION_REFERENCE_INVALID",
            )
        return cls(name, version)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name

"""What names a version of a function: numbers, the digest of its content, an alias."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.server.errors import invalid_argument

__all__ = [
    "LATEST",
    "digest_of",
    "is_version",
    "next_version",
    "require_sortable",
    "sort_key",
]

LATEST = "latest"
"""The alias of the version that was stored last."""

_MOST_DIGITS = 12
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+", re.ASCII)


def digest_of(function: pb.Function) -> str:
    """Returns the digest of all that decides what a function does: not of its description, labels,
    example and visibility."""
    content = pb.Function()
    content.CopyFrom(function)
    content.ClearField("description")
    content.ClearField("example_input")
    content.ClearField("visibility")
    content.ClearField("labels")
    content.ClearField("version")
    content.ClearField("digest")
    content.ClearField("aliases")
    content.ClearField("owner")
    content.ClearField("create_time")
    for names in (content.allowed_imports, content.host_functions):
        names.sort()
    data = content.SerializeToString(deterministic=True)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_version(text: str) -> bool:
    """Whether a text is three numbers with dots."""
    return _VERSION.fullmatch(text) is not None


def sort_key(version: str) -> str:
    """Returns a text that sorts as the version does; raises ValueError for numbers over 12 digits,
    and for those with leading zeros, which would be another way to write the same version."""
    numbers = version.split(".")
    if max(map(len, numbers)) > _MOST_DIGITS:
        raise ValueError(f"has a number of more than {_MOST_DIGITS} digits")
    if any(number != "0" and number.startswith("0") for number in numbers):
        raise ValueError("has a number with leading zeros")
    return ".".join(f"{int(number):012}" for number in numbers)


def require_sortable(version: str, field: str) -> None:
    """Raises MeshError INVALID_ARGUMENT for a version that `sort_key` does not take."""
    try:
        sort_key(version)
    except ValueError as error:
        raise invalid_argument(field, str(error), reason="VERSION_INVALID") from None


def next_version(versions: Iterable[str]) -> str:
    """Returns the version that follows the highest: its last number counts up.

    Raises MeshError INVALID_ARGUMENT when it counts no further.
    """
    highest = max(versions, key=sort_key, default="")
    if not highest:
        return "1.0.0"
    major, minor, patch = highest.split(".")
    if int(patch) >= 10**_MOST_DIGITS - 1:
        raise invalid_argument(
            "function.version",
            f"must be given: nothing counts on from {highest}",
            reason="VERSION_INVALID",
        )
    return f"{major}.{minor}.{int(patch) + 1}"

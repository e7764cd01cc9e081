"""What executes functions, as those who want one executed see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from bxmesh.server.errors import MeshError
from bxmesh.server.functions.limits import Limits
from bxmesh.server.functions.places import Place

__all__ = [
    "Call",
    "Engine",
    "HostFunction",
    "Outcome",
    "failed",
    "over_limit",
]

HostFunction = Callable[..., Awaitable[Any]]
"""Something of the host that a function may await; it takes and returns plain Python values, and
raises MeshError."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function."""

    code: str
    entry_point: str
    is_async: bool
    arguments: Mapping[str, Any]
    """By keyword; plain JSON values."""
    limits: Limits
    place: Place
    """Left while the function waits."""
    host: Mapping[str, HostFunction] = field(default_factory=dict)
    """By name, such as `mesh.request`."""
    printed: Callable[[str], None] = lambda text: None
    """Is told what the function prints, while it runs."""
    checked: bool = False
    """Whether the types in the code are checked first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended."""

    value: Any = None
    """What was returned; any Python object that the sandbox knows."""
    error: MeshError | None = None
    """Why nothing was returned."""
    limited: bool = False
    """Whether the error is a limit."""
    cpu_seconds: float = 0.0
    peak_memory: int = 0
    """Bytes; 0 when it is not known."""


class Engine(Protocol):
    """Executes one call in a place of its own, of which nothing is left afterwards."""

    async def run(self, call: Call) -> Outcome:
        """Runs a call to its end. Cancelling stops it. Raises MeshError UNAVAILABLE when the place
        itself is lost, so that the call may be tried again."""


def failed(reason: str, message: str, **metadata: str) -> MeshError:
    """Returns the error of a function that failed by itself."""
    return MeshError(grpc.StatusCode.ABORTED, reason, message, metadata=metadata)


def over_limit(reason: str, message: str, **metadata: str) -> MeshError:
    """Returns the error of a function that wanted more than it may."""
    code = (
        grpc.StatusCode.DEADLINE_EXCEEDED
        if reason == "TIME_LIMIT"
        else grpc.StatusCode.RESOURCE_EXHAUSTED
    )
    return MeshError(code, reason, message, metadata=metadata)

"""What one execution of a function may use."""

from __future__ import annotations

from dataclasses import dataclass

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.server.errors import invalid_argument

__all__ = ["DEFAULT", "MOST", "Limits", "require_allowed", "tightest"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one execution."""

    timeout: float
    """Seconds from begin to end, host calls included."""
    memory: int
    """Bytes that its values may take."""
    recursion: int
    """Calls within calls."""
    output: int
    """Bytes that it prints and returns together."""


DEFAULT = Limits(timeout=30.0, memory=64 << 20, recursion=200, output=1 << 20)
"""What a function gets that asks for nothing."""
# Answers must fit into a message of 4 MiB, deeper recursion than this costs the sandbox its stack,
# and sandboxes share the memory of one server.
MOST = Limits(timeout=3600.0, memory=1 << 30, recursion=1_000, output=3 << 20)
"""What a function can get."""


def require_allowed(limits: pb.FunctionLimits, field: str) -> None:
    """Raises MeshError INVALID_ARGUMENT (LIMIT_TOO_LARGE) for more than there is."""
    for name, asked, most in (
        ("timeout", limits.timeout.ToNanoseconds() / 1e9, MOST.timeout),
        ("max_memory_bytes", limits.max_memory_bytes, MOST.memory),
        ("max_recursion_depth", limits.max_recursion_depth, MOST.recursion),
        ("max_output_bytes", limits.max_output_bytes, MOST.output),
    ):
        if asked > most:
            raise invalid_argument(
                f"{field}.{name}", f"{asked} is more than {most}", reason="LIMIT_TOO_LARGE"
            )


def tightest(function: pb.FunctionLimits, call: pb.FunctionLimits) -> Limits:
    """Returns the limits of a call of a function: those of the function, or tighter ones."""
    return Limits(
        timeout=min(_seconds(function) or DEFAULT.timeout, _seconds(call) or MOST.timeout),
        memory=min(
            function.max_memory_bytes or DEFAULT.memory, call.max_memory_bytes or MOST.memory
        ),
        recursion=min(
            function.max_recursion_depth or DEFAULT.recursion,
            call.max_recursion_depth or MOST.recursion,
        ),
        output=min(
            function.max_output_bytes or DEFAULT.output, call.max_output_bytes or MOST.output
        ),
    )


def _seconds(limits: pb.FunctionLimits) -> float:
    return float(limits.timeout.ToNanoseconds()) / 1e9

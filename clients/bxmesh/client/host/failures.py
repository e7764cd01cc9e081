"""How work of a definition fails: with reasons that callers can act on."""

from __future__ import annotations

import grpc

from bxmesh.client.agents.retry import RetryPolicy
from bxmesh.client.agents.task_failures import TaskFailed
from bxmesh.client.chains import ChainFailed
from bxmesh.client.errors import (
    FailedPrecondition,
    InternalError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from bxmesh.client.functions import FunctionFailed

__all__ = ["RETRIES", "exhausted", "output_invalid", "refused", "unavailable"]

_LIMITS = ("TOOL_LIMIT", "TOKEN_LIMIT", "OUTPUT_INVALID")

RETRIES = RetryPolicy(
    non_retryable=(
        *_LIMITS,
        FailedPrecondition,
        InvalidInput,
        NotFound,
        PermissionDenied,
        Unimplemented,
        ChainFailed,
        FunctionFailed,
        TaskFailed,
    )
)
"""What of messages is tried again: only what a repetition may cure and what costs no tokens twice."""


def refused(reason: str, message: str) -> FailedPrecondition:
    """Returns the error for what stays so until somebody changes something."""
    return FailedPrecondition(message, code=grpc.StatusCode.FAILED_PRECONDITION, reason=reason)


def exhausted(reason: str, message: str) -> ResourceExhausted:
    """Returns the error for work that has used up what its definition grants it."""
    return ResourceExhausted(message, code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason=reason)


def unavailable(message: str, retry_after: float | None = None) -> Unavailable:
    """Returns the error for a model that cannot be reached for now."""
    return Unavailable(
        message,
        code=grpc.StatusCode.UNAVAILABLE,
        reason="MODEL_UNAVAILABLE",
        retry_after=retry_after,
    )


def output_invalid(message: str) -> InternalError:
    """Returns the error for an answer that is not what the definition promises."""
    return InternalError(message, code=grpc.StatusCode.INTERNAL, reason="OUTPUT_INVALID")

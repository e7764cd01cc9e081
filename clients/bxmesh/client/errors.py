"""What a call to the mesh can raise."""

# ruff: noqa: N818 - the classes are named like the gRPC status codes that they stand for

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

__all__ = [
    "BxmeshError",
    "Cancelled",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InternalError",
    "InvalidInput",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "from_rpc_error",
    "from_status",
]

_TRACE_ID_KEY = "bxmesh-trace-id"


class BxmeshError(Exception):
    """An error that the mesh answered, or that kept a call from reaching it."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "UNKNOWN",
        metadata: Mapping[str, str] | None = None,
        field_violations: Sequence[tuple[str, str]] = (),
        retry_after: float | None = None,
        trace_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        """What was wrong and what to do about it."""
        self.code = code
        """The gRPC status code."""
        self.reason = reason
        """The kind of error, in UPPER_SNAKE; the code's name when the server gave none."""
        self.metadata = dict(metadata or {})
        """What the error is about, by name."""
        self.field_violations = tuple(field_violations)
        """(path of a request field, what is wrong with it)."""
        self.retry_after = retry_after
        """Seconds after which a retry may succeed; None when the server gave no time."""
        self.trace_id = trace_id
        """The trace of the failed call, 32 hexadecimal digits; empty when unknown."""

    def __str__(self) -> str:
        notes = [self.reason]
        if self.trace_id:
            notes.append(f"trace {self.trace_id}")
        return f"{self.message} ({', '.join(notes)})"


class InvalidInput(BxmeshError):
    """The request is wrong whatever the state of the server; see `field_violations`."""


class NotFound(BxmeshError):
    """Something that the request names does not exist, or no longer."""


class Unauthenticated(BxmeshError):
    """The call carries no valid credential."""


class PermissionDenied(BxmeshError):
    """The caller is known and may not do this."""


class FailedPrecondition(BxmeshError):
    """The present state does not allow the call; repeating it unchanged does not help."""


class ResourceExhausted(BxmeshError):
    """A queue is full or a quota is spent; see `retry_after`."""


class DeadlineExceeded(BxmeshError):
    """The work was not done in the time given."""


class Cancelled(BxmeshError):
    """The call was cancelled."""


class Unavailable(BxmeshError):
    """The mesh cannot be reached for now; the call may be repeated."""


class InternalError(BxmeshError):
    """The server failed; its log has the cause under the trace id."""


class Unimplemented(BxmeshError):
    """The server does not offer this method."""


_LONGEST_RETRY_SECONDS = 30 * 86400.0
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_CLASSES: dict[grpc.StatusCode, type[BxmeshError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.OUT_OF_RANGE: InvalidInput,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ALREADY_EXISTS: FailedPrecondition,
    grpc.StatusCode.ABORTED: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}


def from_status(status: status_pb2.Status, *, trace_id: str = "") -> BxmeshError:
    """Returns the error that a status describes, such as that of one sample of a batch."""
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        # Other agents write them too; what cannot be read says nothing.
        with suppress(DecodeError):
            detail.Unpack(info)
            detail.Unpack(bad_request)
            has_retry = detail.Unpack(retry) or has_retry
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    metadata = dict(info.metadata)
    return _CLASSES.get(code, BxmeshError)(
        status.message or code.name,
        code=code,
        reason=info.reason or code.name,
        trace_id=metadata.pop("trace_id", "") or trace_id,
        metadata=metadata,
        field_violations=[(v.field, v.description) for v in bad_request.field_violations],
        retry_after=_retry_seconds(retry) if has_retry else None,
    )


def _retry_seconds(retry: error_details_pb2.RetryInfo) -> float:
    delay = retry.retry_delay
    seconds: float = delay.seconds + delay.nanos / 1e9
    return max(0.0, min(_LONGEST_RETRY_SECONDS, seconds))


def from_rpc_error(error: grpc.RpcError) -> BxmeshError:
    """Returns the error of a failed call, from its rich status when it has one."""
    call: Any = error
    try:
        status = rpc_status.from_call(call)
    except (DecodeError, ValueError):
        status = None
    if status is None:
        status = status_pb2.Status(code=call.code().value[0], message=call.details() or "")
    trailers = dict(call.trailing_metadata() or ())
    return from_status(status, trace_id=str(trailers.get(_TRACE_ID_KEY, "")))

"""What handlers raise, and how their failures are told to others."""

# ruff: noqa: N818 - the classes are named like verdicts and like the mesh's other errors

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from bxmesh.client.agents.retry import reason_of
from bxmesh.client.errors import BxmeshError

__all__ = ["Drop", "HandlerCancelled", "HandlerTimeout", "Retry", "Unhandled", "to_status"]

# A status travels in trailers, of which gRPC takes 8 KiB.
_MOST_CHARACTERS = 800
_MOST_TEXT = 200
_MOST_NAME = 100
_MOST_DETAILS = 10


class Retry(Exception):
    """Raised by a handler: not now; the message comes again."""

    def __init__(self, message: str = "the handler asked to try again", after: float | None = None):
        super().__init__(message)
        self.after = after
        """Not before so many seconds; None for the policy's delay."""


class Drop(Exception):
    """Raised by a handler: it cannot be done, a repetition is pointless; a dead letter at once."""

    def __init__(self, message: str, reason: str = "DROPPED") -> None:
        super().__init__(message)
        self.reason = reason
        """The kind of error, in UPPER_SNAKE."""


class Unhandled(BxmeshError):
    """An agent got a message or task of a type that it has no handler for."""

    def __init__(self, what: str, agent_id: str) -> None:
        super().__init__(
            f"{agent_id} has no handler for {what}",
            code=grpc.StatusCode.UNIMPLEMENTED,
            reason="UNHANDLED",
            metadata={"agent_id": agent_id},
        )


class HandlerTimeout(BxmeshError):
    """A handler took longer than its timeout, or than the work is of use."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(
            f"the handler of {what} took longer than {seconds:.3g} s",
            code=grpc.StatusCode.DEADLINE_EXCEEDED,
            reason="HANDLER_TIMEOUT",
        )


class HandlerCancelled(BxmeshError):
    """Something that a handler waited for was cancelled."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"something that the handler of {what} waited for was cancelled",
            code=grpc.StatusCode.ABORTED,
            reason="HANDLER_CANCELLED",
        )


def to_status(error: BaseException) -> status_pb2.Status:
    """Returns an error as a status with one ErrorInfo, and what was wrong with which field.

    An exception that is none of the mesh's is INTERNAL, its class the reason; no stack trace.
    """
    code, reason = grpc.StatusCode.INTERNAL, reason_of(error)
    message, metadata = str(error) or type(error).__name__, {}
    match error:
        case BxmeshError():
            code, message, metadata = error.code, error.message, error.metadata
        case Drop():
            code, reason = grpc.StatusCode.FAILED_PRECONDITION, error.reason
        case Retry():
            code, reason = grpc.StatusCode.UNAVAILABLE, "RETRY_REQUESTED"
    status = status_pb2.Status(code=code.value[0], message=message[:_MOST_CHARACTERS])
    info = error_details_pb2.ErrorInfo(reason=reason[:_MOST_NAME], domain="bxmesh")
    for key, value in list(metadata.items())[:_MOST_DETAILS]:
        info.metadata[key[:_MOST_NAME]] = value[:_MOST_TEXT]
    details: list[Message] = [info]
    if isinstance(error, BxmeshError) and error.field_violations:
        request = error_details_pb2.BadRequest()
        for field, description in error.field_violations[:_MOST_DETAILS]:
            request.field_violations.add(
                field=field[:_MOST_NAME], description=description[:_MOST_TEXT]
            )
        details.append(request)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status

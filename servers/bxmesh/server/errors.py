"""The one error that servers raise, and its form on the wire."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

__all__ = [
    "DOMAIN",
    "MeshError",
    "deadline_exceeded",
    "failed_precondition",
    "internal",
    "invalid_argument",
    "not_found",
    "permission_denied",
    "resource_exhausted",
    "unauthenticated",
    "unavailable",
    "unimplemented",
]

DOMAIN = "bxmesh"

# A status travels in HTTP/2 trailers, of which gRPC takes 8 KiB; message and details share them.
_MESSAGE_BYTES = 800
_TEXT_BYTES = 200
_NAME_BYTES = 100
_MOST_VIOLATIONS = 10
_MOST_METADATA = 10
_LONGEST_RETRY_SECONDS = 30 * 86400.0

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class MeshError(Exception):
    """An error for the caller: what was wrong with whose input, and what to do about it."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        field_violations: Sequence[tuple[str, str]] = (),
        precondition_violations: Sequence[tuple[str, str, str]] = (),
        quota_violations: Sequence[tuple[str, str]] = (),
        retry_after: float | None = None,
    ) -> None:
        """Takes violations as (field, description), (type, subject, description) and
        (subject, description), and the time after which to retry in seconds."""
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.field_violations = tuple(field_violations)
        self.precondition_violations = tuple(precondition_violations)
        self.quota_violations = tuple(quota_violations)
        self.retry_after = retry_after

    def __repr__(self) -> str:
        return f"MeshError({self.code.name}, {self.reason}, {self.message!r})"

    def to_status(self, trace_id: str = "") -> status_pb2.Status:
        """Returns the status with exactly one ErrorInfo; long texts and lists are cut to fit."""
        metadata = {
            _clip(key, _NAME_BYTES): _clip(value, _TEXT_BYTES)
            for key, value in itertools.islice(self.metadata.items(), _MOST_METADATA)
        }
        metadata["trace_id"] = trace_id
        reason = _clip(self.reason, _NAME_BYTES)
        details: list[Message] = [
            error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
        ]
        if self.field_violations:
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=_clip(field, _NAME_BYTES),
                            description=_clip(description, _TEXT_BYTES),
                        )
                        for field, description in self.field_violations[:_MOST_VIOLATIONS]
                    ]
                )
            )
        if self.precondition_violations:
            details.append(
                error_details_pb2.PreconditionFailure(
                    violations=[
                        error_details_pb2.PreconditionFailure.Violation(
                            type=_clip(kind, _NAME_BYTES),
                            subject=_clip(subject, _NAME_BYTES),
                            description=_clip(description, _TEXT_BYTES),
                        )
                        for kind, subject, description in self.precondition_violations[
                            :_MOST_VIOLATIONS
                        ]
                    ]
                )
            )
        if self.quota_violations:
            details.append(
                error_details_pb2.QuotaFailure(
                    violations=[
                        error_details_pb2.QuotaFailure.Violation(
                            subject=_clip(subject, _NAME_BYTES),
                            description=_clip(description, _TEXT_BYTES),
                        )
                        for subject, description in self.quota_violations[:_MOST_VIOLATIONS]
                    ]
                )
            )
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromTimedelta(timedelta(seconds=self.retry_after))
            details.append(retry)
        status = status_pb2.Status(
            code=self.code.value[0], message=_clip(self.message, _MESSAGE_BYTES)
        )
        for detail in details:
            status.details.add().Pack(detail)
        return status

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> MeshError:
        """Returns the error that a status describes; one without ErrorInfo has its code as reason.

        The trace id is left out: the error takes that of the trace in which it is sent on.
        """
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        precondition = error_details_pb2.PreconditionFailure()
        quota = error_details_pb2.QuotaFailure()
        retry = error_details_pb2.RetryInfo()
        has_retry = False
        for detail in status.details:
            # Anybody may have written them; what cannot be read says nothing.
            with suppress(DecodeError):
                for message in (info, bad_request, precondition, quota):
                    detail.Unpack(message)
                has_retry = detail.Unpack(retry) or has_retry
        code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        return cls(
            code,
            info.reason or code.name,
            status.message,
            metadata={key: value for key, value in info.metadata.items() if key != "trace_id"},
            field_violations=[(v.field, v.description) for v in bad_request.field_violations],
            precondition_violations=[
                (v.type, v.subject, v.description) for v in precondition.violations
            ],
            quota_violations=[(v.subject, v.description) for v in quota.violations],
            retry_after=max(0.0, min(_LONGEST_RETRY_SECONDS, _seconds(retry.retry_delay)))
            if has_retry
            else None,
        )


def invalid_argument(
    field: str, description: str, *, reason: str = "INVALID_ARGUMENT", **metadata: str
) -> MeshError:
    """Returns the error for one request field that is wrong; `field` is its path."""
    return MeshError(
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        f"{field}: {description}" if field else description,
        metadata=metadata,
        field_violations=[(field, description)],
    )


def not_found(message: str, *, reason: str = "NOT_FOUND", **metadata: str) -> MeshError:
    """Returns the error for something named that does not exist, or no longer."""
    return MeshError(grpc.StatusCode.NOT_FOUND, reason, message, metadata=metadata)


def failed_precondition(
    message: str, *, reason: str, subject: str = "", **metadata: str
) -> MeshError:
    """Returns the error for a call that the present state of `subject` does not allow."""
    return MeshError(
        grpc.StatusCode.FAILED_PRECONDITION,
        reason,
        message,
        metadata=metadata,
        precondition_violations=[(reason, subject, message)],
    )


def resource_exhausted(
    message: str,
    *,
    retry_after: float | None = None,
    reason: str = "RESOURCE_EXHAUSTED",
    subject: str = "",
    **metadata: str,
) -> MeshError:
    """Returns the error for a full queue or a spent quota of `subject`; seconds until a retry."""
    return MeshError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason,
        message,
        metadata=metadata,
        quota_violations=[(subject, message)],
        retry_after=retry_after,
    )


def unavailable(
    message: str,
    *,
    retry_after: float | None = None,
    reason: str = "UNAVAILABLE",
    **metadata: str,
) -> MeshError:
    """Returns the error for a dependency that is away for now; the call may be repeated."""
    return MeshError(
        grpc.StatusCode.UNAVAILABLE, reason, message, metadata=metadata, retry_after=retry_after
    )


def deadline_exceeded(
    message: str, *, reason: str = "DEADLINE_EXCEEDED", **metadata: str
) -> MeshError:
    """Returns the error for work that was not done in the time the caller gave."""
    return MeshError(grpc.StatusCode.DEADLINE_EXCEEDED, reason, message, metadata=metadata)


def unauthenticated(message: str, *, reason: str = "UNAUTHENTICATED", **metadata: str) -> MeshError:
    """Returns the error for a caller without a valid credential."""
    return MeshError(grpc.StatusCode.UNAUTHENTICATED, reason, message, metadata=metadata)


def permission_denied(
    message: str, *, reason: str = "PERMISSION_DENIED", **metadata: str
) -> MeshError:
    """Returns the error for a known caller who may not do this."""
    return MeshError(grpc.StatusCode.PERMISSION_DENIED, reason, message, metadata=metadata)


def unimplemented(message: str, *, reason: str = "UNIMPLEMENTED", **metadata: str) -> MeshError:
    """Returns the error for a method that this server does not offer."""
    return MeshError(grpc.StatusCode.UNIMPLEMENTED, reason, message, metadata=metadata)


def internal(message: str, *, reason: str = "INTERNAL", **metadata: str) -> MeshError:
    """Returns the error for a fault of the server; the message must tell nothing of its inside."""
    return MeshError(grpc.StatusCode.INTERNAL, reason, message, metadata=metadata)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _clip(text: str, limit: int) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    return data[: limit - 3].decode("utf-8", "ignore") + "…"

"""Errors as application/problem+json (RFC 9457)."""

from __future__ import annotations

import http
import math
from collections.abc import Mapping, Sequence

import grpc
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from bxmesh.client.errors import BxmeshError

__all__ = [
    "PROBLEM",
    "STATUSES",
    "Problem",
    "RefusalError",
    "Violation",
    "invalid_value",
    "invalid_values",
    "problem_of",
    "refusal",
    "response_of",
]

PROBLEM = "application/problem+json"

_CODE = grpc.StatusCode
STATUSES: Mapping[grpc.StatusCode, int] = {
    _CODE.CANCELLED: 499,
    _CODE.UNKNOWN: 500,
    _CODE.INVALID_ARGUMENT: 400,
    _CODE.DEADLINE_EXCEEDED: 504,
    _CODE.NOT_FOUND: 404,
    _CODE.ALREADY_EXISTS: 409,
    _CODE.PERMISSION_DENIED: 403,
    _CODE.RESOURCE_EXHAUSTED: 429,
    _CODE.FAILED_PRECONDITION: 409,
    _CODE.ABORTED: 409,
    _CODE.OUT_OF_RANGE: 400,
    _CODE.UNIMPLEMENTED: 501,
    _CODE.INTERNAL: 500,
    _CODE.UNAVAILABLE: 503,
    _CODE.DATA_LOSS: 500,
    _CODE.UNAUTHENTICATED: 401,
}
"""The HTTP status of each gRPC code."""

_UNREAD = (408, 413, 415)
_DEFAULT_RETRY_SECONDS = 1.0
_MOST_VIOLATIONS = 10
_MOST_CHARACTERS = 200


class Violation(BaseModel):
    """One thing that is wrong with a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    field: str
    """The path of the field; empty for the whole."""
    description: str
    """What is wrong with it."""


class Problem(BaseModel):
    """What was wrong, and what to do about it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """The kind of problem: urn:bxmesh:problem: and the reason."""
    title: str
    """The HTTP status in words."""
    status: int = Field(ge=400, le=599)
    """The HTTP status."""
    detail: str
    """What was wrong with whose input, and what to do."""
    reason: str
    """The kind of error, in UPPER_SNAKE."""
    code: str
    """The gRPC status code."""
    trace_id: str = ""
    """The trace of the request, 32 hexadecimal digits."""
    retry_after: float | None = None
    """Seconds after which a retry may succeed."""
    errors: list[Violation] = Field(default_factory=list)
    """What is wrong with which field."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """What it is about, by name."""


class RefusalError(BxmeshError):
    """An error of the gateway's own, with the HTTP status where that says more than its code."""

    status: int | None = None


def refusal(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    status: int | None = None,
    retry_after: float | None = None,
    violations: Sequence[tuple[str, str]] = (),
) -> RefusalError:
    """Returns an error that the gateway itself raises."""
    error = RefusalError(
        message, code=code, reason=reason, retry_after=retry_after, field_violations=violations
    )
    error.status = status
    return error


def invalid_value(field: str, description: str) -> RefusalError:
    """Returns the error for one field that is wrong; `field` may be empty for the whole."""
    return refusal(
        _CODE.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        f"{field}: {description}" if field else description,
        violations=[(field, description)],
    )


def invalid_values(error: ValidationError, within: str = "") -> RefusalError:
    """Returns the error for values that do not fit their model; what was sent is not repeated."""
    violations = []
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        path = ".".join(str(part) for part in (within, *one["loc"]) if part != "")
        violations.append((path[:_MOST_CHARACTERS], one["msg"][:_MOST_CHARACTERS]))
    field, description = violations[0]
    return refusal(
        _CODE.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        f"{field}: {description}" if field else description,
        violations=violations[:_MOST_VIOLATIONS],
    )


def problem_of(error: BxmeshError, trace_id: str = "") -> Problem:
    """Returns the problem that an error is."""
    status = (error.status if isinstance(error, RefusalError) else None) or STATUSES[error.code]
    return Problem(
        type=f"urn:bxmesh:problem:{error.reason.lower().replace('_', '-')}",
        title=_phrase(status),
        status=status,
        detail=error.message,
        reason=error.reason,
        code=error.code.name,
        trace_id=trace_id or error.trace_id,
        retry_after=error.retry_after,
        errors=[
            Violation(field=field, description=description)
            for field, description in error.field_violations
        ],
        metadata={name: value for name, value in error.metadata.items() if name != "trace_id"},
    )


def response_of(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Returns the response that tells a problem."""
    sent = dict(headers or {})
    if problem.status in (429, 503):
        seconds = problem.retry_after or _DEFAULT_RETRY_SECONDS
        sent["retry-after"] = str(max(1, math.ceil(seconds)))
    if problem.status in _UNREAD:
        # The rest of the body may never end.
        sent["connection"] = "close"
    if problem.status == 401:
        sent["www-authenticate"] = 'Bearer realm="bxmesh"'
    return Response(
        problem.model_dump_json(exclude_none=True), problem.status, sent, media_type=PROBLEM
    )


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        # What nginx answers for nobody, and gRPC's own mapping names.
        return "Client Closed Request"

"""What stands around every RPC of a server."""

from __future__ import annotations

from collections.abc import Sequence

from ..activity import OFF, Activity
from ._wrap import Call, Interceptor, Proceed
from .authentication import (
    AdminsOnly,
    AuthenticationInterceptor,
    Authenticator,
    Authorizer,
    current_identity,
)
from .errors import TRACE_ID_KEY, ErrorsInterceptor
from .tracing import TracingInterceptor
from .validation import ValidationInterceptor

__all__ = [
    "TRACE_ID_KEY",
    "AdminsOnly",
    "Authenticator",
    "Authorizer",
    "Call",
    "Interceptor",
    "Proceed",
    "current_identity",
    "server_interceptors",
]


def server_interceptors(
    authenticators: Sequence[Authenticator],
    authorizer: Authorizer | None = None,
    activity: Activity = OFF,
) -> list[Interceptor]:
    """Returns the interceptors of a server, outermost first.

    Tracing comes first, so that every answer has a span, a refusal too; errors second, so that
    whatever the others raise reaches the caller as a rich status; authentication third, so that
    strangers make the server look at none of their messages; validation last. Without an
    authorizer, those may call who may do everything. Set telemetry up before.
    """
    return [
        TracingInterceptor(),
        ErrorsInterceptor(activity),
        AuthenticationInterceptor(authenticators, authorizer or AdminsOnly()),
        ValidationInterceptor(),
    ]

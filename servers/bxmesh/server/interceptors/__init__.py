"""What stands around every RPC of a server."""

from __future__ import annotations

from collections.abc import Sequence

from ..activity import OFF, Activity
from ._wrap import Call, Interceptor, Proceed
from .authentication import (
    AuthenticationInterceptor,
    Authenticator,
    Authorizer,
    CertificateAuthenticator,
    admins_only,
    current_identity,
)
from .errors import TRACE_ID_KEY, ErrorsInterceptor
from .tracing import TracingInterceptor
from .validation import ValidationInterceptor

__all__ = [
    "TRACE_ID_KEY",
    "AuthenticationInterceptor",
    "Authenticator",
    "Authorizer",
    "Call",
    "CertificateAuthenticator",
    "Interceptor",
    "Proceed",
    "admins_only",
    "current_identity",
    "server_interceptors",
]


def server_interceptors(
    authentication: AuthenticationInterceptor,
    activity: Activity = OFF,
    *,
    before: Sequence[Interceptor] = (),
    after: Sequence[Interceptor] = (),
) -> list[Interceptor]:
    """Returns the interceptors of a server, outermost first.

    Tracing comes first, so that every answer has a span, a refusal too; errors second, so that
    whatever the others raise reaches the caller as a rich status; authentication third, with what
    belongs right before and after it, so that strangers make the server look at none of their
    messages; validation last. Set telemetry up before.
    """
    return [
        TracingInterceptor(),
        ErrorsInterceptor(activity),
        *before,
        authentication,
        *after,
        ValidationInterceptor(),
    ]

"""What stands around every request: its trace, its errors, its headers, and slow clients."""

from __future__ import annotations

import asyncio
import logging

import grpc
from opentelemetry import context as otel_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bxmesh.client.errors import BxmeshError
from bxmesh.client.trace import current_trace_id, traced
from bxmesh.server.http.operations import ClientGoneError
from bxmesh.server.http.problems import problem_of, refusal, response_of

__all__ = ["TRACE_ID", "Errors", "SlowClients", "Tracing", "http_problem"]

TRACE_ID = "bxmesh-trace-id"

_log = logging.getLogger(__name__)
_propagator = TraceContextTextMapPropagator()
_SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Tracing:
    """Goes on with the caller's trace, or begins one, and says which it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves within a trace."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        context = _propagator.extract(dict(Headers(scope=scope)))
        token = otel_context.attach(context)
        try:
            with traced(f"HTTP {scope.get('method', 'WEBSOCKET')}") as trace_id:

                async def tell(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        headers = MutableHeaders(scope=message)
                        headers[TRACE_ID] = trace_id
                        for name, value in _SECURITY.items():
                            headers.setdefault(name, value)
                    await send(message)

                await self._app(scope, receive, tell)
        finally:
            otel_context.detach(token)


class Errors:
    """Turns what is raised into problems; whatever it is, a client sees no stack trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves, and tells what goes wrong."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, note)
        except ClientGoneError:
            return
        except Exception as error:
            if not isinstance(error, BxmeshError):
                _log.exception("a request failed, trace %s", current_trace_id())
            if begun:
                # Nothing can be said any more but that it ends here.
                raise
            await response_of(problem_of(_known(error), current_trace_id()))(scope, receive, send)


class SlowClients:
    """Ends responses of which a client takes nothing for too long."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves while the client reads."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError:
                # Starlette takes it for a client that has gone, which it is to us.
                raise OSError("the client does not read") from None

        await self._app(scope, receive, send_in_time)


async def http_problem(request: Request, error: Exception) -> Response:
    """Returns the problem of what Starlette raises: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    codes = {404: grpc.StatusCode.NOT_FOUND, 405: grpc.StatusCode.UNIMPLEMENTED}
    reasons = {404: "PATH_NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}
    code = codes.get(error.status_code, grpc.StatusCode.INVALID_ARGUMENT)
    refused = refusal(
        code,
        reasons.get(error.status_code, "BAD_REQUEST"),
        f"{request.method} {request.url.path[:200]}: {error.detail}. /docs says what there is.",
        status=error.status_code,
    )
    return response_of(problem_of(refused, current_trace_id()), error.headers)


def _known(error: Exception) -> BxmeshError:
    if isinstance(error, BxmeshError):
        return error
    return refusal(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        "The gateway failed; its log has the cause under the trace id.",
    )

"""The gateway put together."""

from __future__ import annotations

import json
from importlib import resources

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from bxmesh.server.http.api import OPERATIONS
from bxmesh.server.http.gateway import Gateway
from bxmesh.server.http.middleware import TRACE_ID, Errors, SlowClients, Tracing, http_problem
from bxmesh.server.http.openapi import document
from bxmesh.server.http.sockets import converse

__all__ = ["make_app"]

_PAGES = {
    "/docs": ("docs.html", "text/html"),
    "/live": ("live.html", "text/html"),
    "/assets/docs.js": ("docs.js", "text/javascript"),
    "/assets/live.js": ("live.js", "text/javascript"),
    "/assets/style.css": ("style.css", "text/css"),
}


def make_app(gateway: Gateway) -> Starlette:
    """Returns the ASGI application of a gateway."""
    settings = gateway.settings
    middleware = [
        Middleware(Tracing),
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=(
                "authorization",
                "content-type",
                "idempotency-key",
                "last-event-id",
                "traceparent",
                "x-api-key",
            ),
            expose_headers=(TRACE_ID, "location", "retry-after"),
        ),
        Middleware(SlowClients, seconds=settings.send_timeout),
        Middleware(Errors),
    ]
    return Starlette(
        routes=_routes(gateway),
        middleware=middleware,
        exception_handlers={HTTPException: http_problem},
    )


def _routes(gateway: Gateway) -> list[BaseRoute]:
    async def socket(connection: WebSocket) -> None:
        await converse(connection, gateway)

    described = json.dumps(document(OPERATIONS), ensure_ascii=False).encode()

    async def openapi(request: Request) -> Response:
        return Response(described, media_type="application/json")

    async def root(request: Request) -> Response:
        return RedirectResponse("/docs")

    routes: list[BaseRoute] = [operation.route(gateway) for operation in OPERATIONS]
    routes += [
        WebSocketRoute("/ws/{id}", socket),
        Route("/openapi.json", openapi),
        Route("/", root),
    ]
    return [*routes, *(_page(path, *page) for path, page in _PAGES.items())]


def _page(path: str, name: str, media_type: str) -> Route:
    content = resources.files(__package__).joinpath("pages", name).read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    return Route(path, page)

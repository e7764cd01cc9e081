"""An operation of the API: one description from which its route, its checks and its documentation come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from bxmesh.client.errors import Unauthenticated
from bxmesh.server.http.bodies import File, read_files, read_json, skip_body
from bxmesh.server.http.gateway import Gateway
from bxmesh.server.http.mesh import Caller, bearer_of
from bxmesh.server.http.problems import invalid_value, invalid_values

__all__ = ["Answer", "Call", "ClientGoneError", "Header", "Operation"]

IDENTIFIER_LENGTH = 128


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Call:
    """A request whose parts have been checked."""

    gateway: Gateway
    request: Request
    caller: Caller | None
    """The mesh, with the caller's own rights; None for what strangers may ask for."""
    body: Any = None
    """What the operation's model of bodies made of it."""
    query: Any = None
    """What the operation's model of queries made of it."""
    files: Mapping[str, File] = field(default_factory=dict)
    """Files by the name of their part."""

    @property
    def mesh(self) -> Caller:
        """The mesh, for whoever calls."""
        assert self.caller is not None
        return self.caller

    @property
    def name(self) -> str:
        """What the path names."""
        named: str = self.request.path_params["id"]
        return named


@dataclass(frozen=True)
class Answer:
    """What a status means."""

    description: str
    model: Any = None
    """The type of its JSON."""
    media_type: str = "application/json"
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True)
class Header:
    """A header that an operation takes or sends."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


Handler = Callable[[Call], Awaitable[Response | BaseModel]]


@dataclass(frozen=True)
class Operation:
    """Something that can be asked for."""

    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    answers: Mapping[int, Answer]
    """By status, apart from problems."""
    tag: str
    description: str = ""
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    body_optional: bool = False
    files: bool = False
    """Whether it takes files: `model`, which may be the whole body, and `reflections`."""
    headers: tuple[Header, ...] = ()
    streams: bool = False
    """Whether it answers for as long as it likes."""
    open: bool = False
    """Whether it can be asked for without a key."""

    def route(self, gateway: Gateway) -> Route:
        """Returns the route that serves it."""

        async def endpoint(request: Request) -> Response:
            trace.get_current_span().update_name(f"{self.method} {self.path}")
            return await self._answer(gateway, request)

        return Route(self.path, endpoint, methods=[self.method], name=self.name)

    async def _answer(self, gateway: Gateway, request: Request) -> Response:
        with ExitStack() as places:
            places.enter_context((gateway.streams if self.streams else gateway.requests).take())
            if self.files:
                places.enter_context(gateway.uploads.take())
            if self.open:
                return _response(await self.handler(Call(gateway, request, None)))
            address = request.client.host if request.client else ""
            gateway.refusals.check(address)
            try:
                credential = bearer_of(
                    request.headers.get("authorization"), request.headers.get("x-api-key")
                )
                call = await self._call(gateway, request, gateway.link.caller(credential))
                if self.streams:
                    # The response itself looks whether the client is still there.
                    response = _response(await self.handler(call))
                    return _Holding(response, places.pop_all())
                return await _unless_gone(request, self.handler(call))
            except Unauthenticated:
                gateway.refusals.note(address)
                raise

    async def _call(self, gateway: Gateway, request: Request, mesh: Caller) -> Call:
        settings = gateway.settings
        _check_path(request)
        query = None if self.query is None else _query(self.query, request)
        body, files = None, {}
        if self.files:
            # They are held in memory, so strangers send none: the mesh is asked first who it is.
            await gateway.known(mesh)
            files = await read_files(request, settings)
        elif self.body is not None:
            data = await read_json(request, settings, optional=self.body_optional)
            body = _body(self.body, data)
        else:
            await skip_body(request, settings)
        return Call(gateway, request, mesh, body, query, files)


class _Holding(Response):
    """A response that keeps its place until it has been sent."""

    def __init__(self, response: Response, places: ExitStack) -> None:
        self._response = response
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._places:
            await self._response(scope, receive, send)


def _response(answer: Response | BaseModel) -> Response:
    if isinstance(answer, Response):
        return answer
    return Response(answer.model_dump_json(), media_type="application/json")


async def _unless_gone(request: Request, answer: Awaitable[Response | BaseModel]) -> Response:
    """Returns the answer, or ends it when the client leaves."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientGoneError
        return _response(answering.result())
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_path(request: Request) -> None:
    name = request.path_params.get("id", "x")
    if not 1 <= len(name) <= IDENTIFIER_LENGTH:
        raise invalid_value("id", f"takes 1 to {IDENTIFIER_LENGTH} characters")


def _query(model: type[BaseModel], request: Request) -> BaseModel:
    values: dict[str, Any] = {}
    for name, field_of in model.model_fields.items():
        given = request.query_params.getlist(name)
        if not given:
            continue
        several = "list" in str(field_of.annotation) or "tuple" in str(field_of.annotation)
        if len(given) > 1 and not several:
            raise invalid_value(name, "is there twice")
        values[name] = given if several else given[0]
    for name in request.query_params:
        if name not in model.model_fields:
            raise invalid_value(name[:100], "is no parameter of this operation")
    try:
        return model.model_validate_strings(values)
    except ValidationError as error:
        raise invalid_values(error) from None


def _body(model: type[BaseModel], data: bytes) -> BaseModel:
    try:
        # An empty body, where it is optional, leaves everything as it is.
        return model.model_validate_json(data or b"{}")
    except ValidationError as error:
        raise invalid_values(error) from None

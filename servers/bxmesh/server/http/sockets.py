"""Conversations over web sockets."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import grpc
from pydantic import BaseModel, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.errors import BxmeshError, Unauthenticated
from bxmesh.client.trace import current_trace_id
from bxmesh.server.http.conversations import continued
from bxmesh.server.http.events import events
from bxmesh.server.http.gateway import Gateway
from bxmesh.server.http.mesh import Caller, bearer_of
from bxmesh.server.http.models.events import Ended, Failed
from bxmesh.server.http.models.streams import COMMANDS, Authenticate, Begin, Cancel, Continue
from bxmesh.server.http.operations import IDENTIFIER_LENGTH
from bxmesh.server.http.problems import invalid_value, invalid_values, problem_of, refusal

__all__ = ["NEW", "PROTOCOL", "converse"]

PROTOCOL = "bxmesh.v1"
"""The subprotocol; a browser names it beside `bxmesh.bearer.KEY`."""
NEW = "new"
"""The path of a socket that begins a conversation."""

_BEARER = "bxmesh.bearer."
_HEARTBEAT = '{"type":"heartbeat"}'


class _SlowError(Exception):
    """The client does not read what it is sent."""


async def converse(socket: WebSocket, gateway: Gateway) -> None:
    """Serves one socket: authenticates it, then follows its conversation and does what it says."""
    named: str = socket.path_params["id"]
    offered = socket.scope.get("subprotocols", [])
    if not _may_come_from(socket, gateway) or not 1 <= len(named) <= IDENTIFIER_LENGTH:
        await socket.close(1008)
        return
    await socket.accept(PROTOCOL if PROTOCOL in offered else None)
    line = _Line(socket, gateway.settings.send_timeout)
    address = socket.client.host if socket.client else ""
    try:
        with gateway.streams.take():
            gateway.refusals.check(address)
            mesh = await _authenticated(socket, gateway)
            await gateway.known(mesh)
            await _Conversation(line, gateway, mesh, "" if named == NEW else named).run()
    except BxmeshError as error:
        if isinstance(error, Unauthenticated):
            gateway.refusals.note(address)
        await line.fail(error)
        await line.close(_closing_code(error))
    except _SlowError:
        await line.close(1008)
    except WebSocketDisconnect:
        pass


class _Line:
    """The way to the client, for one message at a time."""

    def __init__(self, socket: WebSocket, seconds: float) -> None:
        self._socket = socket
        self._seconds = seconds
        self._lock = asyncio.Lock()

    async def receive(self) -> str:
        """Returns the next text. Raises WebSocketDisconnect when the client leaves."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text = message.get("text")
        if text is None:
            raise invalid_value("", "send JSON as text, not as bytes")
        return str(text)

    async def send(self, event: BaseModel) -> None:
        """Sends an event. Raises WebSocketDisconnect when the client is gone."""
        await self.send_text(event.model_dump_json())

    async def send_text(self, text: str) -> None:
        """Sends a text, likewise."""
        async with self._lock:
            try:
                async with asyncio.timeout(self._seconds):
                    await self._socket.send_text(text)
            except TimeoutError:
                raise _SlowError from None
            except (OSError, RuntimeError):
                raise WebSocketDisconnect(1006) from None

    async def fail(self, error: BxmeshError) -> None:
        """Tells an error, if anybody still listens."""
        with suppress(WebSocketDisconnect, _SlowError):
            await self.send(Failed(problem=problem_of(error, current_trace_id())))

    async def close(self, code: int) -> None:
        """Closes the socket, if it is open."""
        if self._socket.application_state is WebSocketState.CONNECTED:
            with suppress(OSError, RuntimeError, TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await self._socket.close(code)


class _Conversation:
    """What one socket does: it follows a conversation while it listens to the client."""

    def __init__(self, line: _Line, gateway: Gateway, mesh: Caller, conversation_id: str) -> None:
        self._line = line
        self._heartbeat = gateway.settings.heartbeat
        self._mesh = mesh
        self._id = conversation_id
        self._following: asyncio.Task[None] | None = None
        self._ended = False

    async def run(self) -> None:
        """Serves until the client leaves, or something fails."""
        if self._id:
            self._follow(pb.StreamConversationRequest(conversation_id=self._id))
        listening = asyncio.create_task(self._listen())
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                tasks = {listening, beating}
                if self._following is not None:
                    tasks.add(self._following)
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if self._following in done:
                    self._following, ended = None, self._following
                    assert ended is not None
                    ended.result()
                if beating in done:
                    beating.result()
                if listening in done:
                    if (request := listening.result()) is not None:
                        self._follow(request)
                    listening = asyncio.create_task(self._listen())
        finally:
            left = [task for task in (listening, beating, self._following) if task is not None]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _follow(self, request: pb.StreamConversationRequest) -> None:
        self._ended = False
        self._following = asyncio.create_task(self._tell(request))

    async def _tell(self, request: pb.StreamConversationRequest) -> None:
        async with aclosing(events(self._mesh, request)) as happened:
            async for event in happened:
                self._id = getattr(event, "conversation_id", self._id) or self._id
                self._ended = isinstance(event, Ended)
                await self._line.send(event)
                if self._ended:
                    return

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat)
            await self._line.send_text(_HEARTBEAT)

    async def _listen(self) -> pb.StreamConversationRequest | None:
        """Does the next thing that the client says; returns what is to be followed from then on."""
        text = await self._line.receive()
        try:
            return await self._do(text)
        except BxmeshError as error:
            # A wrong message is told, and the next one may be right.
            await self._line.fail(error)
            return None

    async def _do(self, text: str) -> pb.StreamConversationRequest | None:
        try:
            command = COMMANDS.validate_json(text)
        except ValidationError as error:
            raise invalid_values(error) from None
        match command:
            case Begin():
                if self._id or self._following:
                    raise invalid_value("type", "this socket has a conversation: send `message`")
                return pb.StreamConversationRequest(
                    request_id=uuid4().hex, spec=command.to_message()
                )
            case Continue():
                if (following := self._following) is not None and self._ended:
                    # The client may be faster than the end of the stream.
                    await asyncio.wait({following})
                elif following is not None:
                    raise refusal(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        "CONVERSATION_RUNNING",
                        "The conversation is under way: wait for its end, or cancel it.",
                    )
                after = await continued(
                    self._mesh, self._named(), command.message, command.turns, uuid4().hex
                )
                return pb.StreamConversationRequest(conversation_id=self._id, after_revision=after)
            case Cancel():
                await self._mesh.unary(
                    self._mesh.link.conversations.CancelConversation,
                    pb.CancelConversationRequest(
                        request_id=uuid4().hex, conversation_id=self._named()
                    ),
                )
                return None
            case Authenticate():
                raise invalid_value("type", "this socket is authenticated already")

    def _named(self) -> str:
        if not self._id:
            raise invalid_value("type", "this socket has no conversation yet: send `begin`")
        return self._id


async def _authenticated(socket: WebSocket, gateway: Gateway) -> Caller:
    """Returns the caller by its header, its subprotocol, or its first message."""
    for protocol in socket.scope.get("subprotocols", []):
        if protocol.startswith(_BEARER):
            return gateway.link.caller(bearer_of(None, protocol.removeprefix(_BEARER)))
    headers = socket.headers
    if "authorization" in headers or "x-api-key" in headers:
        credential = bearer_of(headers.get("authorization"), headers.get("x-api-key"))
        return gateway.link.caller(credential)
    command: Any = None
    line = _Line(socket, gateway.settings.send_timeout)
    try:
        async with asyncio.timeout(gateway.settings.authentication_timeout):
            command = COMMANDS.validate_json(await line.receive())
    except (TimeoutError, ValidationError):
        pass
    token = command.token if isinstance(command, Authenticate) else ""
    return gateway.link.caller(bearer_of(None, token))


def _may_come_from(socket: WebSocket, gateway: Gateway) -> bool:
    """Whether the page is one of ours, or of an origin that may call; programs send no origin."""
    origin = socket.headers.get("origin")
    allowed = gateway.settings.cors_origins
    if origin is None or "*" in allowed or origin in allowed:
        return True
    return urlsplit(origin).netloc == socket.headers.get("host")


def _closing_code(error: BxmeshError) -> int:
    if isinstance(error, Unauthenticated) or error.code is grpc.StatusCode.PERMISSION_DENIED:
        return 1008
    return 1013 if error.code is grpc.StatusCode.UNAVAILABLE else 1011

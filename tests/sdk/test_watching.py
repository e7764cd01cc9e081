"""Watches that come back, and the waits between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from bxmesh.agent.v1.state_pb2 import AgentState, WatchStateRequest, WatchStateResponse
from bxmesh.client import BxmeshError, InvalidInput, PermissionDenied, Timeouts, Unavailable
from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.agents.calls.watching import watch


def failure(code: grpc.StatusCode, reason: str = "") -> grpc.aio.AioRpcError:
    """An error as it comes from a server."""
    status = status_pb2.Status(code=code.value[0], message="so it is")
    if reason:
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="bxmesh"))
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details="so it is")


class Stream:
    """A stream that sends states of given revisions and ends as it is told."""

    def __init__(self, script: list[int | Exception]) -> None:
        self._script = script
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[WatchStateResponse]:
        for each in self._script:
            if isinstance(each, Exception):
                raise each
            yield WatchStateResponse(state=AgentState(revision=each))

    def cancel(self) -> None:
        self.cancelled = True


class Server:
    """Answers each attachment by the next script; stands for a connection, too."""

    metadata = ()
    timeouts = Timeouts(reconnect=0.5)

    def __init__(self, *scripts: list[int | Exception]) -> None:
        self.streams = [Stream(script) for script in scripts]
        self.after: list[int] = []

    def watch_state(self, request: WatchStateRequest, metadata: Any) -> Stream:
        self.after.append(request.after_revision)
        return self.streams[len(self.after) - 1]

    async def revisions(self, after: int = 0) -> list[int]:
        found = []
        server: Any = self
        responses: Any = watch(
            server,
            server.watch_state,
            WatchStateRequest(after_revision=after),
            lambda response: response.state.revision,
        )
        async with aclosing(responses):
            async for response in responses:
                found.append(response.state.revision)
        return found


AWAY = failure(grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
SLOW = failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_CONSUMER")
COMPACTED = failure(grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED")
CANCELLED = failure(grpc.StatusCode.CANCELLED)


async def test_a_watch_goes_on_where_it_broke_off() -> None:
    server = Server([1, 2, AWAY], [AWAY], [3, SLOW], [5, CANCELLED], [6])
    assert await server.revisions() == [1, 2, 3, 5, 6]
    assert server.after == [0, 2, 2, 3, 5]
    assert all(stream.cancelled for stream in server.streams)


async def test_what_is_not_kept_any_more_begins_again() -> None:
    server = Server([COMPACTED], [7])
    assert await server.revisions(after=3) == [7]
    assert server.after == [3, 0]
    with pytest.raises(InvalidInput):
        await Server([COMPACTED]).revisions()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (failure(grpc.StatusCode.PERMISSION_DENIED, "REVOKED"), PermissionDenied),
        (failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS"), BxmeshError),
    ],
)
async def test_what_is_final_is_raised(error: Exception, kind: type[Exception]) -> None:
    server = Server([1, error])
    with pytest.raises(kind):
        await server.revisions()
    assert server.streams[0].cancelled


async def test_patience_ends() -> None:
    server = Server(*[[AWAY]] * 1000)
    with pytest.raises(Unavailable) as raised:
        await server.revisions()
    assert raised.value.reason == "SERVER_STOPPING"
    assert 1 < len(server.after) < 1000


async def test_success_renews_patience() -> None:
    error = Unavailable("away")
    backoff = Backoff(patience=0.0)
    for _ in range(3):
        await backoff.wait(error)
        backoff.reset()
    await backoff.wait(error)
    with pytest.raises(Unavailable):
        await backoff.wait(error)

"""Streams that are quiet, that are left, and that nobody reads."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx

from bxmesh.client import AsyncMesh
from bxmesh.client.conversations import Question
from bxmesh.server.embedded import EmbeddedMesh
from tests.conversations.talk import taking_part
from tests.http.gateways import gateway, http_client
from tests.http.keys import admin_key
from tests.http.test_conversations import question, says
from tests.processes import until

_LARGE = 60_000
_VOICES = 40


async def _held(http: httpx.AsyncClient, *agents: str, **fields: Any) -> str:
    answer = await http.post("/chat", json={**question(*agents), **fields})
    assert answer.is_success, answer.text
    name: str = answer.json()["conversation_id"]
    return name


async def _has_place(http: httpx.AsyncClient) -> bool:
    """Whether a stream can be opened."""
    return (await http.get("/admin/export", params={"owner": "nobody"})).status_code == 200


async def test_a_quiet_stream_says_that_it_is_there(
    http_mesh: EmbeddedMesh, agents: AsyncMesh
) -> None:
    goes_on = asyncio.Event()

    async def slow(asked: Question) -> str:
        await goes_on.wait()
        return "at last"

    async with (
        taking_part(agents, http_quiet=slow),
        gateway(http_mesh, heartbeat=0.1) as url,
        http_client(url, admin_key(http_mesh)) as http,
        http.stream("POST", "/stream/new", json=question("http-quiet")) as response,
    ):
        lines = response.aiter_lines()
        beats = 0
        async for line in lines:
            beats += line.startswith(":")
            if beats == 3:
                # The answer is not there: these came all the same.
                goes_on.set()
        assert beats >= 3


async def test_who_leaves_gives_the_place_back(http_mesh: EmbeddedMesh, agents: AsyncMesh) -> None:
    goes_on = asyncio.Event()

    async def slow(asked: Question) -> str:
        await goes_on.wait()
        return "at last"

    async with (
        taking_part(agents, http_left=slow),
        gateway(http_mesh, max_streams=1) as url,
        http_client(url, admin_key(http_mesh)) as http,
    ):
        name = await _held(http, "http-left", wait=0)
        async with http.stream("POST", f"/stream/{name}") as response:
            await anext(response.aiter_bytes())
            assert not await _has_place(http)
        await until(lambda: _has_place(http))
        goes_on.set()
        # The conversation did not mind.
        async with http.stream("POST", f"/stream/{name}") as response:
            assert "conversation_ended" in (await response.aread()).decode()


async def test_who_reads_nothing_is_not_waited_for(
    http_mesh: EmbeddedMesh, agents: AsyncMesh
) -> None:
    async with (
        taking_part(agents, http_large=says("x" * _LARGE)),
        gateway(http_mesh, max_streams=1, send_timeout=1.0) as url,
        http_client(url, admin_key(http_mesh)) as http,
    ):
        voices = [
            {"participant_id": f"v{number}", "agent_id": "http-large"} for number in range(_VOICES)
        ]
        # More than the buffers between two programs of one machine hold.
        names = [await _held(http, participants=voices) for _ in range(4)]
        assert len(set(names)) == 4
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", httpx.URL(url).port))
            key = admin_key(http_mesh)
            client.sendall(
                f"GET /admin/export HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
            )
            assert await asyncio.to_thread(client.recv, 15) == b"HTTP/1.1 200 OK"
            assert not await _has_place(http)
            await until(lambda: _has_place(http))

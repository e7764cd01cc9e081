"""What the mesh adds to the time that a language model takes for an answer in a conversation."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import numpy as np

from benchmarks.figures import Figure, milliseconds
from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.client import AsyncMesh, BxmeshError
from bxmesh.client.host import Host
from bxmesh.server.embedded import EmbeddedMesh

CALLS = int(os.environ.get("BXMESH_BENCH_CALLS", "200"))
AT_ONCE = 200
_MODEL = "openai:scripted"
_ANSWER = "Answer: four\nConfidence: 1"


def run() -> list[Figure]:
    os.environ["NO_PROXY"] = "127.0.0.1"
    with _Provider() as provider:
        Thread(target=provider.serve_forever, args=(0.05,), daemon=True).start()
        try:
            return asyncio.run(_conversations(provider.url))
        finally:
            provider.shutdown()


async def _conversations(url: str) -> list[Figure]:
    """Conversations of one participant over a unix socket, and in turn what its model takes when it is
    asked directly, and a call of the mesh that reads a conversation."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(EmbeddedMesh(workers=0))
        mesh = await stack.enter_async_context(
            AsyncMesh(server.address, state_dir=server.state_dir)
        )
        bare = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
        await stack.enter_async_context(Host(mesh, lent={_MODEL: url}).running())
        asked = {"model": "scripted", "stream": True, "messages": []}

        async def ask() -> None:
            answer = await bare.post(f"{url}/chat/completions", json=asked)
            assert answer.is_success

        async def hold() -> str:
            found = await mesh.conversations.hold("What is 2 and 2?", agents=1)
            assert found.value == "four", found
            return found.conversation_id

        name = await _soon(hold)
        stub = mesh.conversations._stub
        request = archive_pb.GetConversationRequest(conversation_id=name)
        metadata = mesh._connection.metadata

        async def read() -> None:
            await stub.GetConversation(request, metadata=metadata)

        took: dict[Callable[[], Awaitable[Any]], list[float]] = {read: [], ask: [], hold: []}
        for _ in range(CALLS):
            for call, seconds in took.items():
                began = time.perf_counter()
                await call()
                seconds.append(time.perf_counter() - began)
        (unary50, unary95), (model50, model95), (mesh50, mesh95) = (
            np.percentile(seconds, (50, 95)) for seconds in took.values()
        )
        count = min(CALLS, AT_ONCE)
        began = time.perf_counter()
        await asyncio.gather(*(hold() for _ in range(count)))
        together = time.perf_counter() - began
    return [
        Figure(
            "the mesh adds to an answer of a model, p50",
            1000 * (mesh50 - model50),
            "ms",
            details=f"conversation / model / unary call {milliseconds(mesh50, model50, unary50)}",
        ),
        Figure(
            "the same, p95",
            1000 * (mesh95 - model95),
            "ms",
            details=f"conversation / model / unary call {milliseconds(mesh95, model95, unary95)}",
        ),
        Figure(
            f"{count} conversations at once", together, "s", details=f"{count / together:.0f}/s"
        ),
    ]


async def _soon(hold: Callable[[], Awaitable[str]]) -> str:
    """Holds a conversation as soon as the host is there."""
    while True:
        try:
            return await hold()
        except (AssertionError, BxmeshError):
            await asyncio.sleep(0.5)


class _Provider(ThreadingHTTPServer):
    """Streams the same answer to everybody at once."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b"".join(
            b"data: " + json.dumps(_chunk(delta, reason)).encode() + b"\n\n"
            for delta, reason in (({"role": "assistant", "content": _ANSWER}, None), ({}, "stop"))
        )
        body += b"data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _chunk(delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {
        "id": "answer",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }

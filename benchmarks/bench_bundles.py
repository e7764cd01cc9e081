"""Downloads a bundle of 256 MB, against a bare grpc.aio stream of the same chunks.

The bare streams come from memory without interceptors or checksums: one of ready-made messages
like those of the download, one of plain bytes. The download reads a file, passes all
interceptors, and both sides compute every checksum.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.geometry.v1.bundle_pb2 import (
    BundleChunk,
    DownloadBundleRequest,
    DownloadBundleResponse,
)
from bxmesh.geometry.v1.geometry_service_pb2_grpc import (
    GeometryServiceServicer,
    GeometryServiceStub,
    add_GeometryServiceServicer_to_server,
)
from bxmesh.server.bundles import BundleStore
from bxmesh.server.geometry.bundle_rpcs import BundleRpcs
from bxmesh.server.interceptors import server_interceptors
from bxmesh.server.security.identities import EVERYTHING, Identity
from bxmesh.tensors import DEFAULT_CHUNK_BYTES

SIZE = 256 * 1024 * 1024
ROUNDS = 7
KEY = (("authorization", "Bearer bench"),)


def run() -> dict[str, Any]:
    """Returns the median speeds in MB/s and the medians of their ratios, round by round."""
    with tempfile.TemporaryDirectory(prefix="bx-") as name:
        directory = Path(name)
        bundle, _ = _store(directory).put(os.urandom(SIZE), bundle_pb2.BUNDLE_KIND_MAP)
        servers = [
            subprocess.Popen(
                [sys.executable, __file__, kind, name], stdout=subprocess.PIPE, text=True
            )
            for kind in ("mesh", "bare")
        ]
        try:
            for server in servers:
                assert server.stdout is not None
                server.stdout.readline()
            return asyncio.run(_measure(directory, bundle.bundle_id))
        finally:
            for server in servers:
                server.kill()
                server.communicate()


async def _measure(directory: Path, bundle_id: str) -> dict[str, Any]:
    download: list[float] = []
    messages: list[float] = []
    plain_bytes: list[float] = []
    async with (
        grpc.aio.insecure_channel(f"unix:{directory}/mesh") as mesh,
        grpc.aio.insecure_channel(f"unix:{directory}/bare") as plain,
    ):
        for _ in range(ROUNDS):
            plain_bytes.append(await _time_bytes(plain))
            messages.append(await _time_messages(plain))
            download.append(await _time_download(mesh, bundle_id))
    return {
        "bundle_bytes": SIZE,
        "chunk_bytes": DEFAULT_CHUNK_BYTES,
        "download_mb_per_second": round(statistics.median(download)),
        "bare_messages_mb_per_second": round(statistics.median(messages)),
        "bare_bytes_mb_per_second": round(statistics.median(plain_bytes)),
        "ratio_to_bare_messages": _ratio(download, messages),
        "ratio_to_bare_bytes": _ratio(download, plain_bytes),
    }


def _ratio(speeds: list[float], bare: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(speeds, bare, strict=True)), 3)


async def _time_bytes(channel: grpc.aio.Channel) -> float:
    started = time.perf_counter()
    received = 0
    async for data in channel.unary_stream("/bare/Bytes", None, None)(b""):
        received += len(data)
    assert received == SIZE
    return SIZE / 1e6 / (time.perf_counter() - started)


async def _time_messages(channel: grpc.aio.Channel) -> float:
    parse = DownloadBundleResponse.FromString
    started = time.perf_counter()
    received = 0
    async for response in channel.unary_stream("/bare/Messages", None, parse)(b""):
        received += len(response.chunk.data)
    assert received == SIZE
    return SIZE / 1e6 / (time.perf_counter() - started)


async def _time_download(channel: grpc.aio.Channel, bundle_id: str) -> float:
    request = DownloadBundleRequest(bundle_id=bundle_id)
    started = time.perf_counter()
    received = 0
    async for response in GeometryServiceStub(channel).DownloadBundle(request, metadata=KEY):
        chunk = response.chunk
        data = chunk.data
        assert zlib.crc32(data) == chunk.crc32
        received += len(data)
    assert received == SIZE
    return SIZE / 1e6 / (time.perf_counter() - started)


def _store(directory: Path) -> BundleStore:
    day = timedelta(days=1)
    return BundleStore(directory / "bundles", day, day, SIZE)


class _Service(BundleRpcs, GeometryServiceServicer):  # type: ignore[misc]
    pass


class _Anyone:
    async def authenticate(self, credential: str) -> Identity | None:
        return Identity(credential, "user", frozenset({EVERYTHING}))


def _bare_server(directory: Path) -> grpc.aio.Server:
    content = os.urandom(SIZE)
    messages = []
    for offset in range(0, SIZE, DEFAULT_CHUNK_BYTES):
        data = content[offset : offset + DEFAULT_CHUNK_BYTES]
        chunk = BundleChunk(offset=offset, data=data, crc32=zlib.crc32(data))
        messages.append(DownloadBundleResponse(chunk=chunk))
    chunks = [message.chunk.data for message in messages]
    del content

    async def stream_bytes(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def stream_messages(
        request: bytes, context: Any
    ) -> AsyncIterator[DownloadBundleResponse]:
        for message in messages:
            yield message

    server = grpc.aio.server()
    methods = {
        "Bytes": grpc.unary_stream_rpc_method_handler(stream_bytes),
        "Messages": grpc.unary_stream_rpc_method_handler(
            stream_messages, None, DownloadBundleResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", methods),))
    return server


def _mesh_server(directory: Path) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=server_interceptors([_Anyone()]))
    add_GeometryServiceServicer_to_server(_Service(_store(directory)), server)  # type: ignore[abstract]
    return server


async def _serve(kind: str, directory: Path) -> None:
    server = {"mesh": _mesh_server, "bare": _bare_server}[kind](directory)
    server.add_insecure_port(f"unix:{directory}/{kind}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(_serve(sys.argv[1], Path(sys.argv[2])))
    else:
        print(json.dumps(run(), indent=2))

"""A download of 256 MB against a bare grpc.aio stream of the same chunks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from benchmarks.figures import Figure, median
from bxmesh.client import AsyncMesh
from bxmesh.geometry.v1 import geometry_service_pb2_grpc
from bxmesh.geometry.v1.bundle_pb2 import BundleChunk, DownloadBundleRequest, DownloadBundleResponse
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.tensors import DEFAULT_CHUNK_BYTES

SIZE = 256 * 1024 * 1024
ROUNDS = 5
_METHOD = "/bare/Messages"


def run() -> list[Figure]:
    return asyncio.run(_measure())


async def _measure() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="bx-") as name, EmbeddedMesh(workers=0) as server:
        address = f"unix:{name}/bare.sock"
        bare = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bench_bundles", address], stdout=subprocess.PIPE
        )
        try:
            assert bare.stdout is not None
            bare.stdout.readline()
            async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
                bundle = await mesh.bundles.upload(os.urandom(SIZE), kind="coordinates")
                plain, ours, client = [], [], []
                for _ in range(ROUNDS):
                    plain.append(await _bare_stream(address))
                    ours.append(await _download(server, bundle.bundle_id))
                    began = time.perf_counter()
                    await mesh.bundles.download(bundle.bundle_id, Path(name) / "content")
                    client.append(time.perf_counter() - began)
        finally:
            bare.terminate()
            bare.wait()
    return [
        _figure("bundle of 256 MB against a bare stream of the same chunks", plain, ours, 0.7),
        _figure("the same with the client, verified and written to a file", plain, client, None),
    ]


def _figure(what: str, bare: list[float], ours: list[float], goal: float | None) -> Figure:
    rates = [SIZE / 1e6 / median(seconds) for seconds in (ours, bare)]
    details = f"{rates[0]:,.0f} / {rates[1]:,.0f} MB/s"
    return Figure(what, rates[0] / rates[1], at_least=goal, details=details)


async def _bare_stream(address: str) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        stream: Any = channel.unary_stream(
            _METHOD, response_deserializer=DownloadBundleResponse.FromString
        )
        began = time.perf_counter()
        total = 0
        async for response in stream(b""):
            total += len(response.chunk.data)
        assert total == SIZE
        return time.perf_counter() - began


async def _download(server: EmbeddedMesh, bundle_id: str) -> float:
    key = (server.state_dir / "admin.key").read_text().strip()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = geometry_service_pb2_grpc.GeometryServiceStub(channel)
        began = time.perf_counter()
        total = 0
        async for response in stub.DownloadBundle(
            DownloadBundleRequest(bundle_id=bundle_id),
            metadata=(("authorization", f"Bearer {key}"),),
        ):
            total += len(response.chunk.data)
        assert total == SIZE
        return time.perf_counter() - began


async def _serve_bare(address: str) -> None:
    content = os.urandom(SIZE)
    messages = []
    for offset in range(0, SIZE, DEFAULT_CHUNK_BYTES):
        data = content[offset : offset + DEFAULT_CHUNK_BYTES]
        chunk = BundleChunk(offset=offset, data=data, crc32=zlib.crc32(data))
        messages.append(DownloadBundleResponse(chunk=chunk))

    async def stream(request: bytes, context: Any) -> AsyncIterator[DownloadBundleResponse]:
        for message in messages:
            yield message

    server = grpc.aio.server()
    handler: Any = grpc.unary_stream_rpc_method_handler(
        stream, response_serializer=DownloadBundleResponse.SerializeToString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bare", {"Messages": handler}),)
    )
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve_bare(sys.argv[1]))

"""RPCs of the contract that a server does not implement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from bxmesh.agent.v1 import agent_service_pb2
from bxmesh.geometry.v1 import bundle_pb2, geometry_service_pb2, geometry_service_pb2_grpc
from bxmesh.server.interceptors import AuthenticationInterceptor, server_interceptors
from bxmesh.server.unimplemented import offer
from tests.registry.mesh import ADMIN, Names, anybody, refused


@asynccontextmanager
async def stopped(server: grpc.aio.Server) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await server.stop(0)


class OnlyGetBundle(geometry_service_pb2_grpc.GeometryServiceServicer):
    async def GetBundle(self, request: Any, context: Any) -> bundle_pb2.GetBundleResponse:
        return bundle_pb2.GetBundleResponse(bundle=bundle_pb2.Bundle(bundle_id=request.bundle_id))


class OnlyGetBundlePlain:
    GetBundle = OnlyGetBundle.GetBundle


@pytest.mark.parametrize("servicer", [OnlyGetBundle, OnlyGetBundlePlain])
async def test_every_other_rpc_of_every_kind_is_refused(
    short_dir: Path, servicer: type[object]
) -> None:
    server = grpc.aio.server(
        interceptors=server_interceptors(AuthenticationInterceptor([Names()], anybody))
    )
    assert offer(server, geometry_service_pb2, servicer()) == "bxmesh.geometry.v1.GeometryService"
    assert offer(server, agent_service_pb2) == "bxmesh.agent.v1.AgentService"
    address = f"unix:{short_dir / 'server.sock'}"
    server.add_insecure_port(address)
    await server.start()
    kinds = set()
    async with stopped(server), grpc.aio.insecure_channel(address) as channel:
        stub = geometry_service_pb2_grpc.GeometryServiceStub(channel)
        digest = f"sha256:{'0' * 64}"
        request = bundle_pb2.GetBundleRequest(bundle_id=digest)
        assert (await stub.GetBundle(request, metadata=ADMIN)).bundle.bundle_id == digest
        for module, name in (
            (geometry_service_pb2, "GeometryService"),
            (agent_service_pb2, "AgentService"),
        ):
            service = module.DESCRIPTOR.services_by_name[name]
            for method in service.methods:
                if method.name == "GetBundle":
                    continue
                # An empty request: most methods require fields, which nobody should fill in vain.
                kind = (method.client_streaming, method.server_streaming)
                kinds.add(kind)
                with refused("UNIMPLEMENTED", "METHOD_NOT_OFFERED") as errors:
                    await call(channel, service.full_name, method.name, kind)
                assert errors[0].message == (
                    f"{method.full_name} is part of the contract but not offered by this version."
                )
                assert errors[0].trace_id
    assert len(kinds) == 4


async def call(
    channel: grpc.aio.Channel, service: str, method: str, kind: tuple[bool, bool]
) -> None:
    path = f"/{service}/{method}"
    match kind:
        case (False, False):
            await channel.unary_unary(path)(b"", metadata=ADMIN)
        case (False, True):
            await channel.unary_stream(path)(b"", metadata=ADMIN).read()
        case (True, False):
            await channel.stream_unary(path)(iter(()), metadata=ADMIN)
        case _:
            await channel.stream_stream(path)(iter(()), metadata=ADMIN).read()

"""Who may call, and what the open methods are."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from bxmesh.client import errors as client_errors
from bxmesh.client.errors import from_rpc_error
from bxmesh.geometry.v1.bundle_pb2 import BundleChunk
from bxmesh.server.interceptors import current_identity
from bxmesh.server.security.identities import Identity
from tests.interceptors.probe import KEY, Context, probe

pytestmark = pytest.mark.asyncio


async def name_caller(request: Any, context: Context) -> BundleChunk:
    return BundleChunk(data=current_identity().id.encode())


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", f"Bearer {KEY}"),),
        (("authorization", f"bearer {KEY}"),),
        (("x-api-key", KEY),),
    ],
)
async def test_admin_key_is_let_in(metadata: tuple[tuple[str, str], ...]) -> None:
    async with probe("unary_unary", name_caller) as (call, _):
        assert (await call(BundleChunk(), metadata=metadata)).data == b"admin"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "KEY_MISSING"),
        ((("authorization", f"Basic {KEY}"),), "KEY_MISSING"),
        ((("authorization-bin", KEY.encode()),), "KEY_MISSING"),
        ((("authorization", "Bearer"),), "KEY_INVALID"),
        ((("authorization", f"Bearer {KEY[:-1]}"),), "KEY_INVALID"),
        ((("x-api-key", KEY + "k"),), "KEY_INVALID"),
        ((("x-api-key", "k" * 5000),), "KEY_INVALID"),
        ((("authorization", "Bearer wrong"), ("x-api-key", KEY)), "KEY_INVALID"),
    ],
)
async def test_strangers_are_refused(metadata: tuple[tuple[str, Any], ...], reason: str) -> None:
    async with probe("unary_unary", name_caller) as (call, channel):
        calls: tuple[Any, ...] = (
            call,
            channel.unary_unary("/probe.v1.Probe/Unheard", BundleChunk.SerializeToString),
        )
        for refused in calls:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await refused(BundleChunk(offset=-1), metadata=metadata)
            seen = from_rpc_error(raised.value)
            assert type(seen) is client_errors.Unauthenticated
            assert seen.reason == reason
            assert KEY[:-1] not in str(raised.value)


async def test_stream_of_a_stranger_is_never_handled() -> None:
    handled: list[bool] = []

    async def handler(requests: Any, context: Context) -> Any:
        handled.append(True)
        async for request in requests:
            yield request

    async with probe("stream_stream", handler) as (call, _):
        started = call()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await started.read()
            await started.read()
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not handled


async def test_known_caller_without_permission_is_denied() -> None:
    class Guests:
        async def authenticate(self, credential: str) -> Identity | None:
            return Identity("guest", "user") if credential == "guest" else None

        def renew(self, identity: Identity) -> Identity | None:
            return identity

    def anybody(identity: Identity, method: str) -> tuple[str, ...]:
        return ()

    for authorizer, code in ((None, "PERMISSION_DENIED"), (anybody, "OK")):
        serving = probe("unary_unary", name_caller, authenticator=Guests(), authorizer=authorizer)
        async with serving as (call, _):
            started = call(BundleChunk(), metadata=(("x-api-key", "guest"),))
            assert (await started.code()).name == code


async def test_health_and_reflection_are_open() -> None:
    health = HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)

    def add_health(server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(health, server)

    def add_reflection(server: grpc.aio.Server) -> None:
        reflection.enable_server_reflection(["grpc.health.v1.Health"], server)

    async with probe("unary_unary", name_caller, add=[add_health, add_reflection]) as (_, channel):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        checked = await stub.Check(health_pb2.HealthCheckRequest())
        assert checked.status == health_pb2.HealthCheckResponse.SERVING

        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()

        reflector: Any = reflection_pb2_grpc.ServerReflectionStub
        listing = reflector(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        services = (await listing.read()).list_services_response.service
        assert [service.name for service in services] == ["grpc.health.v1.Health"]
        listing.cancel()


async def test_nobody_is_current_outside_of_calls() -> None:
    with pytest.raises(LookupError):
        current_identity()

"""Whatever is sent, the server answers with a status of its own and serves on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bxmesh.client.errors import from_rpc_error
from bxmesh.security.v1 import identity_pb2
from bxmesh.security.v1.security_service_pb2_grpc import SecurityServiceStub
from bxmesh.server.embedded import EmbeddedMesh
from tests.security.mesh import Metadata, bearer
from tests.security.test_every_rpc import methods

_INTEGERS = (0, 1, -1, 7, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**64 - 1, 2**32 - 1)
_FLOATS = (0.0, -0.0, 1.5, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324)
_TEXTS = (
    "", "a", "*", "sha256:" + "0" * 64, "\x00", "é" * 50, "../../etc/passwd", "x" * 5000,
    "admin", "bx_aaaaaaaaaaaa", "1-0", "🧬", "a.b.c", "'; DROP TABLE", "%s%n", "{}", "bob",
)  # fmt: skip
_BAD = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
_SLOW = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[EmbeddedMesh]:
    with EmbeddedMesh(workers=0) as mesh:
        yield mesh


def fill(message: Message, chance: random.Random, depth: int = 0) -> None:
    """Sets random fields of a message to values that somebody may not have thought of."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(getattr(message, field.name), field, chance)
        elif field.is_repeated:
            values = getattr(message, field.name)
            for _ in range(chance.choice((0, 1, 2, 70))):
                if field.message_type is not None:
                    if depth < 3:
                        fill(values.add(), chance, depth + 1)
                else:
                    values.append(_value(field, chance))
        elif field.message_type is not None:
            if depth < 4:
                inner = getattr(message, field.name)
                inner.SetInParent()
                fill(inner, chance, depth + 1)
        else:
            setattr(message, field.name, _value(field, chance))


def _fill_map(values: Any, field: FieldDescriptor, chance: random.Random) -> None:
    entry = field.message_type.fields_by_name
    for _ in range(chance.choice((0, 1, 3))):
        key = _value(entry["key"], chance)
        if entry["value"].message_type is not None:
            fill(values[key], chance, 3)
        else:
            values[key] = _value(entry["value"], chance)


def _value(field: FieldDescriptor, chance: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return chance.randbytes(chance.choice((0, 1, 32, 1000)))
            return chance.choice(_TEXTS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return chance.choice((0, 1, 2, 99, -1))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return chance.choice(_FLOATS)
        case FieldDescriptor.CPPTYPE_INT32:
            return max(-(2**31), min(2**31 - 1, chance.choice(_INTEGERS)))
        case FieldDescriptor.CPPTYPE_UINT32:
            return max(0, min(2**32 - 1, chance.choice(_INTEGERS)))
        case FieldDescriptor.CPPTYPE_UINT64:
            return max(0, chance.choice(_INTEGERS))
    return max(-(2**63), min(2**63 - 1, chance.choice(_INTEGERS)))


async def call(channel: grpc.aio.Channel, name: str, data: bytes, metadata: Metadata) -> None:
    """Sends bytes to a method; fails when the answer is that the server failed."""
    method = dict(methods())[name]
    kind = "_".join(
        "stream" if streams else "unary"
        for streams in (method.client_streaming, method.server_streaming)
    )
    stub = getattr(channel, kind)(name, lambda data: data, lambda data: data)
    started = stub(iter([data]) if method.client_streaming else data, metadata=metadata, timeout=5)
    try:
        async with asyncio.timeout(0.5 if method.server_streaming else 6):
            if method.server_streaming:
                while await started.read() is not grpc.aio.EOF:
                    pass
            else:
                await started
    except grpc.aio.AioRpcError as error:
        reason = from_rpc_error(error).reason
        # What no protobuf can be read from is gRPC's own affair.
        ours = "deserializ" not in (error.details() or "")
        assert error.code() not in _BAD or not ours, (name, reason, error.details(), data)
    except TimeoutError:
        # A watch waits for news.
        assert method.server_streaming, name
    finally:
        started.cancel()


async def everywhere(mesh: EmbeddedMesh, requests: dict[str, bytes], metadata: Metadata) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(mesh.address, options=options) as channel:
        room = asyncio.Semaphore(25)

        async def one(name: str, data: bytes) -> None:
            async with room:
                await call(channel, name, data, metadata)

        await asyncio.gather(*(one(name, data) for name, data in requests.items()))
        me = await SecurityServiceStub(channel).GetIdentity(
            identity_pb2.GetIdentityRequest(), metadata=_admin(mesh)
        )
        assert me.identity.identity_id == "admin"


def _admin(mesh: EmbeddedMesh) -> Metadata:
    return bearer((Path(mesh.state_dir) / "admin.key").read_text().strip())


# What it makes of everything else would be that everything else is refused.
_LEFT_OUT = {"/bxmesh.security.v1.SecurityService/ApplyPolicy"}


@_SLOW
@given(seed=st.integers(0, 2**32))
@pytest.mark.timeout(300)
async def test_no_request_makes_the_server_fail(fuzzed: EmbeddedMesh, seed: int) -> None:
    chance = random.Random(seed)
    requests = {}
    for name, method in methods():
        if name in _LEFT_OUT:
            continue
        message = GetMessageClass(method.input_type)()
        fill(message, chance)
        requests[name] = message.SerializeToString()
    await everywhere(fuzzed, requests, _admin(fuzzed))


@_SLOW
@given(seed=st.integers(0, 2**32))
@pytest.mark.timeout(300)
async def test_no_bytes_make_the_server_fail(fuzzed: EmbeddedMesh, seed: int) -> None:
    chance = random.Random(seed)
    requests = {}
    for name, method in methods():
        message = GetMessageClass(method.input_type)()
        fill(message, chance)
        data = bytearray(message.SerializeToString())
        for _ in range(chance.choice((1, 3, 20))):
            at = chance.randrange(len(data) + 1)
            data[at:at] = chance.randbytes(chance.choice((0, 1, 4)))
            del data[at : at + chance.choice((0, 1, 9))]
        requests[name] = bytes(data)
    requests.pop("/bxmesh.security.v1.SecurityService/ApplyPolicy")
    await everywhere(fuzzed, requests, _admin(fuzzed))


@_SLOW
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["authorization", "x-api-key", "traceparent", "tracestate", "baggage", "x-bin"]
            ),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300),
        ),
        max_size=8,
    )
)
async def test_no_metadata_makes_the_server_fail(
    fuzzed: EmbeddedMesh, metadata: list[tuple[str, str]]
) -> None:
    sent = tuple(
        (key, value.encode() if key.endswith("-bin") else value) for key, value in metadata
    )
    async with grpc.aio.insecure_channel(fuzzed.address) as channel:
        stub = SecurityServiceStub(channel)
        for extra in ((), _admin(fuzzed)):
            try:
                await stub.GetIdentity(
                    identity_pb2.GetIdentityRequest(), metadata=(*sent, *extra), timeout=5
                )
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED, error.details()


async def test_floods_and_bombs_are_bounded(fuzzed: EmbeddedMesh) -> None:
    async with grpc.aio.insecure_channel(fuzzed.address) as channel:
        stub = SecurityServiceStub(channel)
        me, admin = identity_pb2.GetIdentityRequest(), _admin(fuzzed)
        # A flood of headers ends the call, not the server.
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetIdentity(
                me, metadata=(*admin, *((f"x-{n}", "y" * 1000) for n in range(200))), timeout=10
            )
        assert raised.value.code() in (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.UNAVAILABLE,
        )
        # Zeros that are small on the wire, and more than the server takes when they are not.
        bomb = channel.unary_unary(
            "/bxmesh.security.v1.SecurityService/GetIdentity", lambda data: data, lambda data: data
        )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await bomb(
                b"\x0a" + b"\x00" * (64 << 20),
                metadata=admin,
                timeout=20,
                compression=grpc.Compression.Gzip,
            )
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Nesting that is deeper than any parser should go.
        deep = b""
        for _ in range(5000):
            deep = b"\x32" + _varint(len(deep)) + deep
        struct = channel.unary_unary(
            "/bxmesh.agent.v1.AgentService/UpdateState", lambda data: data, lambda data: data
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await struct(deep, metadata=admin, timeout=10)
        assert (await stub.GetIdentity(me, metadata=admin)).identity.identity_id == "admin"


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])

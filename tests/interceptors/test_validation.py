"""The rules of the contract, at work."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from bxmesh.agent.v1 import state_pb2
from bxmesh.client import errors as client_errors
from bxmesh.client.errors import from_rpc_error
from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.geometry.v1.bundle_pb2 import BundleChunk
from bxmesh.security.v1 import identity_pb2
from bxmesh.server.errors import MeshError
from bxmesh.server.interceptors import validation
from bxmesh.server.interceptors.validation import ValidationInterceptor
from tests.interceptors.probe import AUTHORIZED, METHOD, Context, probe

pytestmark = pytest.mark.asyncio

WRONG = BundleChunk(offset=-1)


async def test_unary_request_that_breaks_a_rule_is_refused() -> None:
    async def handler(request: BundleChunk, context: Context) -> BundleChunk:
        return request

    async with probe("unary_unary", handler) as (call, _):
        good = BundleChunk(offset=3, data=b"abc")
        assert await call(good, metadata=AUTHORIZED) == good
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(WRONG, metadata=AUTHORIZED)
    seen = from_rpc_error(raised.value)
    assert type(seen) is client_errors.InvalidInput
    assert seen.field_violations == (("offset", "must be greater than or equal to 0"),)
    assert seen.message.startswith("offset: ")


async def iterates(requests: Any, context: Context) -> AsyncIterator[BundleChunk]:
    async for request in requests:
        yield request


async def reads(requests: Any, context: Context) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request)


@pytest.mark.parametrize("handler", [iterates, reads])
async def test_each_message_of_a_stream_is_checked(handler: Any) -> None:
    async with probe("stream_stream", handler) as (call, _):
        started = call(metadata=AUTHORIZED)
        for offset in range(3):
            await started.write(BundleChunk(offset=offset))
            assert (await started.read()).offset == offset
        await started.write(WRONG)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await started.read()
    assert from_rpc_error(raised.value).field_violations[0][0] == "offset"


async def test_nested_field_is_named_by_its_path() -> None:
    header = bundle_pb2.UploadBundleHeader(size_bytes=-1, display_name="x" * 300)
    with pytest.raises(MeshError) as raised:
        ValidationInterceptor()._check(bundle_pb2.UploadBundleRequest(header=header))
    fields = [field for field, _ in raised.value.field_violations]
    assert {"header.kind", "header.size_bytes", "header.display_name"} == set(fields)


async def test_large_message_is_told_its_first_violation_only() -> None:
    header = bundle_pb2.UploadBundleHeader(size_bytes=-1, display_name="x" * 300_000)
    with pytest.raises(MeshError) as raised:
        ValidationInterceptor()._check(bundle_pb2.UploadBundleRequest(header=header))
    assert len(raised.value.field_violations) == 1


@pytest.mark.parametrize(("kind", "handler"), [("unary_unary", reads), ("stream_stream", iterates)])
async def test_bytes_that_are_no_message_are_refused(kind: str, handler: Any) -> None:
    async with probe(kind, handler) as (_, channel):
        call = getattr(channel, kind)(f"/{METHOD}")
        for metadata, reason in ((AUTHORIZED, "MESSAGE_MALFORMED"), ((), "KEY_MISSING")):
            garbage = b"\xff\xff\xff"
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                if kind == "unary_unary":
                    await call(garbage, metadata=metadata)
                else:
                    await call(iter([garbage]), metadata=metadata).read()
            seen = from_rpc_error(raised.value)
            assert seen.reason == reason
            assert seen.trace_id


async def test_a_large_message_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []
    original = validation.refuse_invalid

    def noting(validator: Any, message: Any) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        original(validator, message)

    monkeypatch.setattr(validation, "refuse_invalid", noting)
    # Large content is nothing to look at; many values are.
    monkeypatch.setattr(validation, "_may_hold_many", lambda kind: many)

    async def handler(request: Any, context: Any) -> BundleChunk:
        return BundleChunk(offset=len(request.data))

    async with probe("unary_unary", handler) as (call, _):
        for many in (False, True):  # noqa: B007
            for size in (10, 200_000):
                answer = await call(BundleChunk(data=b"x" * size), metadata=AUTHORIZED)
                assert answer.offset == size
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(BundleChunk(data=b"x" * 200_000, offset=-1), metadata=AUTHORIZED)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert threads == [True, True, True, False, False]


async def test_which_messages_may_hold_many_values() -> None:
    for kind, many in (
        (bundle_pb2.UploadBundleRequest, False),
        (state_pb2.UpdateStateRequest, True),
        (identity_pb2.CreateIdentityRequest, True),
    ):
        assert validation._may_hold_many(kind.DESCRIPTOR) is many

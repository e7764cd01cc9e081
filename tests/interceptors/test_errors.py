"""What a caller sees of an error."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pydantic
import pytest
from google.rpc import error_details_pb2, status_pb2

from bxmesh.client import errors as client_errors
from bxmesh.client.errors import from_rpc_error
from bxmesh.geometry.v1 import job_pb2
from bxmesh.geometry.v1.bundle_pb2 import BundleChunk
from bxmesh.geometry.v1.geometry_service_pb2_grpc import (
    GeometryServiceServicer,
    add_GeometryServiceServicer_to_server,
)
from bxmesh.server import errors
from bxmesh.server.errors import MeshError
from tests.interceptors.probe import AUTHORIZED, Context, probe

pytestmark = pytest.mark.asyncio

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


async def failure(kind: str, call: Any) -> grpc.aio.AioRpcError:
    """Makes a call of a kind with one message and returns how it fails."""

    async def requests() -> Any:
        yield BundleChunk()

    argument = requests() if kind.startswith("stream") else BundleChunk()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        started = call(argument, metadata=AUTHORIZED, timeout=10)
        if kind.endswith("stream"):
            async for _ in started:
                pass
        else:
            await started
    return raised.value


def raising(kind: str, error: BaseException) -> Any:
    """Returns a handler of a kind that raises an error."""

    async def answer(request: Any, context: Context) -> BundleChunk:
        raise error

    async def stream(request: Any, context: Context) -> Any:
        yield BundleChunk()
        raise error

    return stream if kind.endswith("stream") else answer


@pytest.mark.parametrize("kind", KINDS)
async def test_mesh_error_reaches_the_client_with_its_details(kind: str) -> None:
    error = MeshError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
        "The queue of worker a is full; try again.",
        metadata={"worker": "a"},
        field_violations=[("sites[2]", "is not finite")],
        precondition_violations=[("CELL", "7n2l.mtz", "another cell")],
        quota_violations=[("worker a", "64 in flight")],
        retry_after=1.5,
    )
    async with probe(kind, raising(kind, error)) as (call, _):
        raised = await failure(kind, call)
    status = status_pb2.Status.FromString(
        dict(raised.trailing_metadata())["grpc-status-details-bin"]
    )
    infos = [
        detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)
    ]
    assert len(infos) == 1
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    trace_id = info.metadata["trace_id"]
    assert (info.domain, info.reason) == ("bxmesh", "QUEUE_FULL")
    assert len(trace_id) == 32
    assert dict(raised.trailing_metadata())["bxmesh-trace-id"] == trace_id
    assert vars(MeshError.from_status(status)) == vars(error)

    seen = from_rpc_error(raised)
    assert type(seen) is client_errors.ResourceExhausted
    assert (seen.reason, seen.message) == ("QUEUE_FULL", error.message)
    assert (seen.retry_after, seen.trace_id) == (1.5, trace_id)
    assert seen.field_violations == (("sites[2]", "is not finite"),)
    assert seen.metadata == {"worker": "a"}


@pytest.mark.parametrize("kind", KINDS)
async def test_crash_is_internal_and_told_to_the_log_alone(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with probe(kind, raising(kind, KeyError("secret path /etc/x"))) as (call, _):
        with caplog.at_level(logging.ERROR, "bxmesh.server"):
            raised = await failure(kind, call)
    seen = from_rpc_error(raised)
    assert type(seen) is client_errors.InternalError
    assert seen.reason == "INTERNAL"
    assert not any(word in str(raised) for word in ("secret", "KeyError", "Traceback", ".py"))
    (record,) = caplog.records
    assert record.exc_info is not None
    assert seen.trace_id in record.getMessage()


async def test_cancellation_from_within_answers_internal() -> None:
    async with probe("unary_unary", raising("unary_unary", asyncio.CancelledError())) as (call, _):
        raised = await failure("unary_unary", call)
    assert raised.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_plain_function_is_no_handler(kind: str) -> None:
    def handler(request: BundleChunk, context: Context) -> Any:
        return [request] if kind == "unary_stream" else request

    async with probe(kind, handler) as (call, _):
        raised = await failure(kind, call)
    assert raised.code() is grpc.StatusCode.INTERNAL


async def test_pydantic_error_names_the_fields() -> None:
    class Box(pydantic.BaseModel):
        edges: list[float]

    async def handler(request: BundleChunk, context: Context) -> BundleChunk:
        Box.model_validate({"edges": [1, "wide"]})
        return request

    async with probe("unary_unary", handler) as (call, _):
        seen = from_rpc_error(await failure("unary_unary", call))
    assert type(seen) is client_errors.InvalidInput
    assert [field for field, _ in seen.field_violations] == ["edges.1"]


async def test_abort_by_the_handler_is_left_alone() -> None:
    async def handler(request: BundleChunk, context: Context) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "not here")

    async with probe("unary_unary", handler) as (call, _):
        seen = from_rpc_error(await failure("unary_unary", call))
    assert type(seen) is client_errors.NotFound
    assert (seen.reason, seen.message) == ("NOT_FOUND", "not here")


async def test_method_without_implementation_is_unimplemented() -> None:
    class Bare(GeometryServiceServicer):
        pass

    def add(server: grpc.aio.Server) -> None:
        add_GeometryServiceServicer_to_server(Bare(), server)  # type: ignore[abstract]

    async with probe("unary_unary", raising("unary_unary", AssertionError()), add=[add]) as (
        _,
        channel,
    ):
        request = job_pb2.GetJobRequest(job_id="a").SerializeToString()
        for method, reason in (("GetJob", "UNIMPLEMENTED"), ("Unheard", "UNKNOWN")):
            call: Any = channel.unary_unary(f"/bxmesh.geometry.v1.GeometryService/{method}")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(request, metadata=AUTHORIZED)
            seen = from_rpc_error(raised.value)
            assert type(seen) is client_errors.Unimplemented
            assert seen.reason == f"METHOD_{reason}"


async def test_status_of_any_length_fits_the_trailers() -> None:
    error = MeshError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        "ångström " * 1000,
        metadata={"residue": "x" * 10_000},
        field_violations=[("f" * 1000, "é" * 1000)] * 1000,
    )
    async with probe("unary_unary", raising("unary_unary", error)) as (call, _):
        seen = from_rpc_error(await failure("unary_unary", call))
    assert type(seen) is client_errors.InvalidInput
    assert seen.message.startswith("ångström") and seen.message.endswith("…")
    assert len(seen.field_violations) == 10


async def test_no_server_is_unavailable() -> None:
    async with grpc.aio.insecure_channel("unix:/nonexistent/bxmesh.sock") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            call: Any = channel.unary_unary("/a.B/C")
            await call(b"")
    seen = from_rpc_error(raised.value)
    assert type(seen) is client_errors.Unavailable
    assert (seen.reason, seen.trace_id) == ("UNAVAILABLE", "")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.not_found("gone"), client_errors.NotFound),
        (errors.invalid_argument("sites", "empty"), client_errors.InvalidInput),
        (errors.failed_precondition("no", reason="NO"), client_errors.FailedPrecondition),
        (errors.resource_exhausted("full"), client_errors.ResourceExhausted),
        (errors.unavailable("away", retry_after=2), client_errors.Unavailable),
        (errors.deadline_exceeded("late"), client_errors.DeadlineExceeded),
        (errors.unauthenticated("who"), client_errors.Unauthenticated),
        (errors.permission_denied("no"), client_errors.PermissionDenied),
        (errors.unimplemented("not yet"), client_errors.Unimplemented),
        (errors.internal("broken"), client_errors.InternalError),
    ],
)
async def test_each_usual_error_has_its_class(
    error: MeshError, kind: type[client_errors.BxmeshError]
) -> None:
    seen = client_errors.from_status(error.to_status("0" * 32))
    assert type(seen) is kind
    assert seen.code is error.code
    assert (seen.reason, seen.message) == (error.reason, error.message)
    assert seen.retry_after == error.retry_after

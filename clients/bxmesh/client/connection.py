"""One channel to the mesh, with retries, deadlines and typed errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import tenacity

from bxmesh.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from bxmesh.client.endpoint import Endpoint
from bxmesh.client.errors import Unavailable, from_rpc_error
from bxmesh.client.signatures import SignatureMode, Signatures
from bxmesh.client.trace import current_trace_id
from bxmesh.client.tracing import tracing_interceptors
from bxmesh.geometry.v1.geometry_service_pb2_grpc import GeometryServiceStub
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

if TYPE_CHECKING:
    from bxmesh.signing import SigningKey

__all__ = ["Connection", "Timeouts", "translated"]

_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

T = TypeVar("T")


@dataclass(frozen=True)
class Timeouts:
    """How long calls may take, in seconds."""

    unary: float = 30.0
    """Calls that answer from what the server knows."""
    calculation: float = 600.0
    """Calls that compute: models, gradients, a session's opening and each of its steps."""
    transfer: float = 3600.0
    """Uploads and downloads."""
    reconnect: float = 60.0
    """How long a watch tries to come back to a mesh that is away."""


@contextmanager
def translated() -> Iterator[None]:
    """Raises a BxmeshError in place of gRPC's."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        # grpc.aio puts this in place of the server's status when the stream ends during a write.
        if error.details() == "Internal error from Core":
            raise Unavailable(
                "the stream broke while it was written to",
                code=grpc.StatusCode.UNAVAILABLE,
                reason="STREAM_BROKEN",
                trace_id=current_trace_id(),
            ) from error
        failure = from_rpc_error(error)
        # A server that stops cancels what arrives in the same moment, without a reason of its own.
        # What the caller cancels is raised as CancelledError and does not come here.
        if failure.code is grpc.StatusCode.CANCELLED and failure.reason == "CANCELLED":
            raise Unavailable(
                "the server cancelled the call, as it does when it stops",
                code=grpc.StatusCode.UNAVAILABLE,
                reason="CALL_CANCELLED",
                trace_id=failure.trace_id or current_trace_id(),
            ) from error
        if failure.reason == "UNAVAILABLE":
            # It is gRPC's own: a server gives a reason.
            failure.message = (
                f"no mesh can be reached; is `bxmesh serve` running? ({failure.message})"
            )
        failure.trace_id = failure.trace_id or current_trace_id()
        raise failure from error


class Connection:
    """A channel and its stubs. Every call ends when its coroutine does."""

    def __init__(
        self,
        endpoint: Endpoint,
        timeouts: Timeouts,
        retries: int,
        signing_key: SigningKey | None = None,
        signatures: SignatureMode = "accept",
    ) -> None:
        self.endpoint = endpoint
        self.timeouts = timeouts
        self.metadata: tuple[tuple[str, str], ...] = (
            (("authorization", f"Bearer {endpoint.api_key}"),) if endpoint.api_key else ()
        )
        self._retries = retries
        self.signatures = Signatures(self, signing_key, signatures)
        self.channel = self._open()
        self.geometry = GeometryServiceStub(self.channel)
        # The generated stubs have no types for asyncio.
        self.agent: Any = AgentServiceStub(self.channel)
        self.registry: Any = RegistryServiceStub(self.channel)

    def __repr__(self) -> str:
        return f"Connection({self.endpoint.address!r})"

    def _open(self) -> grpc.aio.Channel:
        interceptors = tracing_interceptors()
        address, credentials = self.endpoint.address, self.endpoint.credentials
        if credentials is None:
            return grpc.aio.insecure_channel(address, _CHANNEL_OPTIONS, None, interceptors)
        return grpc.aio.secure_channel(address, credentials, _CHANNEL_OPTIONS, None, interceptors)

    async def retried(self, operation: Callable[[], Awaitable[T]], retries: int | None = None) -> T:
        """Returns what the operation returns, repeated while the mesh is unavailable.

        Waits grow exponentially, half of each at random. The operation must be idempotent.
        """
        policy = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            # The four of a usual call take longer than the channel may rest between two attempts to
            # connect: a mesh that is there again is found.
            wait=tenacity.wait_exponential(multiplier=0.1, max=2.5)
            + tenacity.wait_random_exponential(multiplier=0.1, max=2.5),
            stop=tenacity.stop_after_attempt(1 + (self._retries if retries is None else retries)),
            reraise=True,
        )
        async for attempt in policy:
            with attempt:
                return await operation()
        raise AssertionError("a retry policy ends with a result or an error")

    async def unary(
        self, method: Callable[..., Awaitable[T]], request: Any, seconds: float | None = None
    ) -> T:
        """Returns the answer to an idempotent unary call."""

        async def call() -> T:
            with translated():
                return await method(
                    request, timeout=seconds or self.timeouts.unary, metadata=self.metadata
                )

        return await self.retried(call)

    async def pages(
        self, method: Callable[..., Awaitable[T]], request: Any
    ) -> AsyncGenerator[T, None]:
        """Yields the answers to a request that asks for pages, to the last."""
        while True:
            response: Any = await self.unary(method, request)
            yield response
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        await self.channel.close(None)

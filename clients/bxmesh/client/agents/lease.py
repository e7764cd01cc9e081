"""An agent's place in the registry, kept by heartbeats."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from uuid import uuid4

import grpc

from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.agents.live_agents import STATUSES
from bxmesh.client.agents.times import from_timestamp
from bxmesh.client.connection import Connection, translated
from bxmesh.client.errors import (
    BxmeshError,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    NotFound,
    Unavailable,
)
from bxmesh.registry.v1 import agent_pb2 as pb

__all__ = ["Heartbeat", "Lease"]

_CLOSEST_SECONDS = 1.0
_FAREWELL_SECONDS = 5.0


@dataclass(frozen=True)
class Heartbeat:
    """What an agent says of itself."""

    status: str
    """active, busy or draining."""
    load: float
    """The part of its capacity in use, 0 to 1."""
    active_tasks: int
    """What it is at."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Facts for filters and people."""


class Lease:
    """The registration of an agent: made, kept, made again when it was lost, given up."""

    def __init__(
        self,
        connection: Connection,
        registration: pb.RegisterAgentRequest,
        describe: Callable[[], Heartbeat],
        on_drain: Callable[[], None],
    ) -> None:
        self.lease_id = ""
        """The lease; empty before the registration."""
        self.registrations = 0
        """How often it was made."""
        self.on_renewed: Callable[[], None] = lambda: None
        """What is called when another lease has taken the place of a lost one."""
        self._connection = connection
        self._registration = registration
        self._describe = describe
        self._on_drain = on_drain
        self._seconds = 30.0
        self._registered: datetime | None = None
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()

    async def register(self) -> None:
        """Registers the agent. Waits for a mesh that is away, as long as a watch would."""
        now = self._describe()
        request = self._registration
        request.request_id = uuid4().hex
        request.status = STATUSES.number(now.status)
        request.metadata.clear()
        request.metadata.update(now.metadata)
        backoff = Backoff(self._connection.timeouts.reconnect, request.agent_id)
        while True:
            try:
                response = await self._connection.unary(
                    self._connection.registry.RegisterAgent, request
                )
                backoff.reset()
                break
            except Unavailable as error:
                await backoff.wait(error)
        self.lease_id = response.lease_id
        self.registrations += 1
        self._seconds = float(response.lease_ttl_seconds)
        self._registered = from_timestamp(response.agent.register_time)

    async def renew(self, lost_lease_id: str) -> None:
        """Registers again when a lease was lost, unless that has happened meanwhile.

        Raises FailedPrecondition (AGENT_REPLACED) when another process has taken the name.
        """
        async with self._lock:
            if self.lease_id != lost_lease_id:
                return
            await self._check_successor()
            await self.register()
        self.on_renewed()

    async def _check_successor(self) -> None:
        request = pb.GetAgentRequest(agent_id=self._registration.agent_id)
        try:
            response = await self._connection.unary(self._connection.registry.GetAgent, request)
        except NotFound:
            return
        registered = from_timestamp(response.agent.register_time)
        if (
            registered is not None
            and self._registered is not None
            and registered > self._registered
        ):
            raise FailedPrecondition(
                f"another process has registered as {request.agent_id}; give one of them another name",
                code=grpc.StatusCode.FAILED_PRECONDITION,
                reason="AGENT_REPLACED",
                metadata={"agent_id": request.agent_id},
            )

    def changed(self) -> None:
        """Notes that the next heartbeat has something to say, and need not wait."""
        self._changed.set()

    async def keep(self) -> None:
        """Beats until it is cancelled."""
        backoff = Backoff()
        while True:
            call = self._connection.registry.KeepAlive(
                self._heartbeats(), metadata=self._connection.metadata
            )
            try:
                with translated():
                    async for response in call:
                        backoff.reset()
                        if response.lease_ttl_seconds == 0:
                            await self.renew(response.lease_id)
                        if response.requested_status == pb.AGENT_STATUS_DRAINING:
                            self._on_drain()
                raise Unavailable("the mesh ended the heartbeats", reason="STREAM_ENDED")
            except (Unavailable, DeadlineExceeded, InternalError) as error:
                await backoff.wait(error)
            finally:
                call.cancel()

    async def _heartbeats(self) -> AsyncIterator[pb.KeepAliveRequest]:
        told: dict[str, str] = {}
        while True:
            self._changed.clear()
            now = self._describe()
            gone = dict.fromkeys(told.keys() - now.metadata.keys(), "")
            new = {key: value for key, value in now.metadata.items() if told.get(key) != value}
            yield pb.KeepAliveRequest(
                lease_id=self.lease_id,
                status=STATUSES.number(now.status),
                current_load=now.load,
                active_tasks=now.active_tasks,
                metadata={**gone, **new},
            )
            told = now.metadata
            next_beat = time.monotonic() + self._seconds / 3
            await asyncio.sleep(min(_CLOSEST_SECONDS, self._seconds / 3))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(next_beat - time.monotonic(), 0.0)):
                    await self._changed.wait()

    async def give_up(self, reason: str) -> None:
        """Deregisters the agent, as far as the mesh can be reached in a moment."""
        request = pb.DeregisterAgentRequest(
            request_id=uuid4().hex,
            agent_id=self._registration.agent_id,
            lease_id=self.lease_id,
            reason=reason[:1024],
        )
        with suppress(BxmeshError):
            await self._connection.unary(
                self._connection.registry.DeregisterAgent, request, _FAREWELL_SECONDS
            )

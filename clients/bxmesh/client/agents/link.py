"""The connection of an agent to its mailbox, which comes back when it is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from uuid import uuid4

import grpc

from bxmesh.agent.v1 import delivery_pb2 as pb
from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.agents.inbox import Inbox
from bxmesh.client.agents.lease import Lease
from bxmesh.client.agents.stats import AgentStats
from bxmesh.client.connection import Connection, translated
from bxmesh.client.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidInput,
    ResourceExhausted,
    Unavailable,
)

__all__ = ["Link"]

_log = logging.getLogger(__name__)

_PASSING = (Unavailable, ResourceExhausted, DeadlineExceeded, InternalError)
_LEASE_OVER = ("LEASE_LOST", "AGENT_NOT_REGISTERED")


class Link:
    """Hands deliveries to the inbox and its answers to the mesh."""

    def __init__(
        self,
        connection: Connection,
        agent_id: str,
        lease: Lease,
        inbox: Inbox,
        stats: AgentStats,
        concurrency: int,
    ) -> None:
        self.attached = asyncio.Event()
        """Whether the agent was ever attached."""
        self._connection = connection
        self._agent_id = agent_id
        self._connection_id = uuid4().hex
        self._lease = lease
        self._inbox = inbox
        self._stats = stats
        self._concurrency = concurrency
        self._outbox: asyncio.Queue[pb.ConnectRequest | None] | None = None
        self._draining = False
        inbox.post = self._post
        lease.on_renewed = self._attach_again

    def drain(self) -> None:
        """Takes nothing new; `run` returns when all is answered."""
        self._draining = True
        self._post(pb.ConnectRequest(drain=pb.Drain()))

    async def run(self) -> None:
        """Keeps the agent attached until it has drained. Raises what no repetition cures."""
        backoff = Backoff(who=self._agent_id)
        while not self._draining or self._inbox.held:
            lease_id = self._lease.lease_id
            try:
                await self._attach(lease_id, backoff)
            except FailedPrecondition as error:
                if error.reason in _LEASE_OVER:
                    await self._renew(lease_id, backoff)
                elif error.code is grpc.StatusCode.ABORTED:
                    # Another stream of this connection has taken its place; that one may be dead.
                    await backoff.wait(error)
                else:
                    raise
            except InvalidInput:
                if not self._inbox.strip_answers():
                    raise
            except _PASSING as error:
                _log.info("%s attaches again: %s", self._agent_id, error)
                await backoff.wait(error)
        await self._inbox.quiet()

    async def _renew(self, lease_id: str, backoff: Backoff) -> None:
        try:
            await self._lease.renew(lease_id)
        except _PASSING as error:
            await backoff.wait(error)

    async def _attach(self, lease_id: str, backoff: Backoff) -> None:
        """Serves one stream to its end."""
        outbox: asyncio.Queue[pb.ConnectRequest | None] = asyncio.Queue()
        outbox.put_nowait(pb.ConnectRequest(hello=self._hello(lease_id)))
        for answer in self._inbox.unsettled:
            outbox.put_nowait(pb.ConnectRequest(answer=answer))
        if self._draining:
            outbox.put_nowait(pb.ConnectRequest(drain=pb.Drain()))
        self._outbox = outbox
        call = self._connection.agent.Connect(_requests(outbox), metadata=self._connection.metadata)
        extending: asyncio.Task[None] | None = None
        try:
            with translated():
                async for response in call:
                    if response.HasField("welcome"):
                        backoff.reset()
                        extending = asyncio.create_task(self._extend(response.welcome))
                    self._take(response)
            if not self._draining and lease_id == self._lease.lease_id:
                raise Unavailable("the mesh ended the agent's stream", reason="STREAM_ENDED")
        finally:
            self._outbox = None
            outbox.put_nowait(None)
            call.cancel()
            if extending is not None:
                extending.cancel()

    def _hello(self, lease_id: str) -> pb.Hello:
        credit = 0 if self._draining else max(self._concurrency - self._inbox.at_work, 0)
        return pb.Hello(
            agent_id=self._agent_id,
            lease_id=lease_id,
            connection_id=self._connection_id,
            initial_credit=credit,
            held_delivery_ids=self._inbox.held,
        )

    def _take(self, response: pb.ConnectResponse) -> None:
        match response.WhichOneof("response"):
            case "welcome":
                self._stats.attachments += 1
                self.attached.set()
                self._inbox.lost(list(response.welcome.lost_delivery_ids))
            case "delivery":
                self._inbox.take(response.delivery)
            case "settled":
                self._inbox.settled(response.settled)
            case "cancel":
                self._inbox.cancel(response.cancel)

    async def _extend(self, welcome: pb.Welcome) -> None:
        while True:
            await asyncio.sleep(max(welcome.delivery_ttl_seconds, 1) / 3)
            self._inbox.extend()

    def _attach_again(self) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(None)

    def _post(self, request: pb.ConnectRequest) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(request)


async def _requests(
    outbox: asyncio.Queue[pb.ConnectRequest | None],
) -> AsyncIterator[pb.ConnectRequest]:
    while (request := await outbox.get()) is not None:
        yield request

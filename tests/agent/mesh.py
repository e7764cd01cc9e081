"""Servers with registry and agent service on unix sockets, and agents that speak to them by hand."""

from __future__ import annotations

import asyncio
import atexit
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import grpc
from redis.asyncio import Redis

from bxmesh.agent.v1 import agent_service_pb2, delivery_pb2, message_pb2
from bxmesh.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from bxmesh.registry.v1 import registry_service_pb2
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.server.agent.service import AgentService, agent_service
from bxmesh.server.interceptors import AuthenticationInterceptor, server_interceptors
from bxmesh.server.registry.service import RegistryService
from bxmesh.server.security.data_loss import ALL_PASS, DataGuard
from bxmesh.server.security.message_rules import ALL_ALLOWED, MessageRules
from bxmesh.server.security.signatures import UNVERIFIED, SignatureSource
from bxmesh.server.settings import Settings
from bxmesh.server.streams import connect
from bxmesh.server.streams.seals import seals_of
from bxmesh.server.tasks.running import running_tasks
from bxmesh.server.unimplemented import offer
from bxmesh.work.v1 import work_pb2
from tests.registry.mesh import ALICE, Names, anybody, refused, registration

__all__ = ["ALICE", "Link", "Mesh", "agents", "envelope", "refused"]

SECONDS = 20.0
Metadata = tuple[tuple[str, str], ...]


@dataclass
class Mesh:
    """One running server."""

    service: AgentService
    server: grpc.aio.Server
    redis: Redis
    stub: Any
    registry: Any
    address: str

    async def register(self, agent_id: str, *capabilities: str, **fields: Any) -> str:
        """Registers an agent of Alice; returns the id of its lease."""
        metadata = fields.pop("metadata_", ALICE)
        answer = await self.registry.RegisterAgent(
            registration(agent_id, *capabilities, **fields), metadata=metadata
        )
        lease_id: str = answer.lease_id
        return lease_id

    @asynccontextmanager
    async def connected(
        self, agent_id: str, *, lease_id: str = "", metadata: Metadata = ALICE, **hello: Any
    ) -> AsyncIterator[Link]:
        """An agent, registered unless a lease is given, on a connection with credit 1."""
        lease_id = lease_id or await self.register(agent_id)
        hello.setdefault("initial_credit", 1)
        call = self.stub.Connect(metadata=metadata)
        link = Link(call, lease_id)
        try:
            await link.say(hello=delivery_pb2.Hello(agent_id=agent_id, lease_id=lease_id, **hello))
            first = await link.hear()
            link.welcome = first.welcome
            yield link
        finally:
            call.cancel()

    async def send(self, *, metadata: Metadata = ALICE, **fields: Any) -> Any:
        """Sends a message; the fields of the envelope are those of `envelope`."""
        request = {
            name: fields.pop(name)
            for name in ("delivery_mode", "hold_for_recipient", "reply_timeout", "request_id")
            if name in fields
        }
        return await self.stub.SendMessage(
            message_pb2.SendMessageRequest(envelope=envelope(**fields), **request),
            metadata=metadata,
        )


class Link:
    """A connection, message by message."""

    def __init__(self, call: Any, lease_id: str) -> None:
        self.call = call
        self.lease_id = lease_id
        self.welcome = delivery_pb2.Welcome()

    async def say(self, **request: Any) -> None:
        await self.call.write(delivery_pb2.ConnectRequest(**request))

    async def hear(self) -> Any:
        """The next message; raises what ended the stream."""
        async with asyncio.timeout(SECONDS):
            response = await self.call.read()
        assert response is not grpc.aio.EOF, "the stream has ended"
        return response

    async def delivery(self) -> Any:
        """The next delivery, which must come next."""
        response = await self.hear()
        assert response.HasField("delivery"), response
        return response.delivery

    async def settled(self) -> Any:
        response = await self.hear()
        assert response.HasField("settled"), response
        return response.settled

    async def credit(self, deliveries: int = 1) -> None:
        await self.say(credit=delivery_pb2.Credit(deliveries=deliveries))

    async def answer(
        self, delivery: Any, verdict: Any = delivery_pb2.VERDICT_ACK, **how: Any
    ) -> Any:
        """Answers a delivery and returns how that was settled."""
        await self.say(
            answer=delivery_pb2.Answer(delivery_id=delivery.delivery_id, verdict=verdict, **how)
        )
        return await self.settled()

    async def ended(self) -> None:
        """Waits for the end of the stream; raises its error."""
        async with asyncio.timeout(SECONDS):
            while await self.call.read() is not grpc.aio.EOF:
                pass
            status = await self.call.code()
        assert status is grpc.StatusCode.OK


def envelope(
    recipient: str = "", message_type: str = "test.message", json: str = "", **fields: Any
) -> Any:
    """A message that carries JSON."""
    payload = message_pb2.Payload(json=message_pb2.JsonPayload(json=json)) if json else None
    return message_pb2.Envelope(
        recipient=recipient, message_type=message_type, payload=payload, **fields
    )


# The key that all servers share whose tests do not say otherwise.
MESH_KEY_FILE = Path(gettempdir()) / f"bx-mesh-{os.getpid()}.key"
SEALS = seals_of(MESH_KEY_FILE)
atexit.register(MESH_KEY_FILE.unlink, missing_ok=True)


def sealed(item: work_pb2.WorkItem, attempts: int = 0) -> bytes:
    """An entry of a mailbox as a server makes it."""
    entry = SEALS.entry("agents", item)
    entry.attempts = attempts
    return entry.SerializeToString()


@asynccontextmanager
async def agents(
    redis_url: str,
    *,
    rules: MessageRules = ALL_ALLOWED,
    data: DataGuard = ALL_PASS,
    signatures: SignatureSource = UNVERIFIED,
    **settings: Any,
) -> AsyncIterator[Mesh]:
    """A server; several may share one Redis."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bx-")))
        redis = connect(redis_url)
        stack.push_async_callback(redis.aclose)
        address = f"unix:{folder / 'server.sock'}"
        server = grpc.aio.server(
            interceptors=server_interceptors(AuthenticationInterceptor([Names()], anybody)),
            options=[("grpc.so_reuseport", 0)],
        )
        chosen = Settings(state_dir=folder, **{"mesh_key_file": MESH_KEY_FILE, **settings})
        registry = await stack.enter_async_context(RegistryService(redis))
        service = await stack.enter_async_context(
            agent_service(
                chosen,
                redis,
                await stack.enter_async_context(running_tasks(chosen, redis)),
                rules=rules,
                data=data,
                signatures=signatures,
            )
        )
        offer(server, registry_service_pb2, registry)
        offer(server, agent_service_pb2, service)
        server.add_insecure_port(address)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield Mesh(
            service, server, redis, AgentServiceStub(channel), RegistryServiceStub(channel), address
        )

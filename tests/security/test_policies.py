"""Policies: applied in versions, kept to at once by all servers, and refused where they are wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.errors import MeshError
from bxmesh.server.security.events import IGNORED
from bxmesh.server.security.message_rules import MessageRules
from bxmesh.server.security.patterns import matcher
from bxmesh.server.security.policy_difference import policy_difference
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

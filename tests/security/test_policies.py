"""Policies: applied in versions, kept to at once by all servers, and refused where they are wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from bxmesh.security.v1 import audit_pb2
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.errors import MeshError
from bxmesh.server.security.addresses import admitted, rules_of
from bxmesh.server.security.events import IGNORED
from bxmesh.server.security.mesh_key import MeshKey
from bxmesh.server.security.message_rules import MessageRules
from bxmesh.server.security.mirror import Mirror
from bxmesh.server.security.patterns import matcher
from bxmesh.server.security.policies import Policies
from bxmesh.server.security.policy_checks import check_policy
from bxmesh.server.security.policy_difference import policy_difference
from bxmesh.server.security.records import Records
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
        (pb.Policy(ip_rules=[pb.IpRule(network="::ffff:0:0/96")]), "policy.ip_rules[0].network"),
        (limited(rate=-1), "policy.rate_limits[0].rate"),
        (limited(rate=1e-300), "policy.rate_limits[0].rate"),
        (limited(rate=float("nan")), "policy.rate_limits[0].rate"),
        (limited(name="\x1b[2J"), "policy.rate_limits[0].name"),
        (limited(methods=["/bxmesh.registry.v1.RegistrySrevice/*"]), "rate_limits[0].methods[0]"),
        (limited(methods=[LIST, "*a" * 128]), "policy.rate_limits[0].methods[1]"),
        (
            pb.Policy(
                message_permissions=[
                    pb.MessagePermission(sender="*", recipient="*" * 99, message_type="*")
                ]
            ),
            "policy.message_permissions[0].recipient",
        ),
        (pb.Policy(abuse_block=pb.AbuseBlock(violations=1)), "policy.abuse_block.window"),
        (
            pb.Policy(ip_rules=[pb.IpRule(network="192.0.2.1", reason="x" * 1000)] * 300),
            "policy",
        ),
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
    assert server.guard.mesh.policies.policy_version == 0


async def test_all_that_is_wrong_is_named_at_once(server: Server) -> None:
    policy = limited(methods=["/no.such/One", "/no.such/Two"])
    policy.ip_rules.add(network="nowhere")
    error = await refused(
        server.security.ApplyPolicy(
            pb.ApplyPolicyRequest(policy=policy, validate_only=True), metadata=ADMIN
        )
    )
    assert [field for field, _ in error.field_violations] == [
        "policy.rate_limits[0].methods[0]",
        "policy.rate_limits[0].methods[1]",
        "policy.ip_rules[0].network",
    ]


def test_nobody_shuts_themselves_out() -> None:
    closed = pb.Policy(ip_rules=[pb.IpRule(network="0.0.0.0/0"), pb.IpRule(network="::/0")])
    for address in ("192.0.2.1", "2001:db8::1"):
        with pytest.raises(MeshError) as raised:
            check_policy(closed, address)
        assert raised.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert raised.value.reason == "WOULD_LOCK_OUT"
        closed.ip_rules.insert(0, pb.IpRule(network=address, allow=True))
        check_policy(closed, address)
        del closed.ip_rules[0]
    # Who is on the machine is let in whatever the rules are.
    for address in ("127.0.0.1", "::1", "unix"):
        check_policy(closed, address)


async def test_only_who_administers_security_applies_policies(server: Server) -> None:
    alice = await server.identity("alice", "audit_read", roles=["operator"])
    for call in (
        server.security.ApplyPolicy(pb.ApplyPolicyRequest(policy=limited()), metadata=alice),
        server.security.GetPolicy(pb.GetPolicyRequest(), metadata=alice),
    ):
        assert (await refused(call)).code is grpc.StatusCode.PERMISSION_DENIED
    assert server.guard.mesh.policies.policy_version == 0


async def test_a_policy_is_applied_once_and_audited(server: Server) -> None:
    answers = [
        await apply(server, limited(burst=7), request_id="once", comment="less") for _ in range(3)
    ]
    assert [answer.policy.version for answer in answers] == [1, 1, 1]
    assert answers[0].policy.identity_id == "admin"
    query = audit_pb2.QueryAuditLogRequest(event_types=["policy.applied"])
    entries = [
        entry
        async for answer in server.security.QueryAuditLog(query, metadata=ADMIN)
        for entry in answer.entries
    ]
    (entry,) = entries
    assert (entry.resource, entry.identity_id) == ("policy/1", "admin")
    assert entry.details["comment"] == "less"
    assert "rate_limits[few].burst" in entry.details["paths"]


async def test_of_many_who_apply_at_once_with_a_version_one_wins(
    redis: Redis, tmp_path: Path
) -> None:
    async with serving(redis, tmp_path) as one, serving(redis, tmp_path) as two:
        await apply(one, limited())
        await two.guard.mesh.mirror.catch_up()
        answers = await asyncio.gather(
            *(
                apply((one, two)[n % 2], limited(burst=10 + n), expected_version=1)
                for n in range(8)
            ),
            return_exceptions=True,
        )
        won = [each for each in answers if isinstance(each, pb.ApplyPolicyResponse)]
        lost = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert (len(won), len(lost)) == (1, 7)
        assert {each.code() for each in lost} == {grpc.StatusCode.ABORTED}
        for server in (one, two):
            await server.guard.mesh.mirror.catch_up()
            assert server.guard.mesh.policies.policy == won[0].policy.policy


async def test_the_oldest_versions_are_forgotten(redis: Redis) -> None:
    async with Mirror(Records(redis, MeshKey(bytes(32))), ["policy"]) as mirror:
        policies = Policies(mirror)
        for version in (1, 2, 999, 1000, 1001, 1002):
            await mirror.commit(policies.changes(pb.PolicyVersion(version=version)))
        kept = [each.version for each in policies.newest_first()]
        assert kept == [1002, 1001, 1000, 999]
        assert policies.policy_version == 1002


async def test_pages_of_large_policies_can_be_received(server: Server) -> None:
    large = pb.Policy(
        ip_rules=[pb.IpRule(network="192.0.2.1", allow=True, reason="x" * 1000)] * 240
    )
    for _ in range(20):
        await apply(server, large)
    request, versions = pb.ListPolicyVersionsRequest(), list[int]()
    while True:
        page = await server.security.ListPolicyVersions(request, metadata=ADMIN)
        versions += [each.version for each in page.policies]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert versions == list(range(20, 0, -1))


texts = st.text(max_size=20) | st.sampled_from(
    ["*", LIST, "/bxmesh.*", "192.0.2.0/24", "::/0", "::1/129", "1"]
)
policies = st.builds(
    pb.Policy,
    rate_limits=st.lists(
        st.builds(
            pb.RateLimit,
            name=texts,
            methods=st.lists(texts, max_size=3),
            rate=st.floats(0, 1e6),
            burst=st.integers(1, 1_000_000),
        ),
        max_size=3,
    ),
    ip_rules=st.lists(st.builds(pb.IpRule, network=texts, allow=st.booleans()), max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(policies)
def test_a_policy_that_passes_can_be_worked_with(policy: pb.Policy) -> None:
    try:
        check_policy(policy, "192.0.2.1")
    except MeshError as error:
        assert error.reason in ("POLICY_INVALID", "WOULD_LOCK_OUT")
        return
    assert admitted(rules_of(policy), "192.0.2.1")
    for limit in policy.rate_limits:
        matcher(limit.methods)
    paths = [change.path for change in policy_difference(pb.Policy(), policy)]
    assert len(paths) == len(set(paths))


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


def test_names_cannot_pass_for_other_paths() -> None:
    after = pb.Policy(
        rate_limits=[pb.RateLimit(name=name, burst=1) for name in ("a].burst", "0", "x\n", "é b")]
    )
    paths = {change.path for change in policy_difference(pb.Policy(), after)}
    assert {path.removesuffix(".name") for path in paths if path.endswith(".name")} == {
        'rate_limits["a].burst"]',
        'rate_limits["0"]',
        'rate_limits["x\\n"]',
        "rate_limits[é b]",
    }


async def test_a_policy_cuts_the_life_of_keys(server: Server) -> None:
    await apply(server, pb.Policy(max_key_lifetime=Duration(seconds=3600)))
    await server.identity("alice")
    key, _ = await server.key("alice", lifetime=Duration(seconds=86400))
    assert key.expire_time.seconds - key.create_time.seconds == 3600

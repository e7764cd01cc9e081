"""Client addresses: how they are read, which are refused, and that nobody talks their way in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis

from bxmesh.registry.v1 import agent_pb2, registry_service_pb2
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.security.v1 import audit_pb2, violation_pb2
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.interceptors import limits as limits_module
from bxmesh.server.registry.service import RegistryService
from bxmesh.server.security.addresses import (
    IP_BLOCK,
    Addresses,
    address_of,
    admitted,
    is_local,
    rules_of,
    source_of,
)
from bxmesh.server.security.events import ViolationEvent
from bxmesh.server.security.mesh_key import MeshKey
from bxmesh.server.security.mirror import Mirror
from bxmesh.server.security.policies import Policies
from bxmesh.server.security.recorder import Recorder
from bxmesh.server.security.records import Change, Records
from bxmesh.server.unimplemented import offer
from tests.processes import until
from tests.security.mesh import ADMIN, Server, bearer, refused, serving
from tests.security.test_policies import apply

STRANGER = "192.0.2.9"
LISTED = agent_pb2.ListAgentsRequest()


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:5000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("ipv6:[2001:DB8:0::1]:5000", "2001:db8::1"),
        ("ipv6:[::1]:5000", "::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::1"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:5000", "192.0.2.1"),
        ("unix:", "unix"),
        ("unix:/tmp/x.sock", "unix"),
        ("unix:/tmp/ipv4:192.0.2.1:5000", "unix"),
        ("unix-abstract:%00x", "unix-abstract"),
        ("ipv4:", ""),
        ("", ""),
    ],
)
def test_peers_have_addresses(peer: str, address: str) -> None:
    assert address_of(peer) == address


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.255.0.8", True),
        ("::1", True),
        ("unix", True),
        ("unix-abstract", True),
        (STRANGER, False),
        ("2001:db8::1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("vsock", False),
        ("nonsense", False),
    ],
)
def test_what_is_on_this_machine(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_an_ipv6_host_has_a_whole_network() -> None:
    assert (
        source_of("2001:db8:0:1:aaaa::1") == source_of("2001:db8:0:1:bbbb::2") == "2001:db8:0:1::"
    )
    assert source_of("2001:db8:0:2::1") != source_of("2001:db8:0:1::1")
    assert source_of(STRANGER) == STRANGER
    assert source_of("unix") == "unix"
    assert source_of("::1") == "::1"


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


def abuse(violations: int = 3, window: int = 60, duration: int = 60) -> pb.Policy:
    return pb.Policy(
        abuse_block=pb.AbuseBlock(
            violations=violations,
            window=Duration(seconds=window),
            block_duration=Duration(seconds=duration),
        )
    )


def violation(address: str) -> ViolationEvent:
    return ViolationEvent(
        violation_pb2.VIOLATION_KIND_AUTHENTICATION,
        violation_pb2.SEVERITY_LOW,
        "rule",
        "message",
        address=address,
    )


@asynccontextmanager
async def guarding(redis: Redis, policy: pb.Policy) -> AsyncIterator[tuple[Addresses, Mirror]]:
    """The addresses of one server."""
    async with Mirror(Records(redis, MeshKey(bytes(32))), ["policy", IP_BLOCK]) as mirror:
        policies = Policies(mirror)
        if not policies.policy_version:
            await mirror.commit(policies.changes(pb.PolicyVersion(version=1, policy=policy)))
        async with Addresses(redis, mirror, policies) as addresses:
            yield addresses, mirror


async def test_abuse_blocks_an_address_on_every_server_for_a_while(redis: Redis) -> None:
    async with guarding(redis, abuse()) as (first, _), guarding(redis, abuse()) as (second, _):
        first.violated(violation(STRANGER))
        second.violated(violation(STRANGER))
        for _ in range(9):
            first.violated(violation("127.0.0.1"))
            first.violated(violation("unix"))
            first.violated(violation(""))
        second.violated(violation(STRANGER))
        await until(lambda: first.refusal(STRANGER) is not None)
        await until(lambda: second.refusal(STRANGER) is not None)
        error = second.refusal(STRANGER)
        assert error is not None
        assert error.reason == "ADDRESS_BLOCKED"
        assert error.retry_after is not None and 0 < error.retry_after <= 61
        for address in ("192.0.2.8", "127.0.0.1", "unix", ""):
            assert first.refusal(address) is None
        assert [block.address for block in second.blocks()] == [STRANGER]


async def test_abuse_from_all_over_an_ipv6_network_is_of_one(redis: Redis) -> None:
    async with guarding(redis, abuse()) as (addresses, _):
        for host in range(3):
            addresses.violated(violation(f"2001:db8::{host}"))
        await until(lambda: addresses.refusal("2001:db8::ffff") is not None)
        assert addresses.refusal("2001:db8:0:1::1") is None


async def test_a_block_ends_and_makes_room(redis: Redis) -> None:
    async with guarding(redis, abuse(violations=1)) as (addresses, mirror):
        past = Timestamp(seconds=1)
        for number in range(20):
            block = pb.IpBlock(address=f"198.51.100.{number}", expire_time=past)
            await mirror.commit([Change(IP_BLOCK, block.address, 0, block.SerializeToString())])
        assert addresses.refusal("198.51.100.1") is None
        assert addresses.blocks() == []
        addresses.violated(violation(STRANGER))
        await until(lambda: addresses.refusal(STRANGER) is not None)
        await until(lambda: set(mirror.all(IP_BLOCK)) == {STRANGER})
        # One that was refused before may be again.
        addresses.violated(violation("198.51.100.1"))
        await until(lambda: addresses.refusal("198.51.100.1") is not None)


async def test_a_flood_of_addresses_takes_bounded_room(redis: Redis) -> None:
    async with guarding(redis, abuse(violations=100)) as (addresses, _):
        for number in range(30_000):
            addresses.violated(violation(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"))
        assert len(addresses._counts) <= 10_000


async def test_violations_of_long_ago_do_not_count(redis: Redis) -> None:
    async with guarding(redis, abuse(violations=2)) as (addresses, _):
        addresses.violated(violation(STRANGER))
        key = f"bxmesh:{{security}}:abuse:{STRANGER}"

        async def counted() -> bool:
            return bool(await redis.exists(key))

        await until(counted)
        assert 0 < await redis.ttl(key) <= 60
        await redis.delete(key)
        addresses.violated(violation(STRANGER))
        await until(counted)
        assert addresses.refusal(STRANGER) is None


@asynccontextmanager
async def over_tcp(server: Server, redis: Redis) -> AsyncIterator[Any]:
    """The registry behind the same guard on a port."""
    async with RegistryService(redis) as registry:
        tcp = grpc.aio.server(
            interceptors=server.guard.interceptors(), options=[("grpc.so_reuseport", 0)]
        )
        offer(tcp, registry_service_pb2, registry)
        port = tcp.add_insecure_port("127.0.0.1:0")
        await tcp.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield RegistryServiceStub(channel)
        finally:
            registry.drain()
            await tcp.stop(0)


@pytest.fixture
async def server(redis: Redis) -> AsyncIterator[Server]:
    async with serving(redis) as server:
        yield server


def pretend(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Has every caller come from an address: tests have none but this machine's."""
    monkeypatch.setattr(limits_module, "address_of", lambda peer: address)


async def test_refused_addresses_get_nothing_and_are_recorded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await server.identity("alice", "registry_read")
    await apply(server, pb.Policy(ip_rules=[pb.IpRule(network="192.0.2.0/24")]))
    with monkeypatch.context() as patch:
        pretend(patch, STRANGER)
        for metadata in (alice, ADMIN, None, bearer("garbage")):
            error = await refused(server.registry.ListAgents(LISTED, metadata=metadata))
            assert (error.code, error.reason) == (
                grpc.StatusCode.PERMISSION_DENIED,
                "ADDRESS_REFUSED",
            )
        pretend(patch, "198.51.100.1")
        await server.registry.ListAgents(LISTED, metadata=alice)
    request = violation_pb2.ListViolationsRequest(
        filter=violation_pb2.ViolationFilter(
            kinds=[violation_pb2.VIOLATION_KIND_IP], address=STRANGER
        )
    )

    async def recorded() -> bool:
        answer = await server.security.ListViolations(request, metadata=ADMIN)
        return bool(answer.violations)

    await until(recorded)


async def test_made_up_methods_of_strangers_do_not_flood_what_is_recorded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = server.guard.mesh.events
    assert isinstance(events, Recorder)
    await events.flush()
    async with grpc.aio.insecure_channel(server.address) as channel:
        for refusing in (False, True):
            if refusing:
                await apply(server, pb.Policy(ip_rules=[pb.IpRule(network="192.0.2.0/24")]))
                pretend(monkeypatch, STRANGER)
            for number in range(50):
                call: Any = channel.unary_unary(f"/made.up.Service{number}/{'x' * 1000}")
                await refused(call(b""))
            assert len(events._waiting) < 5


async def test_what_callers_say_of_their_address_counts_for_nothing(
    server: Server, redis: Redis
) -> None:
    alice = await server.identity("alice", "registry_read")
    policy = pb.Policy(
        ip_rules=[pb.IpRule(network="192.0.2.0/24")],
        rate_limits=[pb.RateLimit(name="ip", scope=pb.RATE_LIMIT_SCOPE_IP, rate=0.001, burst=2)],
    )
    async with over_tcp(server, redis) as stub:
        await apply(server, policy)
        for number, address in enumerate((STRANGER, "198.51.100.1", "198.51.100.2")):
            headers = (
                *alice,
                ("x-forwarded-for", address),
                ("x-real-ip", address),
                ("forwarded", f"for={address}"),
            )
            call = stub.ListAgents(LISTED, metadata=headers)
            if number < 2:
                await call
            else:
                assert (await refused(call)).reason == "RATE_LIMITED"


async def test_failed_logins_lead_to_a_block_and_an_admin_ends_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply(server, abuse(violations=5))
    authentication = server.guard.authentication
    with monkeypatch.context() as patch:
        pretend(patch, "2001:db8::7")
        patch.setattr(authentication, "_address_of", lambda peer: "2001:db8::7")
        reasons = set()

        async def blocked() -> bool:
            call = server.registry.ListAgents(LISTED, metadata=bearer("bx_guess"))
            reasons.add((await refused(call)).reason)
            return "ADDRESS_BLOCKED" in reasons

        await until(blocked)
        assert reasons == {"KEY_INVALID", "ADDRESS_BLOCKED"}
        error = await refused(server.registry.ListAgents(LISTED, metadata=ADMIN))
        assert error.reason == "ADDRESS_BLOCKED"
    listed = await server.security.ListIpBlocks(pb.ListIpBlocksRequest(), metadata=ADMIN)
    assert [block.address for block in listed.blocks] == ["2001:db8::"]
    # Any address of the network will do, however it is written.
    request = pb.DeleteIpBlockRequest(address="2001:DB8:0::99", request_id="once")
    for _ in range(2):
        await server.security.DeleteIpBlock(request, metadata=ADMIN)
    assert server.guard.mesh.addresses.refusal("2001:db8::7") is None
    request.request_id = ""
    error = await refused(server.security.DeleteIpBlock(request, metadata=ADMIN))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "BLOCK_NOT_FOUND")

    async def events() -> list[str]:
        query = audit_pb2.QueryAuditLogRequest(resource_prefix="address/2001:db8::")
        answers = server.security.QueryAuditLog(query, metadata=ADMIN)
        return [entry.event_type async for answer in answers for entry in answer.entries]

    async def audited() -> bool:
        return set(await events()) == {"ip_block.created", "ip_block.deleted"}

    await until(audited)

"""Circuit breakers: shared by all servers, one trial at a time, by the policy in force."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from bxmesh.security.v1 import audit_pb2, violation_pb2
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.security.circuit_breakers import ALL_CLOSED, CircuitBreakers
from bxmesh.server.security.events import AuditEvent, ViolationEvent
from bxmesh.server.streams import connect
from tests.conftest import start_valkey
from tests.processes import until
from tests.security.mesh import ADMIN, refused, serving
from tests.security.test_policies import apply

TARGET = "agent/a"
SECONDS = 600


class Source:
    """A policy that is put into force here."""

    def __init__(self, *breakers: pb.CircuitBreaker) -> None:
        self.policy = pb.Policy(circuit_breakers=breakers)
        self.policy_version = 1

    def apply(self, *breakers: pb.CircuitBreaker) -> None:
        self.policy = pb.Policy(circuit_breakers=breakers)
        self.policy_version += 1


class Events:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    async def audit(self, event: AuditEvent) -> None:
        raise AssertionError(event)

    def note(self, event: AuditEvent) -> None:
        self.told.append((event.event_type, event.resource))

    def violation(self, event: ViolationEvent) -> None:
        raise AssertionError(event)


def breaker(target: str = "agent/*", failures: int = 3, **fields: Any) -> pb.CircuitBreaker:
    made = pb.CircuitBreaker(target=target, failure_threshold=failures, **fields)
    made.open_duration.seconds = SECONDS
    return made


class Pair:
    """Two servers on one Redis."""

    def __init__(self, redis: Redis, *breakers: pb.CircuitBreaker) -> None:
        self.redis = redis
        self.source = Source(*breakers)
        self.events = Events()
        self.one = CircuitBreakers(redis, self.source, self.events)
        self.two = CircuitBreakers(redis, self.source, self.events)

    async def open(self, target: str = TARGET) -> None:
        for _ in range(3):
            await self.one.failed(target)

    async def time_passes(self, target: str = TARGET) -> None:
        await time_passes(self.redis, target, self.one, self.two)


async def time_passes(redis: Redis, target: str, *all_circuits: CircuitBreakers) -> None:
    """As if it had opened long ago, and its trial begun long ago."""
    key = f"bxmesh:{{circuits}}:of:{target}"
    for field in ("opened", "trial_end"):
        if moment := await redis.hget(key, field):
            await redis.hset(key, field, str(int(moment) - 1000 * 60 * 60))
    for circuits in all_circuits:
        circuits._next_look = 0.0


async def test_failures_in_a_row_on_any_server_open_it_on_all(redis: Redis) -> None:
    pair = Pair(redis, breaker())
    for circuits in (pair.one, pair.two):
        await circuits.failed(TARGET)
    await pair.one.succeeded(TARGET)
    for circuits in (pair.two, pair.one):
        await circuits.failed(TARGET)
        assert await circuits.allows(TARGET)
    await pair.two.failed(TARGET)
    assert not await pair.two.allows(TARGET)
    assert await pair.one.open_targets() == [TARGET]
    assert not await pair.one.allows(TARGET)
    assert await pair.one.allows("agent/b")
    assert not await pair.one.allows("agent/b", TARGET)
    assert pair.events.told == [("circuit.opened", TARGET)]


async def test_one_trial_at_a_time_closes_or_opens_it(redis: Redis) -> None:
    pair = Pair(redis, breaker(success_threshold=2))
    await pair.open()
    await pair.time_passes()
    allowed = await asyncio.gather(
        *(circuits.allows(TARGET) for circuits in (pair.one, pair.two) for _ in range(20))
    )
    assert allowed.count(True) == 1
    await pair.two.failed(TARGET)
    assert not await pair.one.allows(TARGET)
    await pair.time_passes()
    assert await pair.one.allows(TARGET)
    await pair.one.succeeded(TARGET)
    # Tried once of two times.
    assert await pair.two.open_targets() == [TARGET]
    assert await pair.two.allows(TARGET)
    assert not await pair.one.allows(TARGET)
    await pair.one.succeeded(TARGET)
    assert await pair.two.open_targets() == []
    assert all(await asyncio.gather(*(pair.two.allows(TARGET) for _ in range(9))))
    assert [kind for kind, _ in pair.events.told] == [
        "circuit.opened",
        "circuit.opened",
        "circuit.closed",
    ]
    # It begins to count anew.
    await pair.one.failed(TARGET)
    assert await pair.one.allows(TARGET)


async def test_only_the_trial_answers_for_a_circuit(redis: Redis) -> None:
    pair = Pair(redis, breaker())
    await pair.open()
    await pair.one.succeeded(TARGET, "begun before")
    assert await pair.one.open_targets() == [TARGET]
    await pair.time_passes()
    assert await pair.one.allows(TARGET, trial="t:1")
    await pair.one.succeeded(TARGET, "another")
    await pair.one.failed(TARGET, "another")
    await pair.one.abandoned(TARGET, "another")
    assert not await pair.two.allows(TARGET, trial="t:2")
    await pair.two.abandoned(TARGET, "t:1")
    assert await pair.two.allows(TARGET, trial="t:2")
    # Nothing is ever heard of it.
    await pair.time_passes()
    assert await pair.one.allows(TARGET, trial="t:3")
    await pair.one.succeeded(TARGET, "t:2")
    assert await pair.one.open_targets() == [TARGET]
    await pair.one.succeeded(TARGET, "t:3")
    assert await pair.one.open_targets() == []


async def test_several_targets_are_tried_together_or_not_at_all(redis: Redis) -> None:
    pair = Pair(redis, breaker("*"))
    await pair.open()
    await pair.open("capability/c")
    await pair.time_passes()
    assert not await pair.one.allows(TARGET, "capability/c")
    assert await pair.one.allows(TARGET)
    await pair.time_passes("capability/c")
    assert not await pair.two.allows("capability/c", TARGET)
    assert await pair.two.allows("capability/c")


async def test_the_first_breaker_that_fits_counts(redis: Redis) -> None:
    pair = Pair(redis, breaker("agent/a*", failures=2), breaker("*", failures=1))
    for name in ("agent/a1", "agent/b", "capability/agent/a1"):
        await pair.one.failed(name)
    assert await pair.two.open_targets() == ["agent/b", "capability/agent/a1"]
    # Another policy is kept to at once: what has no breaker any more is not held back.
    pair.source.apply(breaker("capability/*"))
    assert await pair.two.open_targets() == ["capability/agent/a1"]
    assert await pair.two.allows("agent/b")


@asynccontextmanager
async def watched(redis: Redis) -> AsyncIterator[Any]:
    async def calls() -> int:
        stats: Any = await redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))

    yield calls


async def test_what_does_not_fail_costs_next_to_nothing(redis: Redis) -> None:
    async with watched(redis) as calls:
        pair = Pair(redis, breaker("agent/*"))
        before = await calls()
        for _ in range(100):
            assert await pair.one.allows("capability/x")
            await pair.one.failed("capability/x")
            assert await ALL_CLOSED.allows(TARGET)
            await ALL_CLOSED.failed(TARGET)
        assert await calls() == before
        assert await ALL_CLOSED.open_targets() == []
        pair.one._next_look = float("inf")
        for number in range(100):
            assert await pair.one.allows(f"agent/{number}")
        assert await calls() == before


async def test_nothing_is_kept_for_ever(redis: Redis) -> None:
    pair = Pair(redis, breaker())
    await pair.one.failed("agent/once")
    await pair.open()
    await pair.time_passes()
    assert await pair.one.allows(TARGET)
    keys = await redis.keys("bxmesh:{circuits}*")
    assert len(keys) == 3
    for key in keys:
        assert await redis.pttl(key) > 0
    await pair.one.succeeded(TARGET)
    await pair.one.succeeded("agent/once")
    assert await redis.keys("bxmesh:{circuits}*") == []


async def test_without_redis_everything_is_allowed(tmp_path: Any) -> None:
    valkey = start_valkey(tmp_path)
    redis = connect(f"unix://{tmp_path}/valkey.sock")
    pair = Pair(redis, breaker(failures=1))
    try:
        await pair.one.failed(TARGET)
        assert not await pair.one.allows(TARGET)
    finally:
        valkey.stop()
    pair.one._next_look = 0.0
    assert await pair.one.allows(TARGET)
    await pair.one.failed(TARGET)
    await pair.one.succeeded(TARGET)
    assert await pair.two.open_targets() == []
    await redis.aclose()


async def test_the_report_and_the_audit_log_say_what_is_open(redis: Redis) -> None:
    async with serving(redis) as server:
        await apply(server, pb.Policy(circuit_breakers=[breaker(failures=1)]))
        circuits = server.guard.circuits
        await circuits.failed(TARGET)
        report = await server.security.GetSecurityReport(
            violation_pb2.GetSecurityReportRequest(), metadata=ADMIN
        )
        assert report.open_circuits == [TARGET]
        request = audit_pb2.QueryAuditLogRequest(event_types=["circuit.opened"])

        async def told() -> list[str]:
            answers = server.security.QueryAuditLog(request, metadata=ADMIN)
            return [entry.resource async for answer in answers for entry in answer.entries]

        await until(told)  # type: ignore[arg-type]
        assert await told() == [TARGET]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (breaker("worker-1"), "target"),
        (breaker("agents/*"), "target"),
        (breaker("agent"), "target"),
        (breaker("*" * 9), "target"),
        (pb.CircuitBreaker(target="*", failure_threshold=1), "open_duration"),
        (breaker(failures=0), "failure_threshold"),
    ],
)
async def test_a_breaker_that_could_do_nothing_is_refused(
    redis: Redis, wrong: pb.CircuitBreaker, field: str
) -> None:
    async with serving(redis) as server:
        error = await refused(
            server.security.ApplyPolicy(
                pb.ApplyPolicyRequest(policy=pb.Policy(circuit_breakers=[wrong])), metadata=ADMIN
            )
        )
        assert [name for name, _ in error.field_violations] == [
            f"policy.circuit_breakers[0].{field}"
        ]

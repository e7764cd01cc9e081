"""The audit log: whatever is done to it behind its back is found, and where."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis

from bxmesh.security.v1 import audit_pb2 as pb
from bxmesh.security.v1 import identity_pb2, violation_pb2
from bxmesh.server.security.audit import AuditLog, StampedEvent
from bxmesh.server.security.events import AuditEvent
from bxmesh.server.security.mesh_key import MeshKey
from tests.security.mesh import ADMIN, bearer, refused, serving

KEY = MeshKey(bytes(range(32)))
STREAM = "bxmesh:{security}:audit"


def stamped(event_type: str = "test.event", **fields: Any) -> StampedEvent:
    moment = Timestamp()
    moment.GetCurrentTime()
    return StampedEvent(AuditEvent(event_type, **fields), moment, "t" * 32)


async def filled(redis: Redis, file: Path | None = None, entries: int = 20) -> AuditLog:
    """A log of twenty entries with a checkpoint after the tenth."""
    log = AuditLog(redis, KEY, file)
    await log.append([stamped(resource=f"r/{number}") for number in range(entries // 2)])
    await log.checkpoint()
    await log.append([stamped(resource=f"r/{number}") for number in range(entries // 2)])
    return log


async def test_an_untouched_log_is_intact(redis: Redis) -> None:
    log = await filled(redis)
    verdict = await log.verify()
    assert verdict.intact
    assert (verdict.entries, verdict.checkpoints, verdict.last_checkpoint) == (20, 1, 10)
    part = await log.verify(5, 8)
    assert (part.intact, part.entries) == (True, 4)
    assert (await AuditLog(redis, KEY).verify()).intact
    assert (await AuditLog(redis, MeshKey(bytes(32))).verify()).bad_sequence > 0


async def test_an_empty_log_is_intact(redis: Redis) -> None:
    assert (await AuditLog(redis, KEY).verify()).intact


async def _entry(redis: Redis, place: int) -> bytes:
    found: Any = await redis.xrange(STREAM, f"{place}-0", f"{place}-0")
    data: bytes = found[0][1][b"entry"]
    return data


async def _rewritten(redis: Redis, contents: dict[int, bytes]) -> None:
    """Puts the stream together anew from contents by place."""
    await redis.delete(STREAM)
    for place in sorted(contents):
        await redis.xadd(STREAM, {"entry": contents[place]}, id=f"{place}-0")


async def _all(redis: Redis) -> dict[int, bytes]:
    found: Any = await redis.xrange(STREAM)
    return {int(entry_id.split(b"-")[0]): fields[b"entry"] for entry_id, fields in found}


@pytest.mark.parametrize(
    ("attack", "place", "fault"),
    [
        ("changed", 7, pb.AUDIT_FAULT_HASH),
        ("garbage", 7, pb.AUDIT_FAULT_UNREADABLE),
        ("swapped", 7, pb.AUDIT_FAULT_CHAIN),
        ("copied", 7, pb.AUDIT_FAULT_CHAIN),
        ("deleted", 7, pb.AUDIT_FAULT_MISSING),
        ("first", 1, pb.AUDIT_FAULT_MISSING),
        ("tail", 16, pb.AUDIT_FAULT_MISSING),
        ("stranger", 20, pb.AUDIT_FAULT_HASH),
    ],
)
async def test_tampering_is_found_where_it_is(
    redis: Redis, attack: str, place: int, fault: pb.AuditFault.ValueType
) -> None:
    log = await filled(redis)
    contents = await _all(redis)
    if attack == "changed":
        entry = pb.AuditEntry.FromString(contents[7])
        entry.identity_id = "somebody else"
        contents[7] = entry.SerializeToString()
    elif attack == "garbage":
        contents[7] = b"\xff\xff\xff"
    elif attack == "swapped":
        contents[7], contents[8] = contents[8], contents[7]
    elif attack == "copied":
        contents[7] = contents[6]
    elif attack == "deleted":
        del contents[7]
    elif attack == "first":
        del contents[1]
    elif attack == "tail":
        contents = {place: data for place, data in contents.items() if place < 16}
    else:
        other = AuditLog(redis, MeshKey(bytes(32)))
        await redis.flushall()
        await other.append([stamped() for _ in range(20)])
        forged = await _entry(redis, 20)
        await redis.flushall()
        log = await filled(redis)
        contents = {**await _all(redis), 20: forged}
    await _rewritten(redis, contents)
    verdict = await log.verify()
    assert (verdict.intact, verdict.bad_sequence, verdict.fault) == (False, place, fault)
    assert f"Entry {place}" in verdict.message


async def test_what_is_under_a_checkpoint_no_holder_of_the_key_rewrites(redis: Redis) -> None:
    log = await filled(redis)
    signed: Any = await redis.zrange("bxmesh:{security}:audit:checkpoints", 0, -1)
    await redis.flushall()
    await (await filled(redis)).append([stamped("more")])
    await redis.delete("bxmesh:{security}:audit:checkpoints")
    await redis.zadd("bxmesh:{security}:audit:checkpoints", {signed[0]: 10})
    verdict = await log.verify()
    assert (verdict.bad_sequence, verdict.fault) == (10, pb.AUDIT_FAULT_CHECKPOINT)


async def test_a_forged_checkpoint_is_found(redis: Redis) -> None:
    log = await filled(redis)
    name = "bxmesh:{security}:audit:checkpoints"
    signed: Any = await redis.zrange(name, 0, -1)
    for forged in (signed[0].replace(b'"time_ms": 1', b'"time_ms": 2'), b"garbage", b"[]"):
        await redis.delete(name)
        await redis.zadd(name, {forged: 10})
        assert (await log.verify()).fault == pb.AUDIT_FAULT_CHECKPOINT


async def test_a_tail_that_is_cut_off_whole_is_found_by_the_file(
    redis: Redis, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoints.jsonl"
    log = await filled(redis, file)
    await log.checkpoint()
    assert file.stat().st_mode & 0o777 == 0o600
    await redis.flushall()
    verdict = await log.verify()
    assert (verdict.bad_sequence, verdict.fault) == (1, pb.AUDIT_FAULT_MISSING)
    # Begun anew, it is shorter than what was signed here.
    again = AuditLog(redis, KEY, file)
    await again.append([stamped()])
    assert not (await again.verify()).intact


async def test_a_log_that_is_rewritten_with_the_key_is_found_by_the_file(
    redis: Redis, tmp_path: Path
) -> None:
    log = await filled(redis, tmp_path / "checkpoints.jsonl")
    await redis.flushall()
    forged = await filled(redis)
    await forged.checkpoint()
    assert (await forged.verify()).intact
    verdict = await log.verify()
    assert (verdict.bad_sequence, verdict.fault) == (10, pb.AUDIT_FAULT_CHECKPOINT)


async def test_checkpoints_that_are_close_take_the_place_of_each_other(redis: Redis) -> None:
    log = AuditLog(redis, KEY)
    for _ in range(10):
        await log.append([stamped()])
        await log.checkpoint()
    name = "bxmesh:{security}:audit:checkpoints"
    kept: Any = await redis.zrange(name, 0, -1, withscores=True)
    assert [score for _, score in kept] == [1, 10]
    verdict = await log.verify()
    assert (verdict.intact, verdict.last_checkpoint) == (True, 10)
    await log.append([stamped() for _ in range(1000)])
    for _ in range(3):
        await log.checkpoint()
        await log.append([stamped()])
    kept = await redis.zrange(name, 0, -1, withscores=True)
    assert [score for _, score in kept] == [1, 1010, 1012]
    assert (await log.verify()).intact


async def test_servers_append_to_one_chain(redis: Redis) -> None:
    logs = [AuditLog(redis, KEY) for _ in range(4)]
    await asyncio.gather(
        *(logs[number % 4].append([stamped() for _ in range(5)]) for number in range(20))
    )
    verdict = await logs[0].verify()
    assert (verdict.intact, verdict.entries) == (True, 100)


async def test_retention_keeps_the_chain_verifiable(redis: Redis) -> None:
    log = await filled(redis)
    later = int((time.time() + 366 * 86400) * 1000)
    assert await log.retain() == 0
    assert await log.retain(later) == 10
    assert sorted(await _all(redis)) == list(range(11, 21))
    verdict = await log.verify()
    assert (verdict.intact, verdict.entries) == (True, 10)
    await log.append([stamped()])
    assert (await log.verify()).intact
    # Without the checkpoint nobody knows what was before.
    await redis.delete("bxmesh:{security}:audit:checkpoints")
    assert (await log.verify()).fault == pb.AUDIT_FAULT_MISSING


async def test_entries_are_bounded(redis: Redis) -> None:
    log = AuditLog(redis, KEY)
    huge = "x" * 100_000 + "\ud800"
    details = {f"{number}{huge}": huge for number in range(1000)}
    await log.append([stamped(huge, identity_id=huge, resource=huge, details=details)])
    assert len(await _entry(redis, 1)) < 20_000
    assert (await log.verify()).intact


async def test_the_log_over_the_wire(redis: Redis) -> None:
    async with serving(redis) as server:
        alice = await server.identity("alice", "audit_read")
        await refused(
            server.security.ListIdentities(identity_pb2.ListIdentitiesRequest(), metadata=alice)
        )
        await refused(
            server.security.GetIdentity(
                identity_pb2.GetIdentityRequest(), metadata=bearer("bx_canary")
            )
        )
        await server.guard.mesh.events.flush()  # type: ignore[attr-defined]

        async def query(**fields: Any) -> list[pb.AuditEntry]:
            call = server.security.QueryAuditLog(pb.QueryAuditLogRequest(**fields), metadata=alice)
            return [entry async for answer in call for entry in answer.entries]

        everything = await query()
        types = [entry.event_type for entry in everything]
        assert types == [
            "identity.created",
            "api_key.created",
            "permission.denied",
            "login.failed",
        ]
        assert "bx_canary" not in str(everything)
        assert everything[2].identity_id == "alice"
        assert everything[0].identity_id == "admin"
        assert [entry.sequence for entry in await query(event_types=["api_key.*"])] == [2]
        assert [entry.sequence for entry in await query(identity_id="alice")] == [3]
        assert [entry.sequence for entry in await query(resource_prefix="identity/")] == [1]
        assert [entry.sequence for entry in await query(after_sequence=1, limit=2)] == [2, 3]
        verdict = await server.security.VerifyAuditLog(pb.VerifyAuditLogRequest(), metadata=alice)
        assert (verdict.intact, verdict.entries_checked) == (True, 4)

        following = server.security.QueryAuditLog(
            pb.QueryAuditLogRequest(event_types=["role.*", "identity.*"], follow=True),
            metadata=alice,
        )
        assert (await following.read()).entries[0].event_type == "identity.created"
        await server.identity("bob")
        assert (await following.read()).entries[0].resource == "identity/bob"
        following.cancel()
        bob = await server.key("bob")
        denied = await refused(
            server.security.VerifyAuditLog(pb.VerifyAuditLogRequest(), metadata=bob[1])
        )
        assert denied.code is grpc.StatusCode.PERMISSION_DENIED


async def test_violations_over_the_wire(redis: Redis) -> None:
    async with serving(redis) as server:
        alice = await server.identity("alice", "audit_read", "bundle_read")
        watch = server.security.WatchViolations(
            violation_pb2.WatchViolationsRequest(), metadata=alice
        )
        await watch.read()
        for _ in range(5):
            await refused(
                server.security.GetIdentity(
                    identity_pb2.GetIdentityRequest(identity_id="bob"), metadata=bearer("x")
                )
            )
        await refused(
            server.security.ListIdentities(identity_pb2.ListIdentitiesRequest(), metadata=alice)
        )
        await server.guard.mesh.events.flush()  # type: ignore[attr-defined]
        seen: list[violation_pb2.Violation] = []
        async with asyncio.timeout(30):
            while sum(violation.count for violation in seen) < 6:
                seen += (await watch.read()).violations
        assert {(each.kind, each.identity_id) for each in seen} == {
            (violation_pb2.VIOLATION_KIND_AUTHENTICATION, ""),
            (violation_pb2.VIOLATION_KIND_AUTHORIZATION, "alice"),
        }
        resumed = server.security.WatchViolations(
            violation_pb2.WatchViolationsRequest(after_revision=seen[0].revision), metadata=alice
        )
        await resumed.read()
        assert (await resumed.read()).violations[0].revision == seen[0].revision + 1

        # A forged one is left out.
        await redis.xadd("bxmesh:{security}:violations", {"violation": b"x" * 100}, id="1000000-0")

        async def listed(**fields: Any) -> list[violation_pb2.Violation]:
            found, token = [], ""
            while True:
                page = await server.security.ListViolations(
                    violation_pb2.ListViolationsRequest(
                        filter=violation_pb2.ViolationFilter(**fields),
                        page_size=1,
                        page_token=token,
                    ),
                    metadata=alice,
                )
                found += page.violations
                token = page.next_page_token
                if not token:
                    return found

        revisions = [violation.revision for violation in await listed()]
        assert revisions == sorted(revisions, reverse=True)
        assert set(revisions) >= {violation.revision for violation in seen}
        assert {each.identity_id for each in await listed(identity_id="alice")} == {"alice"}

        report = await server.security.GetSecurityReport(
            violation_pb2.GetSecurityReportRequest(), metadata=alice
        )
        counts = {each.kind: each.count for each in report.violations}
        assert counts[violation_pb2.VIOLATION_KIND_AUTHENTICATION] == 5
        assert report.refused_calls == 6
        assert report.calls > 8
        mine = {each.identity_id: each for each in report.identities}["alice"]
        assert list(mine.unused_permissions) == ["bundle_read"]
        # What a handler asks for besides counts as used too.
        alices = server.guard.mesh.directory.resolve("alice", None, "x", float("inf"))
        assert alices is not None
        alices.require("bundle_read")
        report = await server.security.GetSecurityReport(
            violation_pb2.GetSecurityReportRequest(identity_id="alice"), metadata=alice
        )
        assert list(report.identities[0].unused_permissions) == []
        assert mine.last_used_time.seconds > 0
        bob = await server.identity("bob")
        own = await server.security.GetSecurityReport(
            violation_pb2.GetSecurityReportRequest(identity_id="bob"), metadata=bob
        )
        assert [each.identity_id for each in own.identities] == ["bob"]
        for other in ("", "alice"):
            error = await refused(
                server.security.GetSecurityReport(
                    violation_pb2.GetSecurityReportRequest(identity_id=other), metadata=bob
                )
            )
            assert error.reason == "PERMISSION_MISSING"
        compacted = server.security.WatchViolations(
            violation_pb2.WatchViolationsRequest(after_revision=10**9), metadata=ADMIN
        )
        await compacted.read()
        assert (await refused(compacted.read())).reason == "REVISION_COMPACTED"

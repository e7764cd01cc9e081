"""Records: commits are atomic and told, and what was not sealed here is refused."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from bxmesh.server.security.mesh_key import MeshKey
from bxmesh.server.security.records import (
    Change,
    ConflictError,
    ForgedRecordError,
    Memo,
    Records,
)

KEY = MeshKey(bytes(range(32)))


async def test_a_commit_is_read_back_with_its_revision(redis: Redis) -> None:
    records = Records(redis, KEY)
    assert await records.commit([Change("role", "a", 0, b"1"), Change("role", "b", 0, b"2")]) == (
        1,
        None,
    )
    assert (await records.get("role", "a")) == (1, b"1")
    assert sorted(await records.names("role")) == ["a", "b"]
    await records.commit([Change("role", "a", 1, None)])
    assert await records.get("role", "a") is None


async def test_of_a_commit_with_a_conflict_nothing_is_made(redis: Redis) -> None:
    records = Records(redis, KEY)
    await records.commit([Change("role", "a", 0, b"1")])
    for known in (0, 7):
        with pytest.raises(ConflictError):
            await records.commit([Change("role", "b", 0, b"2"), Change("role", "a", known, b"3")])
    assert await records.get("role", "b") is None
    assert await records.revision() == 1


async def test_commits_at_the_same_moment_all_succeed(redis: Redis) -> None:
    servers = [Records(redis, KEY) for _ in range(4)]
    await asyncio.gather(
        *(
            servers[number % 4].commit([Change("role", f"r{number}", 0, b"x")])
            for number in range(20)
        )
    )
    assert len(await servers[0].names("role")) == 20
    assert await servers[0].revision() == 20


async def test_a_repeated_request_gets_the_first_answer(redis: Redis) -> None:
    records = Records(redis, KEY)
    memo = Memo("alice", "CreateRole", "r-1")
    await records.commit([Change("role", "a", 0, b"1")], memo, b"first")
    assert await records.commit([Change("role", "a", 0, b"1")], memo, b"other") == (1, b"first")
    assert await records.remembered(memo) == (1, b"first")
    assert await records.remembered(Memo("bob", "CreateRole", "r-1")) is None


async def test_events_tell_of_commits_in_order(redis: Redis) -> None:
    records = Records(redis, KEY)
    await records.commit([Change("role", "a:b", 0, b"1"), Change("identity", "x", 0, b"2")])
    await records.commit([Change("role", "a:b", -1, None)])
    assert await records.events(0, 10) == [
        (1, [("role", "a:b"), ("identity", "x")]),
        (2, [("role", "a:b")]),
    ]
    assert await records.events(2, 10) == []
    assert await records.events(3, 10) is None


async def test_a_record_of_somebody_without_the_key_is_refused(redis: Redis) -> None:
    records = Records(redis, KEY)
    await Records(redis, MeshKey(bytes(32))).commit([Change("identity", "eve", 0, b"admin")])
    with pytest.raises(ForgedRecordError):
        await records.get("identity", "eve")


async def test_a_seal_fits_no_other_name(redis: Redis) -> None:
    records = Records(redis, KEY)
    await records.commit([Change("identity", "root", 0, b"admin")])
    packed = await redis.hget("bxmesh:{security}:identity", "root")
    await redis.hset("bxmesh:{security}:identity", "eve", packed)
    with pytest.raises(ForgedRecordError):
        await records.get("identity", "eve")

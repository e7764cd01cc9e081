"""States: changed in one step, watched, kept, and never lost between two writers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct
from redis.asyncio import Redis

from bxmesh.agent.v1 import state_pb2 as pb
from bxmesh.client.errors import from_rpc_error
from tests.agent.mesh import Mesh, agents, refused
from tests.registry.mesh import ADMIN, ALICE, BOB

SECONDS = 20.0


def struct(value: dict[str, Any]) -> Struct:
    return json_format.ParseDict(value, Struct())


def plain(state: Any) -> Any:
    return json_format.MessageToDict(state.value)


async def update(
    mesh: Mesh, agent_id: str = "bob", *, metadata: Any = ALICE, **request: Any
) -> pb.AgentState:
    response = await mesh.stub.UpdateState(
        pb.UpdateStateRequest(agent_id=agent_id, **request), metadata=metadata
    )
    state: pb.AgentState = response.state
    return state


async def merge(mesh: Mesh, patch: dict[str, Any], **request: Any) -> pb.AgentState:
    return await update(mesh, merge_patch=struct(patch), **request)


async def put(mesh: Mesh, value: dict[str, Any], *paths: str, **request: Any) -> pb.AgentState:
    change = pb.MaskedUpdate(value=struct(value), update_mask=FieldMask(paths=paths))
    return await update(mesh, update=change, **request)


async def get(mesh: Mesh, agent_id: str = "bob") -> pb.AgentState:
    answer = await mesh.stub.GetState(pb.GetStateRequest(agent_id=agent_id), metadata=ALICE)
    state: pb.AgentState = answer.state
    return state


async def test_what_was_never_stored_is_empty(mesh: Mesh) -> None:
    state = await get(mesh)
    assert (state.agent_id, state.revision, plain(state)) == ("bob", 0, {})
    assert state.HasField("value")
    assert not state.HasField("update_time")


async def test_a_state_is_stored_and_read(mesh: Mesh) -> None:
    stored = await merge(mesh, {"a": [1, None, {"b": True}], "text": "ü"})
    assert (stored.revision, stored.updated_by) == (1, "alice")
    assert stored.update_time.seconds > 0
    assert await get(mesh) == stored
    assert plain(stored) == {"a": [1, None, {"b": True}], "text": "ü"}
    assert (await get(mesh, "other")).revision == 0


# The examples of RFC 7396, appendix A, as far as both sides are objects.
@pytest.mark.parametrize(
    ("before", "patch", "after"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": 5}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
        ({"a": 1}, {}, {"a": 1}),
    ],
)
async def test_a_merge_patch(
    mesh: Mesh, before: dict[str, Any], patch: dict[str, Any], after: dict[str, Any]
) -> None:
    await put(mesh, before)
    assert plain(await merge(mesh, patch)) == after
    assert plain(await get(mesh)) == after


@pytest.mark.parametrize(
    ("before", "value", "paths", "after"),
    [
        ({"a": 1, "b": 2}, {"a": 3}, ["a"], {"a": 3, "b": 2}),
        ({"a": 1, "b": 2}, {}, ["a"], {"b": 2}),
        ({"a": 1}, {"a": 2, "b": 3}, ["b"], {"a": 1, "b": 3}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 5}}, ["a.b"], {"a": {"b": 5, "c": 2}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {}}, ["a.b"], {"a": {"c": 2}}),
        ({"a": {"b": 1}}, {}, ["a.b"], {"a": {}}),
        ({}, {"a": {"b": {"c": 1}}}, ["a.b.c"], {"a": {"b": {"c": 1}}}),
        ({}, {}, ["a.b.c"], {}),
        ({"a": 1}, {"a": None}, ["a"], {"a": None}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, ["a"], {"a": {"c": 2}}),
        ({"a": 1, "b": 2}, {"c": 3}, [], {"c": 3}),
        ({"a": 1}, {}, [], {}),
    ],
)
async def test_some_fields(
    mesh: Mesh,
    before: dict[str, Any],
    value: dict[str, Any],
    paths: list[str],
    after: dict[str, Any],
) -> None:
    await put(mesh, before)
    assert plain(await put(mesh, value, *paths)) == after


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": 1}, "a.b"),
        ({"n": {"b": 1}}, "n.b"),
        ({}, "n.b"),
        ({}, "a..b"),
        ({}, ""),
        ({}, ".a"),
        ({}, ".".join("x" * 25)),
    ],
)
async def test_a_path_that_leads_nowhere(mesh: Mesh, value: dict[str, Any], path: str) -> None:
    await put(mesh, {"n": 7})
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await put(mesh, value, path)
    assert plain(await get(mesh)) == {"n": 7}


def deep(levels: int) -> Struct:
    whole = inner = Struct()
    for _ in range(levels - 1):
        inner = inner.fields["a"].struct_value
    inner.fields["a"].number_value = 1
    return whole


async def test_what_is_no_json_or_too_deep(mesh: Mesh) -> None:
    nan, nothing = Struct(), Struct()
    nan.fields["a"].list_value.values.add().number_value = float("nan")
    nothing.fields["a"].SetInParent()
    for value in (nan, nothing):
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
            await update(mesh, merge_patch=value)
    with refused("INVALID_ARGUMENT", "STATE_TOO_DEEP"):
        await update(mesh, merge_patch=deep(25))
    assert (await update(mesh, merge_patch=deep(24))).revision == 1
    assert (await get(mesh)).value == deep(24)
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await update(mesh)


async def test_a_state_has_at_most_a_mebibyte(mesh: Mesh) -> None:
    half = "x" * (600 << 10)
    await merge(mesh, {"a": half})
    with refused("INVALID_ARGUMENT", "STATE_TOO_LARGE"):
        await merge(mesh, {"b": half})
    with refused("INVALID_ARGUMENT", "STATE_TOO_LARGE"):
        await merge(mesh, {"c": half + half})
    assert (await get(mesh)).revision == 1
    assert (await put(mesh, {"b": half})).revision == 2


async def test_a_revision_is_expected(mesh: Mesh) -> None:
    await merge(mesh, {"n": 1}, expected_revision=0)
    await merge(mesh, {"n": 2}, expected_revision=1)
    for expected in (0, 1, 3):
        with refused("ABORTED", "REVISION_CONFLICT") as errors:
            await merge(mesh, {"n": 3}, expected_revision=expected)
        assert errors[0].metadata["revision"] == "2"
    assert plain(await get(mesh)) == {"n": 2}


async def test_a_repeated_request_changes_nothing_more(mesh: Mesh) -> None:
    first = await merge(mesh, {"n": 1}, request_id="one", expected_revision=0)
    await merge(mesh, {"n": 2})
    assert await merge(mesh, {"n": 1}, request_id="one", expected_revision=0) == first
    assert (await get(mesh)).revision == 2
    # The id is the caller's own, and means this agent.
    other = await merge(mesh, {"n": 3}, request_id="one", metadata=ADMIN)
    assert other.revision == 3
    assert (await merge(mesh, {"n": 4}, request_id="one", agent_id="carol")).revision == 1
    # When many were later, it still is not done twice.
    for number in range(20):
        await merge(mesh, {"n": number}, request_id=f"later-{number}")
    assert (await merge(mesh, {"n": 1}, request_id="one")).revision == 23
    at_once = [merge(mesh, {"m": 1}, request_id="at once") for _ in range(10)]
    assert {state.revision for state in await asyncio.gather(*at_once)} == {24}


async def test_writers_at_two_servers_lose_nothing(mesh: Mesh, shared_valkey: str) -> None:
    async with agents(shared_valkey) as other:

        async def write(server: Mesh, name: str, counts: int) -> None:
            for number in range(counts):
                await merge(server, {name: number + 1})

        await asyncio.gather(*(write((mesh, other)[i % 2], f"writer-{i}", 25) for i in range(8)))
        state = await get(other)
    assert plain(state) == {f"writer-{i}": 25 for i in range(8)}
    assert state.revision == 200


async def test_counting_with_expected_revisions(mesh: Mesh) -> None:
    async def count(times: int) -> None:
        while times:
            state = await get(mesh)
            n = int(plain(state).get("n", 0))
            try:
                await merge(mesh, {"n": n + 1}, expected_revision=state.revision)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.ABORTED
            else:
                times -= 1

    await asyncio.gather(*(count(10) for _ in range(5)))
    assert plain(await get(mesh)) == {"n": 50}


async def test_only_the_agent_itself_writes(mesh: Mesh) -> None:
    await merge(mesh, {"squatter": True}, metadata=BOB)
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await merge(mesh, {"n": 1}, metadata=ALICE)
    await mesh.register("bob")
    # Alice's agent of that name lives, so it is hers.
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await merge(mesh, {"n": 1}, metadata=BOB)
    await put(mesh, {"n": 1}, metadata=ALICE)
    await merge(mesh, {"admin": 1}, metadata=ADMIN)
    lease = await mesh.register("bob")
    await mesh.service.mesh.agents.leave("bob", lease)
    # It stays hers when the agent is gone, and when an administrator wrote last.
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await merge(mesh, {"n": 2}, metadata=BOB, request_id="x")
    assert plain(await merge(mesh, {"n": 3})) == {"n": 3, "admin": 1}


async def test_what_cannot_be_read_is_said_and_can_be_mended(mesh: Mesh) -> None:
    key = "bxmesh:{work:agents}:state:bob"
    await mesh.redis.hset(key, mapping={"record": b"\xff\xff", "revision": 3})
    with refused("INTERNAL", "UNREADABLE"):
        await get(mesh)
    await mesh.redis.delete(key)
    assert (await merge(mesh, {"n": 1})).revision == 1


@asynccontextmanager
async def watching(mesh: Mesh, after_revision: int = 0) -> AsyncIterator[Any]:
    call = mesh.stub.WatchState(
        pb.WatchStateRequest(agent_id="bob", after_revision=after_revision), metadata=ALICE
    )
    try:
        yield call
    finally:
        call.cancel()


async def following(call: Any) -> pb.AgentState:
    async with asyncio.timeout(SECONDS):
        response = await call.read()
    assert response is not grpc.aio.EOF
    state: pb.AgentState = response.state
    return state


async def test_a_watch_begins_with_the_present_and_tells_changes(
    mesh: Mesh, shared_valkey: str
) -> None:
    async with agents(shared_valkey) as other, watching(mesh) as call:
        assert (await following(call)).revision == 0
        await merge(other, {"n": 1})
        assert plain(await following(call)) == {"n": 1}
        await merge(mesh, {"n": 2})
        assert plain(await following(call)) == {"n": 2}


async def test_a_watch_resumes_and_coalesces(mesh: Mesh) -> None:
    for number in range(3):
        await merge(mesh, {"n": number})
    async with watching(mesh, 1) as behind, watching(mesh, 3) as current:
        assert (await following(behind)).revision == 3
        for number in range(50):
            await merge(mesh, {"n": number})
        for call in (behind, current):
            revisions = [3]
            while revisions[-1] < 53:
                revisions.append((await following(call)).revision)
            assert revisions == sorted(set(revisions))


async def test_a_watch_of_a_state_that_is_lost_begins_again(mesh: Mesh, redis: Redis) -> None:
    await merge(mesh, {"n": 1})
    async with watching(mesh, 7) as call:
        with refused("OUT_OF_RANGE", "REVISION_COMPACTED"):
            await following(call)


async def test_a_watch_ends_with_its_server(mesh: Mesh) -> None:
    async with watching(mesh) as call:
        await following(call)
        mesh.service.drain()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await following(call)
        assert from_rpc_error(raised.value).reason == "SERVER_STOPPING"
    async with watching(mesh) as late:
        with refused("UNAVAILABLE", "SERVER_STOPPING"):
            await following(late)


async def test_a_state_outlives_its_servers(shared_valkey: str, redis: Redis) -> None:
    async with agents(shared_valkey) as first:
        await merge(first, json.loads('{"kept": {"n": 1}}'))
    async with agents(shared_valkey) as second:
        assert plain(await get(second)) == {"kept": {"n": 1}}
        assert (await merge(second, {"kept": {"m": 2}})).revision == 2

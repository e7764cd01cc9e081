"""Who gets a task, and in which order."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from redis.asyncio import Redis

from bxmesh.agent.v1 import message_pb2
from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.registry.v1 import agent_pb2
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.server.agent_selection import sticky_score
from bxmesh.server.streams.ending import end_tasks
from tests.tasks.harness import (
    ASSIGNED,
    PENDING,
    json_payload,
    nothing_left,
    refused,
    spec,
    until,
    world,
)


async def test_work_goes_where_there_is_room(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("small", slots=2)
        await w.join("large", slots=8)
        tasks = [await w.assign() for _ in range(12)]
        assert Counter(task.agent_id for task in tasks) == {"small": 2, "large": 8, "": 2}
        assert [task.state for task in tasks[10:]] == [PENDING, PENDING]
        # Whoever ends something gets the next one that waits.
        first = tasks[0]
        await w.store.finish(first.task_id, 1, first.agent_id, json_payload())
        next_one = await w.reaches(tasks[10].task_id, ASSIGNED)
        assert next_one.agent_id == first.agent_id
        assert await w.state(tasks[11].task_id) == PENDING


async def test_work_goes_to_the_less_loaded(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("idle", slots=100)
        await w.join("loaded", slots=100, current_load=0.9)
        tasks = [await w.assign() for _ in range(20)]
        assert {task.agent_id for task in tasks} == {"idle"}


async def test_agents_that_take_nothing_get_nothing(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("leaving", status=agent_pb2.AGENT_STATUS_DRAINING)
        with refused("FAILED_PRECONDITION", "CAPABILITY_MISSING"):
            await w.assign()
        busy = await w.join("busy", status=agent_pb2.AGENT_STATUS_BUSY)
        task = await w.assign()
        assert task.state == PENDING
        busy.status = agent_pb2.AGENT_STATUS_ACTIVE
        await w.agents.beat(busy, w.leases["busy"], 60, changed=True)
        assert (await w.reaches(task.task_id, ASSIGNED)).agent_id == "busy"


async def test_a_task_waits_for_who_can_do_it(redis: Redis) -> None:
    async with world(redis) as w:
        task = await w.assign(spec("work", "more"), wait_for_agent=True)
        await w.join("some", "work")
        await w.join("other", "more")
        named = await w.assign(spec(agent_id="late"), wait_for_agent=True)
        # What nobody can do is in nobody's way.
        ready = await w.assign(spec("work"))
        await w.reaches(ready.task_id, ASSIGNED)
        assert (task.state, named.state) == (PENDING, PENDING)
        await w.join("both", "more", "work")
        assert (await w.reaches(task.task_id, ASSIGNED)).agent_id == "both"
        await w.join("late", "anything")
        assert (await w.reaches(named.task_id, ASSIGNED)).agent_id == "late"


async def test_the_error_names_what_is_missing(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", "x", "y")
        await w.join("b", "z")
        for task, missing, words in (
            (spec("x", "nope", "nada"), "nada,nope", "No live agent offers nada, nope."),
            (spec("x", "z"), "x,z", "No live agent offers all of x, z."),
            (spec("z", agent_id="a"), "z", "a does not offer z."),
        ):
            with refused("FAILED_PRECONDITION", "CAPABILITY_MISSING") as refusal:
                await w.assign(task)
            assert refusal.error.metadata["missing_capabilities"] == missing
            assert refusal.error.message.startswith(words)
        with refused("NOT_FOUND", "AGENT_NOT_FOUND"):
            await w.assign(spec(agent_id="nobody"))
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
            await w.assign(pb.TaskSpec(task_type="t"))
        # Who has just come is seen.
        await w.join("c", "nope", "nada", "x")
        assert (await w.assign(spec("x", "nope", "nada"))).agent_id == "c"


async def test_urgent_tasks_come_first_and_none_starves(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        blocker = await w.assign()
        names = {}
        for priority in (
            message_pb2.PRIORITY_LOW,
            message_pb2.PRIORITY_UNSPECIFIED,
            message_pb2.PRIORITY_CRITICAL,
            message_pb2.PRIORITY_HIGH,
            message_pb2.PRIORITY_LOW,
        ):
            task = await w.assign(spec(priority=priority))
            names[task.task_id] = (len(names), priority)
        # One low task has waited for hours.
        queue = (await redis.keys("bxmesh:{work:agents}:task-queue:*"))[0]
        old = next(name for name, (number, _) in names.items() if number == 4)
        await redis.zincrby(queue, -2 * 3600 * 1e6, old)
        order = []
        await w.store.finish(blocker.task_id, 1, "a", json_payload())
        assert await w.taken("a") == (blocker.task_id, 1)
        for _ in names:
            task_id, attempt = await w.taken("a")
            order.append(names[task_id][0])
            await w.store.finish(task_id, attempt, "a", json_payload())
        assert order == [4, 2, 3, 1, 0]
        await nothing_left(redis)


async def test_different_demands_are_served_in_one_order(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", "x", "y")
        blocker = await w.assign(spec("x"))
        waiting = [await w.assign(spec("xy"[number % 2])) for number in range(6)]
        order = []
        await w.store.finish(blocker.task_id, 1, "a", json_payload())
        await w.taken("a")
        for _ in waiting:
            task_id, attempt = await w.taken("a")
            order.append(task_id)
            await w.store.finish(task_id, attempt, "a", json_payload())
        assert order == [task.task_id for task in waiting]


async def test_a_key_stays_with_its_owner_while_that_has_room(redis: Redis) -> None:
    async with world(redis) as w:
        names = ["a", "b", "c"]
        for name in names:
            await w.join(name, slots=4)
        owner, second, _ = sorted(names, key=lambda name: sticky_score("k", name), reverse=True)
        tasks = [await w.assign(spec(sticky_key="k")) for _ in range(5)]
        assert [task.agent_id for task in tasks] == [owner] * 4 + [second]
        keys = {key: (await w.assign(spec(sticky_key=key))).agent_id for key in "mnopq"}
        assert len(set(keys.values())) > 1


async def test_no_agent_has_more_than_it_takes(redis: Redis) -> None:
    async with world(redis) as w:
        for name, slots in (("a", 3), ("b", 5)):
            await w.join(name, slots=slots)
        done: Counter[str] = Counter()
        most: Counter[str] = Counter()

        async def work(name: str) -> None:
            while True:
                task_id, attempt = await w.taken(name)
                held = await redis.hgetall("bxmesh:{work:agents}:task-load")
                for holder, count in held.items():
                    agent = holder.decode().partition("@")[0]
                    most[agent] = max(most[agent], int(count))
                await w.store.begin(task_id, attempt, name)
                await w.store.finish(task_id, attempt, name, json_payload())
                done[task_id] += 1

        workers = [asyncio.create_task(work(name)) for name in "aabbb"]
        tasks = await asyncio.gather(*(w.assign() for _ in range(200)))
        await until(lambda: len(done) == 200)
        await end_tasks(*workers)
        assert set(done) == {task.task_id for task in tasks} and set(done.values()) == {1}
        assert most["a"] <= 3 and most["b"] <= 5
        await nothing_left(redis)


async def test_a_request_is_one_task(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", slots=100)
        same = await asyncio.gather(*(w.assign(request_id="r") for _ in range(10)))
        assert len({task.task_id for task in same}) == 1
        assert (await w.assign(request_id="r", owner="bob")).task_id != same[0].task_id
        assert (await w.assign(request_id="s")).task_id != same[0].task_id
        assert len(await w.inbox("a")) == 3


async def test_there_are_only_so_many_tasks(redis: Redis) -> None:
    async with world(redis, most_open=3) as w:
        await w.join("a")
        tasks = [await w.assign() for _ in range(3)]
        with refused("RESOURCE_EXHAUSTED", "TOO_MANY_TASKS") as refusal:
            await w.assign()
        assert refusal.error.retry_after
        await w.store.finish(tasks[0].task_id, 1, "a", json_payload())
        await w.assign()


async def test_ended_tasks_are_forgotten(redis: Redis) -> None:
    async with world(redis, most_ended=3, lifetime=3600) as w:
        await w.join("a", slots=9)
        tasks = []
        for _ in range(6):
            task = await w.assign()
            await w.store.finish(task.task_id, 1, "a", json_payload())
            tasks.append(task.task_id)
        await w.store.look()
        assert [await w.store.read(name) is None for name in tasks] == [True] * 3 + [False] * 3
        assert await redis.zcard("bxmesh:{work:agents}:tasks") == 3
        # The others' time comes.
        for name in tasks[3:]:
            assert 0 < await redis.pttl(f"bxmesh:{{work:agents}}:task:{name}") <= 3_600_000
            await redis.zadd("bxmesh:{work:agents}:task-ended", {name: 1})
        await w.store.look()
        assert await redis.keys("bxmesh:{work:agents}:task*") == [
            b"bxmesh:{work:agents}:task-spans"
        ]


# Parents


async def test_delegation_has_an_end(redis: Redis) -> None:
    async with world(redis, max_depth=3) as w:
        for number in range(6):
            await w.join(f"a{number}")
        parent = ""
        for depth in range(4):
            line = await w.store.parent(parent) if parent else None
            task = await w.assign(spec(parent_task_id=parent), parent=line)
            assert task.depth == depth
            if parent:
                assert list((await w.get(parent)).child_task_ids) == [task.task_id]
            parent = task.task_id
        with refused("FAILED_PRECONDITION", "TASK_TOO_DEEP"):
            await w.assign(spec(parent_task_id=parent), parent=await w.store.parent(parent))


async def test_a_task_never_comes_back_to_who_waits_for_it(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", slots=9)
        top = await w.assign()
        line = await w.store.parent(top.task_id)
        assert line.line == ("a",)
        with refused("FAILED_PRECONDITION", "TASK_CYCLE"):
            await w.assign(spec(agent_id="a", parent_task_id=top.task_id), parent=line)
        with refused("FAILED_PRECONDITION", "TASK_CYCLE"):
            await w.assign(spec(parent_task_id=top.task_id), parent=line)
        child = await w.assign(spec(parent_task_id=top.task_id), parent=line, wait_for_agent=True)
        assert child.state == PENDING
        await w.join("b", slots=9)
        child = await w.reaches(child.task_id, ASSIGNED)
        assert child.agent_id == "b"
        below = await w.store.parent(child.task_id)
        assert below.line == ("a", "b")
        with refused("FAILED_PRECONDITION", "TASK_CYCLE"):
            await w.assign(spec(parent_task_id=child.task_id), parent=below)


async def test_nothing_is_done_on_behalf_of_what_has_ended(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", slots=9)
        await w.join("b", slots=9)
        task = await w.assign(spec(agent_id="a"))
        line = await w.store.parent(task.task_id)
        await w.store.finish(task.task_id, 1, "a", json_payload())
        with refused("FAILED_PRECONDITION", "PARENT_ENDED"):
            await w.assign(spec(parent_task_id=task.task_id), parent=line)
        with refused("NOT_FOUND", "TASK_NOT_FOUND"):
            await w.store.parent("none")
        with refused("NOT_FOUND", "TASK_NOT_FOUND"):
            await w.assign(spec(parent_task_id="none"), parent=line)


# Parameters


def json_schema(schema: object) -> Schema:
    return Schema(json_schema=ParseDict(schema, Struct()))


CELL = {
    "type": "object",
    "required": ["n"],
    "properties": {
        "n": {"type": "integer", "minimum": 1},
        "names": {"type": "array", "items": {"type": "string"}},
        "pattern": {"type": "string", "pattern": "^(a+)+$"},
    },
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"n": 2, "names": ["a"]}, None),
        ({"n": 2, "pattern": "a" * 64}, None),
        ({"n": 2, "pattern": "a" * 64 + "!"}, "spec.parameters.pattern"),
        ({}, "spec.parameters"),
        ({"n": 0}, "spec.parameters.n"),
        ({"n": "2"}, "spec.parameters.n"),
        ({"n": 2, "names": ["a", 3]}, "spec.parameters.names[1]"),
        ({"n": 2, "more": 3}, "spec.parameters"),
        ([], "spec.parameters"),
    ],
)
async def test_json_must_fit_the_schema(redis: Redis, value: object, path: str | None) -> None:
    async with world(redis, running=False) as w:
        await w.join("a", capability={"input_schema": json_schema(CELL)})
        task = spec(parameters=json_payload(json.dumps(value)))
        if path is None:
            assert (await w.assign(task)).state == ASSIGNED
        else:
            with refused("INVALID_ARGUMENT", "SCHEMA_MISMATCH") as refusal:
                await w.assign(task)
            assert refusal.error.field_violations[0][0] == path


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#"},
        {"type": 7},
        {
            "$defs": {
                str(level): {"allOf": [{"$ref": f"#/$defs/{level + 1}"}] * 10} for level in range(9)
            }
            | {"9": {}},
            "$ref": "#/$defs/0",
        },
    ],
    ids=["elsewhere", "endless", "none", "explosive"],
)
async def test_no_schema_harms_the_server(redis: Redis, schema: object) -> None:
    async with world(redis, running=False) as w:
        await w.join("a", capability={"input_schema": json_schema(schema)})
        with refused("INVALID_ARGUMENT", "SCHEMA_MISMATCH"):
            await w.assign(spec(parameters=json_payload('{"x": 1}')))


async def test_large_json_is_checked_too(redis: Redis) -> None:
    async with world(redis, running=False) as w:
        schema = {"items": {"type": "integer"}, "uniqueItems": True}
        await w.join("a", capability={"input_schema": json_schema(schema)})
        numbers = list(range(20_000))
        assert await w.assign(spec(parameters=json_payload(json.dumps(numbers))))
        numbers.append("x")  # type: ignore[arg-type]
        with refused("INVALID_ARGUMENT", "SCHEMA_MISMATCH") as refusal:
            await w.assign(spec(parameters=json_payload(json.dumps(numbers))))
        assert refusal.error.metadata["path"] == "spec.parameters[20000]"


async def test_protobuf_must_be_of_the_type(redis: Redis) -> None:
    async with world(redis, running=False) as w:
        kind = Schema(protobuf_type="google.protobuf.StringValue")
        await w.join("a", capability={"input_schema": kind})
        unknown = Schema(protobuf_type="of.its.Own")
        await w.join("b", "own", capability={"input_schema": unknown})
        good = message_pb2.Payload()
        good.protobuf.Pack(StringValue(value="x"))
        assert (await w.assign(spec(parameters=good))).agent_id == "a"
        own = AnyMessage(type_url="type.googleapis.com/of.its.Own", value=b"\xff")
        assert await w.assign(spec("own", parameters=message_pb2.Payload(protobuf=own)))
        broken = AnyMessage(type_url="/google.protobuf.StringValue", value=b"\xff")
        for payload in (
            message_pb2.Payload(),
            json_payload(),
            message_pb2.Payload(protobuf=own),
            message_pb2.Payload(protobuf=broken),
        ):
            with refused("INVALID_ARGUMENT", "SCHEMA_MISMATCH"):
                await w.assign(spec(parameters=payload))


async def test_parameters_go_to_who_takes_them(redis: Redis) -> None:
    async with world(redis, running=False) as w:
        for name, kind in (("old", "string"), ("new", "integer")):
            schema = json_schema({"properties": {"n": {"type": kind}}})
            await w.join(name, slots=9, capability={"input_schema": schema})
        for value, agent in ((1, "new"), ("1", "old")):
            task = spec(parameters=json_payload(json.dumps({"n": value})))
            assert (await w.assign(task)).agent_id == agent

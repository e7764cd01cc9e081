"""Functions that wait: others compute meanwhile, and what they wait for ends when they do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.client import Agent, AsyncMesh, TaskContext, task
from bxmesh.client.errors import from_status
from bxmesh.server.functions.container import find_container
from tests.functions.mesh import CANCELLED, COMPLETED, LIMITED, Caller, World, seconds
from tests.functions.mesh import world as run_world

LONG = 3600
SLEEPS = {
    "test.async": ("import asyncio\n\nasync def main(s):\n    await asyncio.sleep(s)\n", True),
    "test.sync": ("import time\n\ndef main(s):\n    time.sleep(s)\n", False),
}
QUICK = "def main():\n    return 1\n"


@pytest.fixture
async def narrow(redis: Redis, shared_valkey: str, tmp_path: Path) -> AsyncIterator[World]:
    """A server in which one function computes at a time."""
    async with run_world(shared_valkey, tmp_path, function_workers=1, function_sessions=4) as world:
        await store(world.admin)
        yield world


async def store(caller: Caller) -> None:
    for name, (code, is_async) in SLEEPS.items():
        await caller.create(
            name,
            code,
            is_async=is_async,
            allowed_imports=["asyncio", "time"],
            limits=seconds(LONG),
        )
    await caller.create("test.quick", QUICK)


@pytest.mark.parametrize("name", SLEEPS)
async def test_a_sleep_keeps_nobody_waiting_and_ends_at_once(narrow: World, name: str) -> None:
    admin = narrow.admin
    sleeping = asyncio.create_task(admin.stream(name, {"s": LONG}))
    begun = await admin.begun(name)
    assert (await admin.execute("test.quick")).state == COMPLETED
    assert not sleeping.done()
    assert (await admin.cancel(begun.execution_id)).state == CANCELLED
    assert (await sleeping)[-1].ended.state == CANCELLED
    assert (await admin.execute("test.quick")).state == COMPLETED


@pytest.mark.parametrize("name", SLEEPS)
async def test_a_sleep_ends_with_its_time(narrow: World, name: str) -> None:
    execution = await narrow.admin.execute(name, {"s": LONG}, limits=seconds(0.3))
    assert execution.state == LIMITED
    assert from_status(execution.error).reason == "TIME_LIMIT"
    assert (await narrow.admin.execute("test.quick")).state == COMPLETED


@pytest.mark.parametrize("many", ["1e300", "float('inf')", "10 ** 400", "float('nan')", "-1"])
async def test_sleeps_of_impossible_lengths(narrow: World, many: str) -> None:
    for module, line in (("time", "time.sleep"), ("asyncio", "await asyncio.sleep")):
        prefix = "async " if module == "asyncio" else ""
        await narrow.admin.create(
            f"test.long_{module}",
            f"import {module}\n\n{prefix}def main():\n    {line}({many})\n    return 1\n",
            is_async=bool(prefix),
            allowed_imports=[module],
        )
        execution = await narrow.admin.execute(f"test.long_{module}", limits=seconds(0.5))
        reason = from_status(execution.error).reason if execution.HasField("error") else ""
        assert (execution.state == COMPLETED) == (not reason)
        assert reason in ("", "TIME_LIMIT", "FUNCTION_FAILED")
    assert (await narrow.admin.execute("test.quick")).state == COMPLETED


async def test_sleeps_at_once_take_as_long_as_the_longest(narrow: World) -> None:
    await narrow.admin.create(
        "test.many",
        "import asyncio\n\n"
        "async def nap(n):\n    await asyncio.sleep(0.5)\n    return n\n\n"
        "async def main():\n    return await asyncio.gather(*[nap(n) for n in range(40)])\n",
        is_async=True,
        allowed_imports=["asyncio"],
        limits=seconds(10),
    )
    execution = await narrow.admin.execute("test.many")
    assert execution.state == COMPLETED, execution.error
    assert [value.number_value for value in execution.output.list_value.values] == [*range(40)]
    # What it slept is none of what it computed.
    assert execution.cpu_time.ToMilliseconds() < 5_000


async def test_one_identity_leaves_room_for_others(narrow: World) -> None:
    other = await narrow.caller("bob")
    await other.create("test.bobs", QUICK)
    sleeping = [
        asyncio.create_task(narrow.admin.execute("test.async", {"s": LONG})) for _ in range(8)
    ]
    await narrow.admin.begun("test.async")
    assert (await other.execute("test.bobs")).state == COMPLETED
    assert not any(each.done() for each in sleeping)
    for each in sleeping:
        each.cancel()
    await asyncio.wait(sleeping)
    assert (await narrow.admin.execute("test.quick")).state == COMPLETED


class Asked(Agent):
    """Executes a function to do its task."""

    caller: Caller

    @task("test.ask")
    async def ask(self, context: TaskContext) -> float:
        left = int(context.parameters["left"])
        execution = await self.caller.execute("test.nested", {"left": left})
        return float(execution.output.number_value)


@pytest.mark.parametrize(
    "engine",
    [
        pb.FUNCTION_ENGINE_SANDBOX,
        pytest.param(
            pb.FUNCTION_ENGINE_CONTAINER,
            marks=pytest.mark.skipif(find_container() is None, reason="bubblewrap is not here"),
        ),
    ],
)
async def test_functions_that_call_one_another_through_agents(
    narrow: World, engine: pb.FunctionEngine.ValueType
) -> None:
    admin = narrow.admin
    await admin.create(
        "test.nested",
        "import mesh\n\nasync def main(left):\n"
        "    if left == 0:\n        return 1\n"
        "    return 1 + await mesh.assign('test.ask', {'left': left - 1})\n",
        is_async=True,
        engine=engine,
        host_functions=["mesh.assign"],
    )
    key = admin.metadata[0][1].removeprefix("Bearer ")
    agent = Asked("asked")
    agent.caller = admin
    async with (
        AsyncMesh(narrow.server.address, api_key=key) as mesh,
        agent.running(mesh),
    ):
        execution = await admin.execute("test.nested", {"left": 1})
    assert execution.state == COMPLETED, execution.error
    assert execution.output.number_value == 2


async def test_what_computes_while_a_call_goes_on_keeps_its_place(narrow: World) -> None:
    admin = narrow.admin
    await admin.create(
        "test.both",
        "import asyncio\n\n"
        "async def count():\n    n = 0\n    while True:\n        n += 1\n\n"
        "async def main():\n    await asyncio.gather(asyncio.sleep(0.01), count())\n",
        is_async=True,
        allowed_imports=["asyncio"],
        limits=seconds(3),
    )
    computing = asyncio.create_task(admin.execute("test.both"))
    await admin.begun("test.both")
    quick = await admin.execute("test.quick")
    ended = await computing
    assert (quick.state, ended.state) == (COMPLETED, LIMITED)
    assert quick.start_time.ToNanoseconds() >= ended.end_time.ToNanoseconds()


async def test_durable_ones_that_sleep_let_others_go_on(narrow: World) -> None:
    admin = narrow.admin
    begun = await admin.execute("test.async", {"s": LONG}, durable=True, detach=True)
    await admin.begun("test.async")
    assert (await admin.execute("test.quick", durable=True)).state == COMPLETED
    assert (await admin.cancel(begun.execution_id)).state == CANCELLED

"""Hosts: definitions of rules and chains as agents, their replicas, versions and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bxmesh.client import (
    Agent,
    AsyncMesh,
    BxmeshError,
    DefinitionLimits,
    Message,
    Rule,
    TaskContext,
    Tool,
    on,
    task,
)
from bxmesh.client.chains import Chain, ChainStep
from bxmesh.client.host import Host
from tests.host.conftest import become
from tests.host.worlds import called, done, failed, gone, host, live, until
from tests.sdk.agents import name, soon
from tests.sdk.conftest import client, start_mesh, state_dir

__all__ = ["state_dir"]

ADD = "def main(a, b=1):\n    return {'sum': {'value': a + b}, 'parts': [a, b]}\n"


class Slow(Agent):
    """Does a task when it is let, and says for whom."""

    concurrency = 10

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id, capabilities=[])
        self.begun: asyncio.Queue[TaskContext] = asyncio.Queue()
        self.go = asyncio.Event()

    @task("test.slow")
    async def slow(self, context: TaskContext) -> dict[str, Any]:
        self.begun.put_nowait(context)
        await self.go.wait()
        return {"did": context.parameters}


@pytest.fixture
async def slow(mesh: AsyncMesh) -> AsyncIterator[Slow]:
    async with Slow(name("slow")).running(mesh) as agent:
        yield agent


@pytest.fixture
async def add(mesh: AsyncMesh) -> str:
    """A stored function."""
    await mesh.functions.create("test.add", ADD, visibility="all")
    return "test.add"


def capability(word: str) -> str:
    """A capability that no other test has."""
    return f"test.{name(word).replace('-', '_')}"


async def active(mesh: AsyncMesh, word: str, **options: Any) -> str:
    """The name of a definition that is active."""
    unique = name(word)
    await mesh.definitions.create(unique, **options)
    await mesh.definitions.activate(unique)
    return unique


async def test_rules_answer_messages_and_tasks(mesh: AsyncMesh, add: str) -> None:
    offer = capability("sum")
    unique = await active(
        mesh,
        "rules",
        capabilities=[offer],
        rules=[
            Rule("add.exactly", Tool(function=f"{add}@latest"), "added"),
            Rule(
                "add.*",
                Tool(function=add),
                "added",
                {"sum.value": "total", "parts.1": "second.part", "none": "left.out"},
            ),
            Rule(offer, Tool(function=add), result_mapping={"sum.value": "total"}),
        ],
    )
    async with host(mesh, unique) as running:
        agent = await live(mesh, unique)
        assert (agent.agent_type, agent.identity) == ("definition", "admin")
        assert agent.definition_id == unique
        assert agent.capabilities == (offer,)
        assert agent.metadata["host"] == running.name
        reply = await mesh.request(unique, "add.exactly", {"a": 1})
        assert (reply.type, reply.payload) == ("added", {"sum": {"value": 2}, "parts": [1, 1]})
        reply = await mesh.request(unique, "add.more", {"a": 1, "b": 2}, mode="direct")
        assert reply.payload == {"total": 3, "second": {"part": 2}}
        assert await done(mesh, offer, {"a": 5}) == {"total": 6}
        with pytest.raises(BxmeshError, match="has no handler") as unhandled:
            await mesh.request(unique, "subtract", {})
        assert unhandled.value.reason == "UNHANDLED"
        with pytest.raises(BxmeshError, match="must be an object") as mismatch:
            await mesh.request(unique, "add.exactly", [1])
        assert mismatch.value.reason == "PAYLOAD_MISMATCH"
        with pytest.raises(BxmeshError, match="TypeError") as failure:
            await mesh.request(unique, "add.exactly", {"a": "x"})
        assert failure.value.reason == "FUNCTION_FAILED"
        figures = called(running, unique)
        assert (figures.messages, figures.tasks, figures.failed) == (5, 1, 3)
        assert (figures.tool_calls, figures.version) == (4, 1)
        assert figures.seconds > 0
        told = await live(mesh, unique, messages="5", tasks="1", failed="3", tool_calls="4")
        assert told.metadata["definition_version"] == "1"
    await gone(mesh, unique)


async def test_rules_delegate_as_deep_as_they_may(mesh: AsyncMesh, slow: Slow) -> None:
    slow.go.set()
    offer = capability("delegate")
    options: dict[str, Any] = {
        "capabilities": [offer],
        "rules": [Rule("*", Tool(capability="test.slow"), "did")],
    }
    unique = await active(mesh, "delegate", **options)
    async with host(mesh, unique):
        refused = await failed(mesh, offer, {})
        assert refused.error is not None
        assert refused.error.reason == "DEPTH_LIMIT"
        await mesh.definitions.update(unique, max_chain_depth=1)
        await mesh.definitions.activate(unique)
        await live(mesh, unique, definition_version="2")
        assert await done(mesh, offer, {"n": 1}) == {"did": {"n": 1}}
        child = (await soon(slow.begun.get())).task
        parent = await mesh.task(child.parent_task_id)
        assert (parent.task_type, child.depth) == (offer, 1)
        reply = await mesh.request(unique, "anything", "text")
        assert reply.payload == {"did": "text"}


async def test_input_is_checked(mesh: AsyncMesh, add: str) -> None:
    unique = await active(
        mesh,
        "checked",
        rules=[Rule("add", Tool(function=add), "added")],
        input_schema={"type": "object", "properties": {"a": {"type": "integer"}}},
    )
    async with host(mesh, unique):
        await live(mesh, unique)
        with pytest.raises(BxmeshError, match="is not of type 'integer'") as misfit:
            await mesh.request(unique, "add", {"a": "b"})
        assert misfit.value.field_violations[0][0] == "payload.a"
        assert (await mesh.request(unique, "add", {"a": 1})).payload["parts"] == [1, 1]


async def test_a_chain_runs(mesh: AsyncMesh, add: str) -> None:
    offer = capability("chain")
    chain = Chain(
        [
            ChainStep("one", function=add, inputs={"a": "input.n"}),
            ChainStep(
                "two", function=add, after=("one",), inputs={"a": "steps.one.output.sum.value"}
            ),
        ],
        outputs={"n": "steps.two.output.sum.value"},
    )
    unique = await active(mesh, "chain", chain=chain, max_chain_depth=2, capabilities=[offer])
    async with host(mesh, unique):
        await live(mesh, unique)
        reply = await mesh.request(unique, "count", {"n": 1})
        assert (reply.type, reply.payload) == ("count.reply", {"n": 3})
        assert await done(mesh, offer, {"n": 10}) == {"n": 12}
        ended = await failed(mesh, offer, {"n": "x"})
        assert ended.error is not None
        assert ended.error.reason == "FUNCTION_FAILED"
        runs = [run async for run in mesh.chains.list(definition_id=unique)]
        assert len(runs) == 3


async def test_what_is_under_way_ends_by_the_old_version(mesh: AsyncMesh, slow: Slow) -> None:
    rule = Rule("go", Tool(capability="test.slow"), "old")
    unique = await active(
        mesh,
        "reload",
        rules=[rule],
        max_chain_depth=1,
        limits=DefinitionLimits(max_concurrent_tasks=4),
    )
    async with host(mesh, unique):
        first = await live(mesh, unique)
        old = asyncio.create_task(mesh.request(unique, "go", 1))
        await soon(slow.begun.get())
        await mesh.definitions.update(
            unique, rules=[Rule("go", Tool(capability="test.slow"), "new", {"did": "done"})]
        )
        await mesh.definitions.activate(unique)
        await live(mesh, unique, definition_version="2")
        new = asyncio.create_task(mesh.request(unique, "go", 2))
        await soon(slow.begun.get())
        slow.go.set()
        assert (await soon(old)).type == "old"
        reply = await soon(new)
        assert (reply.type, reply.payload) == ("new", {"done": 2})
        assert (await mesh.agent(unique)).register_time == first.register_time
        # What it offers is known to the registry, so it registers anew, when it has ended.
        slow.go.clear()
        last = asyncio.create_task(mesh.request(unique, "go", 3))
        await soon(slow.begun.get())
        await mesh.definitions.update(unique, capabilities=[capability("other")])
        await mesh.definitions.activate(unique)
        await asyncio.sleep(0.3)
        slow.go.set()
        assert (await soon(last)).payload == {"done": 3}
        again = await live(mesh, unique, definition_version="3")
        assert again.capabilities
        await mesh.definitions.activate(unique, 1)
        await live(mesh, unique, definition_version="1")
        assert (await mesh.request(unique, "go", 4)).type == "old"


async def test_draining_ends_what_was_begun(mesh: AsyncMesh, slow: Slow) -> None:
    rule = Rule("go", Tool(capability="test.slow"), "went")
    unique = await active(mesh, "drain", rules=[rule], max_chain_depth=1)
    async with host(mesh, unique):
        await live(mesh, unique)
        under_way = asyncio.create_task(mesh.request(unique, "go", 1))
        await soon(slow.begun.get())
        assert (await mesh.definitions.drain(unique)).state == "draining"
        await until(lambda: _status(mesh, unique, "draining"))
        assert (await mesh.definitions.get(unique)).state == "draining"
        slow.go.set()
        assert (await soon(under_way)).payload == {"did": 1}
        await gone(mesh, unique)
        assert (await mesh.definitions.get(unique)).state == "inactive"
        await mesh.definitions.activate(unique)
        await live(mesh, unique)
        await mesh.definitions.stop(unique)
        await gone(mesh, unique)
        await mesh.definitions.delete(unique)


async def _status(mesh: AsyncMesh, agent_id: str, status: str) -> bool:
    return (await mesh.agent(agent_id)).status == status


async def test_stopping_gives_back_what_was_begun(mesh: AsyncMesh, slow: Slow) -> None:
    rule = Rule("go", Tool(capability="test.slow"), "went")
    unique = await active(mesh, "stop", rules=[rule], max_chain_depth=1)
    async with host(mesh, unique):
        await live(mesh, unique)
        under_way = asyncio.create_task(mesh.request(unique, "go", 1))
        child = await soon(slow.begun.get())
        await mesh.definitions.stop(unique)
        await gone(mesh, unique)
        assert (await soon(mesh.wait_for_task(child.id))).state == "cancelled"
        slow.go.set()
        await mesh.definitions.activate(unique)
        assert (await soon(under_way)).payload == {"did": 1}


async def test_hosts_share_replicas_and_take_over(mesh: AsyncMesh, add: str) -> None:
    rules = [Rule("add", Tool(function=add), "added")]
    unique = name("shared")
    await mesh.definitions.create(unique, rules=rules, replicas=3)
    names = [unique, f"{unique}-2", f"{unique}-3"]
    own = [await active(mesh, "own", rules=rules) for _ in range(2)]
    async with host(mesh, unique, own[0]) as second:
        async with host(mesh, unique, own[1]) as first:
            for each in own:
                await live(mesh, each)
            await mesh.definitions.activate(unique)
            agents = [await live(mesh, each) for each in names]
            assert {agent.metadata["host"] for agent in agents} == {first.name, second.name}
        for each in names:
            await live(mesh, each, host=second.name)
        assert (await mesh.request(names[2], "add", {"a": 1})).type == "added"
        await mesh.definitions.update(unique, replicas=1)
        await mesh.definitions.activate(unique)
        await gone(mesh, names[1])
        await gone(mesh, names[2])
        await live(mesh, unique, host=second.name)


async def test_a_host_runs_no_more_than_it_may(mesh: AsyncMesh, add: str) -> None:
    rules = [Rule("add", Tool(function=add), "added")]
    names = {await active(mesh, "most", rules=rules) for _ in range(3)}
    async with host(mesh, *names, most=2) as few:

        async def there() -> set[str]:
            return {one.agent_id for one in await mesh.agents() if one.agent_id in names}

        await until(lambda: _many(there, 2))
        await asyncio.sleep(0.5)
        running = await there()
        assert len(running) == 2
        await mesh.definitions.stop(running.pop())

        async def another_one() -> bool:
            return len(few.figures()) == 3

        await until(another_one)
        assert len(await there()) == 2


async def _many(there: Any, count: int) -> bool:
    return len(await there()) == count


async def test_what_is_done_is_done_for_the_caller(mesh: AsyncMesh, add: str) -> None:
    offer = capability("behalf")
    unique = await active(
        mesh,
        "behalf",
        capabilities=[offer],
        rules=[
            Rule("add", Tool(function=add), "added"),
            Rule(offer, Tool(function=add)),
        ],
    )
    agents = ("agent_register", "message_send", "message_receive", "registry_read")
    tasks = ("task_assign", "task_read")

    class Sender(Agent):
        @on("added")
        async def added(self, message: Message) -> None:
            pass

    async with host(mesh, unique):
        await live(mesh, unique)
        for permissions, reason in (
            (("function_execute",), ""),
            ((), "PERMISSION_DENIED"),
        ):
            who = await become(mesh, name("caller"), *agents, *tasks, *permissions)
            async with who as caller, Sender(name("sender")).running(caller) as sender:
                for asker in (sender, caller):
                    if not reason:
                        reply = await asker.request(unique, "add", {"a": 1})
                        assert reply.type == "added"
                        continue
                    with pytest.raises(BxmeshError, match="function_execute") as denied:
                        await asker.request(unique, "add", {"a": 1})
                    assert reason in denied.value.code.name
                if not reason:
                    assert (await done(caller, offer, {"a": 1}))["parts"] == [1, 1]
                    continue
                task = await failed(caller, offer, {"a": 1})
                assert task.error is not None
                assert task.error.code.name == reason


async def test_definitions_do_not_lend_their_permissions_on(mesh: AsyncMesh, add: str) -> None:
    outer, inner, chained = capability("outer"), capability("inner"), capability("chained")
    names = [
        await active(
            mesh,
            "chained",
            capabilities=[chained],
            chain=Chain([ChainStep("inner", capability=inner)]),
            max_chain_depth=2,
        ),
        await active(
            mesh,
            "outer",
            capabilities=[outer],
            rules=[Rule("*", Tool(capability=inner))],
            max_chain_depth=2,
        ),
        await active(mesh, "inner", capabilities=[inner], rules=[Rule("*", Tool(function=add))]),
    ]
    async with host(mesh, *names):
        who = await become(mesh, name("low"), "task_assign", "task_read")
        async with who as low:
            for offer in (outer, chained):
                assert (await done(mesh, offer, {"a": 1}))["parts"] == [1, 1]
                task = await failed(low, offer, {"a": 1})
                assert task.error is not None
                assert "function_execute" in task.error.message


async def test_a_chain_that_was_begun_is_found_again(mesh: AsyncMesh, slow: Slow) -> None:
    chain = Chain([ChainStep("wait", capability="test.slow")])
    unique = await active(mesh, "found", chain=chain, max_chain_depth=1)
    async with host(mesh, unique):
        await live(mesh, unique)
        under_way = asyncio.create_task(mesh.request(unique, "go", {"n": 1}))
        await soon(slow.begun.get())
        await mesh.definitions.stop(unique)
        await gone(mesh, unique)
        await mesh.definitions.activate(unique)
        await live(mesh, unique)
        slow.go.set()
        assert (await soon(under_way)).payload == {"did": {"n": 1}}
        assert len([run async for run in mesh.chains.list(definition_id=unique)]) == 1
        assert slow.begun.empty()


async def test_a_chain_that_nobody_waits_for_is_cancelled(mesh: AsyncMesh, slow: Slow) -> None:
    offer = capability("cancelled")
    chain = Chain([ChainStep("wait", capability="test.slow")])
    unique = await active(mesh, "cancelled", chain=chain, max_chain_depth=1, capabilities=[offer])
    async with host(mesh, unique):
        task = await mesh.assign_task(offer, {}, wait_for_agent=True)
        await soon(slow.begun.get())
        await mesh.cancel_task(task.task_id)

        async def ended() -> bool:
            runs = [run async for run in mesh.chains.list(definition_id=unique)]
            return [run.state for run in runs] == ["cancelled"]

        await until(ended)


async def test_hosts_come_back_to_a_mesh_that_was_away(state_dir: Path) -> None:
    with start_mesh(state_dir) as server:
        async with client(server) as mesh:
            await mesh.functions.create("test.add", ADD)
            rules = [Rule("add", Tool(function="test.add"), "added")]
            unique = await active(mesh, "before", rules=rules)
            async with Host(mesh, name="stays").running():
                await live(mesh, unique)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                other = await active(mesh, "after", rules=rules)
                for each in (unique, other):
                    await live(mesh, each, host="stays")
                    assert (await mesh.request(each, "add", {"a": 1})).type == "added"

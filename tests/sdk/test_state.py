"""What agents keep across restarts."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from pydantic import BaseModel

from bxmesh.client import Agent, AsyncMesh, FailedPrecondition, InvalidInput, Message, on
from tests.processes import until
from tests.sdk.agents import name


class Tally(BaseModel):
    count: int = 0
    names: list[str] = []
    note: str | None = None


class Counter(Agent[Tally]):
    @on("count")
    async def count(self, message: Message) -> None:
        await self.update_state(self._one_more)

    @staticmethod
    def _one_more(state: Tally) -> None:
        state.count += 1


async def test_state_survives_the_agent(mesh: AsyncMesh) -> None:
    agent_id = name("counter")
    async with Counter(agent_id).running(mesh) as counter:
        assert counter.state == Tally()
        assert await counter.update_state(count=3, names=["a"]) == Tally(count=3, names=["a"])
        assert counter.state.count == 3
        await counter.update_state(note="kept")
    async with Counter(agent_id).running(mesh) as counter:
        assert counter.state == Tally(count=3, names=["a"], note="kept")
        await counter.update_state(note=None)
        assert counter.state.note is None
    stored = await mesh.state(agent_id)
    assert stored.value["count"] == 3
    assert (stored.agent_id, stored.updated_by, stored.revision > 0) == (agent_id, "admin", True)


async def test_two_writers_lose_nothing(mesh: AsyncMesh) -> None:
    counter = Counter(name("counter"))
    async with counter.running(mesh):
        await counter.update_state(count=1)
        await mesh.update_state(counter.agent_id, {"count": 10, "names": ["other"]})
        with pytest.raises(FailedPrecondition) as raised:
            await counter.update_state(count=counter.state.count + 1)
        assert raised.value.code.name == "ABORTED"
        # What the other wrote is known now.
        assert counter.state == Tally(count=10, names=["other"])
        await mesh.update_state(counter.agent_id, {"count": 20})
        await counter.update_state(lambda state: state.model_copy(update={"count": 21}))
        assert (await mesh.state(counter.agent_id)).value["count"] == 21


async def test_handlers_at_once_count_right(mesh: AsyncMesh) -> None:
    async with Counter(name("counter"), concurrency=8).running(mesh) as counter:
        for _ in range(20):
            await mesh.send(counter.agent_id, "count")
        async with aclosing(mesh.watch_state(counter.agent_id)) as states:
            async with asyncio.timeout(30):
                async for state in states:
                    if state.value.get("count") == 20:
                        break
        # The watch may hear of it before the agent has its answer.
        await until(lambda: counter.state.count == 20)


async def test_what_does_not_fit_is_refused_before_it_is_sent(mesh: AsyncMesh) -> None:
    async with Counter(name("counter")).running(mesh) as counter:
        with pytest.raises(InvalidInput, match="model"):
            await counter.update_state(count="many")
        assert (await mesh.state(counter.agent_id)).revision == 0
        await mesh.update_state(counter.agent_id, {"count": "many"})
        with pytest.raises(InvalidInput, match="model"):
            await counter.update_state(lambda state: None)
    with pytest.raises(InvalidInput, match="model"):
        async with Counter(counter.agent_id).running(mesh):
            pass
    async with Agent(name("plain")).running(mesh) as plain:
        with pytest.raises(InvalidInput, match="state_model"):
            plain.state  # noqa: B018


async def test_the_model_may_be_an_attribute(mesh: AsyncMesh) -> None:
    class Plain(Agent):
        state_model = Tally

    async with Plain(name("plain")).running(mesh) as plain:
        assert await plain.update_state(count=2) == Tally(count=2)


async def test_a_state_may_be_a_dict(mesh: AsyncMesh) -> None:
    class Free(Agent[dict[str, int]]): ...

    async with Free(name("free")).running(mesh) as free:
        await free.update_state(a=1)
        await free.update_state(lambda state: {**state, "b": 2})
        assert free.state == {"a": 1, "b": 2}


async def test_plain_calls(mesh: AsyncMesh) -> None:
    agent_id = name("nobody")
    empty = await mesh.state(agent_id)
    assert (empty.value, empty.revision, empty.update_time) == ({}, 0, None)
    first = await mesh.update_state(agent_id, {"a": {"b": 1, "c": 2}, "d": 3}, expected_revision=0)
    with pytest.raises(FailedPrecondition):
        await mesh.update_state(agent_id, {"a": 1}, expected_revision=0)
    patched = await mesh.update_state(agent_id, {"a": {"b": None}, "e": 4})
    assert patched.value == {"a": {"c": 2}, "d": 3, "e": 4}
    assert patched.revision > first.revision
    masked = await mesh.update_state(agent_id, {"a": {"c": 5}}, mask=["a.c", "d"])
    assert masked.value == {"a": {"c": 5}, "e": 4}
    replaced = await mesh.update_state(agent_id, {"f": 6}, mask=[])
    assert replaced.value == {"f": 6}

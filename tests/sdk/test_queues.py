"""Dead letters and mailboxes, by plain calls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bxmesh.client import AsyncMesh, InvalidInput, Message
from bxmesh.client.agents import DeadLetter, QueueStats
from tests.processes import until
from tests.sdk.agents import Recorder, Worker, soon


async def letters(mesh: AsyncMesh, agent_id: str) -> list[DeadLetter]:
    return [letter async for letter in mesh.dead_letters(agent_id=agent_id)]


async def test_dead_letters_are_listed_replayed_and_purged(mesh: AsyncMesh) -> None:
    async with Worker().running(mesh) as bob:
        sent = [await mesh.send(bob.agent_id, "drop", {"n": n}) for n in range(3)]

        async def buried() -> bool:
            return len(await letters(mesh, bob.agent_id)) == 3

        await until(buried)
        found = await letters(mesh, bob.agent_id)
        assert {one.content.id for one in found if isinstance(one.content, Message)} == {
            receipt.message_id for receipt in sent
        }
        assert {one.error.reason for one in found} == {"NO_USE"}
        assert {one.attempts for one in found} == {1}
        one = found[0].dead_letter_id
        replay = await mesh.replay_dead_letters(dead_letter_ids=[one], agent_id=bob.agent_id)
        assert replay.replayed == 1
        await until(lambda: bob.get_stats().dropped == 4)
        assert await mesh.purge_dead_letters(agent_id=bob.agent_id, reason="OTHER") == 0
        await until(buried)
        assert await mesh.purge_dead_letters(agent_id=bob.agent_id) == 3
        assert await letters(mesh, bob.agent_id) == []
    with pytest.raises(InvalidInput):
        await mesh.purge_dead_letters()


async def test_handled_messages_are_delivered_again(mesh: AsyncMesh) -> None:
    began = datetime.now(UTC) - timedelta(seconds=5)
    async with Recorder().running(mesh) as bob:
        for n in range(3):
            await mesh.send(bob.agent_id, f"kind.{n}", n)
        got = [await bob.next() for _ in range(3)]
        await until(lambda: bob.get_stats().in_flight == 0)
        replay = await mesh.replay_messages(bob.agent_id, start_time=began)
        assert (replay.replayed, replay.next_entry_id) == (3, "")
        again = [await bob.next() for _ in range(3)]
        assert sorted(one.id for one in again) == sorted(one.id for one in got)
        await until(lambda: bob.get_stats().in_flight == 0)
        replay = await mesh.replay_messages(
            bob.agent_id, start_time=began, message_types=["kind.1"], limit=1
        )
        assert (await bob.next()).type == "kind.1"
    with pytest.raises(InvalidInput, match="one of the two"):
        await mesh.replay_messages(bob.agent_id)


async def test_figures_of_a_mailbox(mesh: AsyncMesh) -> None:
    async def figures() -> QueueStats:
        (stats,) = [one async for one in mesh.queue_stats(agent_id=bob.agent_id)]
        return stats

    async with Worker(concurrency=1).running(mesh) as bob:
        await mesh.send(bob.agent_id, "wait.first")
        await soon(bob.begun.get())
        await mesh.send(bob.agent_id, "wait.second", priority="high")
        stats = await figures()
        assert stats.queue == f"agent/{bob.agent_id}"
        assert (stats.in_flight, stats.connections) == (1, 1)
        assert stats.waiting["high"] == 1
        assert stats.oldest_age >= 0
        assert stats.capacity > 0
        bob.go.set()
        for _ in range(2):
            await soon(bob.ended.get())

        async def done() -> bool:
            now = await figures()
            return (now.acknowledged, now.in_flight, sum(now.waiting.values())) == (2, 0, 0)

        await until(done)
        everybody = [one.queue async for one in mesh.queue_stats(page_size=1)]
        assert f"agent/{bob.agent_id}" in everybody

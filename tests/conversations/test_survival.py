"""Conversations outlive servers, and end plainly where they cannot."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.agent.v1.conversation_work_pb2 import ConversationWork
from bxmesh.client.conversations import Question
from bxmesh.server.conversations.archive import open_archive
from bxmesh.server.conversations.events import EventLog
from bxmesh.server.conversations.keeper import ConversationKeeper
from bxmesh.server.conversations.mesh import ConversationMesh
from bxmesh.server.conversations.work import KIND
from bxmesh.server.database import open_database
from bxmesh.server.security.circuit_breakers import ALL_CLOSED
from bxmesh.server.security.data_loss import ALL_PASS
from bxmesh.server.streams import QueueOptions, WorkQueue
from bxmesh.server.streams.change_bell import ChangeBell
from bxmesh.server.streams.seals import Seals
from bxmesh.server.time_ids import id_at
from tests.conversations.talk import Talk, spec, taking_part
from tests.databases import database_url, postgres
from tests.sdk.conftest import client, start_mesh, state_dir

__all__ = ["database_url", "postgres", "state_dir"]

COMPLETED = pb.CONVERSATION_STATE_COMPLETED


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_another_server_goes_on_where_one_was(state_dir: Path, end: str) -> None:
    count: Counter[tuple[str, int]] = Counter()
    second = asyncio.Event()

    def voice(name: str, seconds: float) -> Any:
        async def script(question: Question) -> str:
            if question.turn == 2:
                second.set()
            await asyncio.sleep(seconds)
            # Of an answer that was being given when the server was lost another is asked for.
            count[name, question.turn] += 1
            return f"turn {question.turn}, {len(question.earlier)} before"

        return script

    with start_mesh(state_dir, BXMESH_WORK_LEASE="1") as mesh:
        async with client(mesh) as caller:
            scripts = {"quick": voice("quick", 0.0), "slow": voice("slow", 1.0)}
            async with taking_part(caller, **scripts):
                wanted = spec("quick", "slow", turns=3)
                following = asyncio.create_task(_followed(Talk(caller), wanted))
                await second.wait()
                await asyncio.sleep(0.5)
                await asyncio.to_thread(getattr(mesh, end))
                await asyncio.to_thread(mesh.start)
                async with asyncio.timeout(60):
                    events = await following
    ended = events[-1].ended
    assert ended.state == COMPLETED
    assert ended.consensus.text == "turn 3, 4 before"
    said = Counter((turn.participant_id, turn.turn) for turn in ended.turns)
    assert said == {(name, turn): 1 for name in scripts for turn in (1, 2, 3)}
    revisions = [event.revision for event in events]
    assert revisions == sorted(set(revisions))
    assert [event.WhichOneof("event") for event in events].count("answered") == 6
    # What was answered before the server was lost is not asked again.
    assert count["quick", 1] == count["slow", 1] == count["quick", 2] == 1


async def _followed(talk: Talk, wanted: pb.ConversationSpec) -> list[pb.ConversationEvent]:
    events = talk.events(spec=wanted, request_id="followed")
    return [event async for event in events]


async def test_whoever_can_write_to_redis_says_nothing_in_anybodys_name(redis: Redis) -> None:
    honest, forger = EventLog(redis, Seals(b"k" * 32)), EventLog(redis, Seals(b"f" * 32))
    started = pb.ConversationEvent(conversation_id="c", revision=1, started=pb.Conversation())
    await honest.append([started])
    said = pb.Turn(turn=1, participant_id="one", text="what one never said")
    await forger.append([pb.ConversationEvent(conversation_id="c", revision=2, answered=said)])
    # Nor is an event of another conversation, or of another place, put into this one.
    await honest.append([pb.ConversationEvent(conversation_id="d", revision=3, answered=said)])
    [(_, fields)] = await redis.xrange("bxmesh:{conversation:d}:events")
    await redis.xadd("bxmesh:{conversation:c}:events", fields, id="0-3")
    assert [event.revision for event in await honest.all("c")] == [1]
    assert await honest.after("c", 1) == []
    await redis.xadd("bxmesh:{conversation:c}:events", {"event": b"\xff" * 9}, id="0-4")
    assert [event.revision for event in await honest.all("c")] == [1]


def long_ago(name: str) -> pb.Conversation:
    """A conversation that was begun two minutes ago."""
    began = time.time() - 120
    conversation = pb.Conversation(
        conversation_id=id_at(began) + name,
        owner="me",
        revision=1,
        state=pb.CONVERSATION_STATE_PENDING,
    )
    conversation.create_time.FromNanoseconds(int(began * 1e9))
    conversation.update_time.CopyFrom(conversation.create_time)
    return conversation


def started(conversation: pb.Conversation) -> pb.ConversationEvent:
    return pb.ConversationEvent(
        conversation_id=conversation.conversation_id,
        revision=1,
        event_time=conversation.create_time,
        started=conversation,
    )


async def test_what_nobody_holds_any_more_ends_as_lost(redis: Redis, database_url: str) -> None:
    log = EventLog(redis, Seals(None))
    async with (
        open_database(database_url) as database,
        open_archive(database, None, log.forget) as archive,
        ChangeBell(redis, "conversations") as bell,
    ):
        queue = WorkQueue(redis, QueueOptions(f"conversations-{time.time_ns()}"))
        mesh = ConversationMesh(redis, queue, log, archive, bell, ALL_PASS, ALL_CLOSED, 200)
        forgotten, told, held, unsaved = map(long_ago, ("forgotten", "told", "held", "unsaved"))
        for conversation in (forgotten, told, held, unsaved):
            await archive.save(conversation)
        # Of one Redis has lost everything, of one the work, and one waits for its turn.
        for conversation in (told, held, unsaved):
            await log.append([started(conversation)])
        await queue.enqueue(
            KIND,
            ConversationWork(conversation_id=held.conversation_id),
            item_id=f"{held.conversation_id}.1",
            request_id=f"{held.conversation_id}.1",
            identity="me",
        )
        # And one has ended before its server came to archive it.
        end = pb.Conversation()
        end.CopyFrom(unsaved)
        end.state, end.revision = COMPLETED, 2
        ended = pb.ConversationEvent(conversation_id=unsaved.conversation_id, revision=2, ended=end)
        await log.append([ended])
        await ConversationKeeper(mesh).look()
        found = {
            one.conversation_id: await archive.get(one.conversation_id, None)
            for one in (forgotten, told, held, unsaved)
        }
    states = [found[one.conversation_id].state for one in (forgotten, told, held, unsaved)]
    failed = pb.CONVERSATION_STATE_FAILED
    assert states == [failed, failed, pb.CONVERSATION_STATE_PENDING, COMPLETED]
    assert "Nobody holds" in found[told.conversation_id].error.message

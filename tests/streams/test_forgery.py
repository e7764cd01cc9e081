"""Whoever can write to Redis, but has not the mesh key, makes no work."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from redis.asyncio import Redis

from bxmesh.server.errors import MeshError, unavailable
from bxmesh.server.geometry.queue import queue_options
from bxmesh.server.settings import Settings
from bxmesh.server.streams import DeadLetters, QueueOptions, Worker, WorkerOptions, WorkQueue
from bxmesh.server.streams.dead_letters import Replayed
from bxmesh.server.streams.seals import UNSEALED, Seals, seals_of
from bxmesh.work.v1 import work_pb2
from tests.agent.mesh import agents, envelope
from tests.processes import until

KEY = bytes(range(32))
OPTIONS = QueueOptions("sealed", seals=Seals(KEY))
ROOT = Path(__file__).parents[2]


def entry(queue: WorkQueue, kind: str = "note", **fields: Any) -> work_pb2.WorkEntry:
    """An honest entry of a queue."""
    item = queue.new_item(kind, StringValue(value="x"), **fields)
    return queue.options.seals.entry(queue.options.name, item)


async def test_forged_entries_are_dead_letters_and_honest_work_goes_on(redis: Redis) -> None:
    queue = WorkQueue(redis, OPTIONS)
    done: list[str] = []

    async def note(context: Any) -> StringValue:
        done.append(context.item.item_id)
        return StringValue()

    changed = entry(queue, item_id="changed")
    changed.item.payload.Pack(StringValue(value="y"))
    other_identity = entry(queue, item_id="identity")
    other_identity.item.identity = "admin"
    forged = {
        "unsealed": UNSEALED.entry("sealed", entry(queue, item_id="unsealed").item),
        "another key": Seals(bytes(32)).entry("sealed", entry(queue, item_id="key").item),
        "another queue": Seals(KEY).entry("other", entry(queue, item_id="queue").item),
        "changed": changed,
        "identity": other_identity,
    }
    cut = entry(queue, item_id="cut")
    cut.seal = cut.seal[:16]
    forged["cut"] = cut
    worker = Worker(redis, OPTIONS, WorkerOptions("w", concurrency=4, handlers={"note": note}))
    async with worker_running(worker):
        for one in forged.values():
            await redis.xadd(queue.keys.shared, {"entry": one.SerializeToString(), "deliveries": 0})
        honest = await queue.enqueue("note", StringValue(value="x"))
        await until(lambda: done == [honest.item_id])

        async def all_dead() -> bool:
            return await redis.xlen(queue.keys.dead) == len(forged)

        await until(all_dead)
    letters = await DeadLetters(queue).list()
    reasons = {MeshError.from_status(one.letter.error).reason for one in letters}
    assert reasons == {"FORGED_ENTRY"}
    # Nobody gets them back to work by a replay either.
    for one in letters:
        assert await DeadLetters(queue).replay_stored(one) is Replayed.FORGED
    assert done == [honest.item_id]


@asynccontextmanager
async def worker_running(worker: Worker) -> AsyncIterator[None]:
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await task


async def test_a_retried_item_keeps_its_seal(redis: Redis) -> None:
    queue = WorkQueue(redis, OPTIONS)
    tries = 0

    async def note(context: Any) -> StringValue:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise unavailable("Not yet.", reason="NO")
        return StringValue()

    worker = Worker(redis, OPTIONS, WorkerOptions("w", handlers={"note": note}))
    async with worker_running(worker):
        await queue.enqueue("note", StringValue(value="x"), request_id="r")
        await until(lambda: tries == 3)
    assert await redis.xlen(queue.keys.dead) == 0


async def test_a_forged_message_reaches_no_agent(shared_valkey: str) -> None:
    async with agents(shared_valkey) as mesh:
        await mesh.redis.flushall()
        lease = await mesh.register("bob")
        queue = mesh.service.mesh.mailboxes.queue
        item = queue.new_item("message", envelope("bob", "forged"))
        inbox = queue.keys.inbox("bob", 2)
        await mesh.redis.xgroup_create(inbox, "workers", "0", mkstream=True)
        await mesh.redis.xadd(
            inbox,
            {"entry": work_pb2.WorkEntry(item=item).SerializeToString(), "deliveries": 0},
        )
        await mesh.send(recipient="bob", message_type="honest")
        async with mesh.connected("bob", lease_id=lease, initial_credit=5) as bob:
            assert (await bob.delivery()).envelope.message_type == "honest"

            async def buried() -> bool:
                return await mesh.redis.xlen(queue.keys.dead) == 1

            await until(buried)


async def test_servers_with_another_key_refuse_each_others_work(
    shared_valkey: str, tmp_path: Path
) -> None:
    async with (
        agents(shared_valkey, mesh_key_file=tmp_path / "one.key") as one,
        agents(shared_valkey, mesh_key_file=tmp_path / "two.key") as two,
    ):
        await one.redis.flushall()
        lease = await one.register("bob")
        await two.send(recipient="bob", message_type="strange")
        await one.send(recipient="bob", message_type="own")
        async with one.connected("bob", lease_id=lease, initial_credit=5) as bob:
            assert (await bob.delivery()).envelope.message_type == "own"


def test_a_served_mesh_always_seals(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    assert queue_options(settings).seals.sealing
    assert settings.mailbox_options.queue().seals.sealing
    assert seals_of(tmp_path / "mesh.key") is settings.seals
    assert (tmp_path / "mesh.key").stat().st_mode & 0o777 == 0o600
    assert KEY.hex() not in repr(Seals(KEY))


CONTAINER_MAIN = ROOT / "servers/bxmesh/server/functions/container_main.py"


@pytest.mark.parametrize("folder", ["servers", "clients"])
def test_nothing_turns_data_into_code(folder: str) -> None:
    """No pickle, no marshal, no eval: what comes out of Redis or off the wire stays data."""
    banned_modules = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    banned_names = {"eval", "exec", "compile", "__import__"}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
                assert not names & banned_modules, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in banned_modules, path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                # It is there to execute code, and only ever runs in a container without anything of
                # ours; the rest holds for it too.
                allowed = {"exec", "compile"} if path == CONTAINER_MAIN else set()
                assert node.func.id not in banned_names - allowed, path


async def test_a_forged_entry_is_told(redis: Redis) -> None:
    told: list[str] = []
    options = QueueOptions("told", seals=Seals(KEY))
    options.seals.on_forged = told.append
    queue = WorkQueue(redis, options)
    held = queue.read(queue.keys.shared, b"1-0", {b"entry": b"\x0a\x03\x0a\x01x"})
    assert held.problem is not None
    assert held.problem.reason == "FORGED_ENTRY"
    assert told == [queue.keys.shared]

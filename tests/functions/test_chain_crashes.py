"""A server that is killed while it runs chains: another one finishes them, and repeats nothing."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from bxmesh.agent.v1 import chain_run_pb2 as pb
from bxmesh.client import AsyncMesh, Chain, ChainRun, ChainStep
from bxmesh.server.chains.steps import Calls, StepCall
from bxmesh.server.chains.store import ChainStore
from bxmesh.server.embedded import EmbeddedMesh
from tests.functions.mesh import Caller, World

NAP = """\
import asyncio

async def main(run, step):
    await asyncio.sleep(0.4)
    return {'run': run, 'step': step}
"""
# What came before, so long ago that the history has it.
_WRITTEN = timedelta(seconds=0.3)


def server(folder: Path, redis_url: str, database: Path) -> EmbeddedMesh:
    return EmbeddedMesh(
        folder,
        workers=0,
        env={
            "BXMESH_WORK_LEASE": "1",
            "BXMESH_DATABASE_URL": f"sqlite:///{database}",
            "BXMESH_FUNCTION_WORKERS": "4",
        },
        arguments=("--redis-url", redis_url),
    )


def client(mesh: EmbeddedMesh) -> AsyncMesh:
    return AsyncMesh(mesh.address, state_dir=mesh.state_dir)


def nap(name: str, *after: str) -> ChainStep:
    inputs = {"run": "input.run", "step": f"'{name}'"}
    return ChainStep(name, function="test.nap", after=after, inputs=inputs)


CHAIN = Chain(
    [
        nap("a"),
        nap("b", "a"),
        nap("c", "a"),
        nap("d", "b", "c"),
        nap("e", "d"),
        nap("f", "e"),
        nap("g", "f"),
    ]
)


def stored(database: Path, run_id: str) -> dict[str, pb.StepRun]:
    """The steps of a run as a server that was killed has left them."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT step FROM chain_steps WHERE run_id = ?", (run_id,))
        steps = [pb.StepRun.FromString(row[0]) for row in rows]
    return {step.step_id: step for step in steps}


async def test_another_server_goes_on_and_repeats_nothing(
    redis: Redis, shared_valkey: str, short_dir: Path
) -> None:
    first_dir, second_dir = short_dir / "1", short_dir / "2"
    database = first_dir / "mesh.db"
    with server(first_dir, shared_valkey, database) as first:
        async with client(first) as mesh:
            await mesh.functions.create("test.nap", NAP, imports=["asyncio"])
            runs: list[ChainRun] = []
            for number in range(3):
                # So that they are at different steps when it happens.
                runs.append(await mesh.chains.start(CHAIN, {"run": number}))
                await asyncio.sleep(0.25)
            async for change in mesh.chains.watch(runs[0].run_id):
                if change.step and (change.step.step_id, change.step.state) == ("d", "running"):
                    break
            await asyncio.sleep(0.2)
        first.kill()
    killed = datetime.now(UTC)
    left = [stored(database, run.run_id) for run in runs]
    assert [left[0][step].state for step in "abcde"] == [
        *[pb.RUN_STATE_COMPLETED] * 3,
        pb.RUN_STATE_RUNNING,
        pb.RUN_STATE_PENDING,
    ]
    second_dir.mkdir(mode=0o700)
    for key in first_dir.glob("*.key"):
        shutil.copy(key, second_dir)
    with server(second_dir, shared_valkey, database) as second:
        async with client(second) as mesh:
            async with asyncio.timeout(30):
                ended = [await mesh.chains.wait(run.run_id) for run in runs]
            # The last one is written a moment after it has ended.
            await asyncio.sleep(0.5)
            executions = [one async for one in mesh.functions.executions("test.nap")]
    assert [run.state for run in ended] == ["completed"] * 3, [run.error for run in ended]
    assert [run.value for run in ended] == [{"run": n, "step": "g"} for n in range(3)]
    done = Counter(
        (one.output["run"], one.output["step"]) for one in executions if one.state == "completed"
    )
    under_way = 0
    for number, steps in enumerate(left):
        for name, step in steps.items():
            count = done[number, name]
            if step.state == pb.RUN_STATE_COMPLETED:
                # What it answered stays, and it was not done again.
                assert step in ended[number].message.steps
                written = step.end_time.ToDatetime(UTC) < killed - _WRITTEN
                assert count == 1 if written else count <= 1, (number, name, count)
            elif step.state == pb.RUN_STATE_RUNNING:
                under_way += 1
                assert 1 <= count <= 2, (number, name, count)
            else:
                assert count == 1, (number, name, count)
    assert under_way >= 3
    # Nothing else was executed: those that were cut off have no end.
    assert len(executions) <= 3 * len(CHAIN.steps) + under_way


async def test_what_follows_begins_when_it_is_written(
    world: World, admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, call = ChainStore.save, Calls.call
    written: set[str] = set()
    seen: list[tuple[str, bool]] = []

    async def slow(
        self: ChainStore, run: pb.ChainRun, steps: dict[int, pb.StepRun], *, whole: bool = False
    ) -> None:
        done = {s.step_id for s in steps.values() if s.state == pb.RUN_STATE_COMPLETED}
        await asyncio.sleep(0.05)
        await save(self, run, steps, whole=whole)
        written.update(done)

    async def checked(self: Calls, attempt: StepCall) -> tuple[Any, str]:
        seen.append((attempt.step.step_id, written.issuperset(attempt.step.after)))
        return await call(self, attempt)

    monkeypatch.setattr(ChainStore, "save", slow)
    monkeypatch.setattr(Calls, "call", checked)
    await admin.create("test.nap", NAP, is_async=True, allowed_imports=["asyncio"])
    key = admin.metadata[0][1].removeprefix("Bearer ")
    async with AsyncMesh(world.server.address, api_key=key) as mesh:
        assert await mesh.chains.run(CHAIN, {"run": 0}) == {"run": 0, "step": "g"}
    assert sorted(seen) == [(name, True) for name in "abcdefg"]

"""A mesh with an activity log, as it is served: it answers whether or not the log can be written."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from bxmesh.server.activity import keeper
from bxmesh.server.activity.events import day_of
from bxmesh.server.activity.recorder import Recorder
from bxmesh.server.embedded import EmbeddedMesh, EmbeddedMeshError
from tests.activity.mesh import lines, logged, logs
from tests.processes import until
from tests.tasks.harness import until as until_true


async def test_the_mesh_answers_while_the_disk_is_full(
    redis: Redis, shared_valkey: str, tmp_path: Path
) -> None:
    path = tmp_path / f"messages-{day_of(time.time())}.jsonl"
    path.symlink_to("/dev/full")
    async with logged(shared_valkey, tmp_path) as mesh, mesh.connected("bob") as bob:
        recorder = mesh.service.mesh.activity
        assert isinstance(recorder, Recorder)
        for _ in range(20):
            await mesh.send(recipient="bob")
            await bob.answer(await bob.delivery())
            await bob.credit()
        await until(lambda: recorder.log.dropped["disk"] >= 60)
        await mesh.send(recipient="bob")
        path.unlink()
        (gap,) = await logs(tmp_path, "messages", event="lines_dropped")
        await bob.answer(await bob.delivery())
    assert gap["lines"] >= 60
    assert lines(tmp_path, "messages", event="acknowledged")
    assert lines(tmp_path, "agents", event="registered")


async def test_a_line_of_figures_each_minute(
    redis: Redis, shared_valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_MINUTE_SECONDS", 0.2)
    async with logged(shared_valkey, tmp_path) as mesh:
        await mesh.register("bob")
        for _ in range(3):
            await mesh.send(recipient="bob")

        def found() -> bool:
            return any(
                line["depths"].get("mailboxes.items") for line in lines(tmp_path, "performance")
            )

        await until_true(found)
    figures = lines(tmp_path, "performance")
    assert sum(line["counts"].get("messages.accepted", 0) for line in figures) == 3
    last = figures[-1]["depths"]
    assert (
        last.items()
        >= {
            "agents.live": 1,
            "mailboxes.items": 3,
            "mailboxes.delayed": 0,
            "mailboxes.dead_letters": 0,
            "tasks.pending": 0,
        }.items()
    )


async def test_serve_keeps_a_log_when_asked_to(tmp_path: Path, short_dir: Path) -> None:
    directory = tmp_path / "activity"

    def run() -> None:
        arguments = ("--activity-log", str(directory))
        with EmbeddedMesh(short_dir, workers=1, arguments=arguments):
            deadline = time.monotonic() + 60
            while not lines(directory, "agents", event="registered"):
                assert time.monotonic() < deadline
                time.sleep(0.05)

    await asyncio.to_thread(run)
    (joined,) = lines(directory, "agents", event="registered")
    assert joined["capabilities"]
    (left,) = lines(directory, "agents", event="left")
    assert left["agent_id"] == joined["agent_id"]


async def test_serve_says_that_a_directory_is_of_no_use(tmp_path: Path, short_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ("--activity-log", str(tmp_path / "file" / "log"))
    with pytest.raises(EmbeddedMeshError, match="Not a directory"):
        await asyncio.to_thread(EmbeddedMesh(short_dir, workers=0, arguments=arguments).start)

"""The command line against a real mesh with agents in it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from click.testing import CliRunner

from bxmesh.client import Agent, Drop, Message, TaskContext, on, task
from bxmesh.client.cli import main
from bxmesh.server.embedded import EmbeddedMesh
from tests.mesh.test_cli import BXMESH, INTERRUPTIBLE
from tests.sdk.agents import name
from tests.sdk.conftest import client, mesh, shared_server

__all__ = ["mesh", "shared_server"]


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)


Run = Callable[..., Awaitable[Ended]]


@pytest.fixture
def bxmesh(shared_server: EmbeddedMesh) -> Run:
    """Runs `bxmesh` with arguments against the mesh of the tests."""

    async def run(*arguments: object, stdin: str | None = None) -> Ended:
        words = [*map(str, arguments), "--state-dir", str(shared_server.state_dir)]
        result = await asyncio.to_thread(CliRunner().invoke, main, words, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


async def start(server: EmbeddedMesh, *arguments: object) -> asyncio.subprocess.Process:
    """Starts `bxmesh` with arguments in a process of its own, which can be interrupted."""
    words = [BXMESH, *arguments, "--state-dir", server.state_dir]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        INTERRUPTIBLE,
        *map(str, words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


class Helper(Agent):
    """Answers messages, drops poison, and does tasks."""

    def __init__(self, agent_id: str, **options: Any) -> None:
        super().__init__(agent_id, **options)
        self.got: asyncio.Queue[Message] = asyncio.Queue()
        self.begun: asyncio.Queue[str] = asyncio.Queue()

    @on("greet")
    async def greet(self, message: Message) -> None:
        await message.reply("greeting", {"hello": message.payload})

    @on("poison")
    async def poison(self, message: Message) -> None:
        raise Drop("It cannot be read.")

    async def on_message(self, message: Message) -> None:
        self.got.put_nowait(message)

    @task("sum")
    async def sum(self, task: TaskContext) -> float:
        await task.progress(50, "half of it")
        return float(sum(task.parameters))

    @task("fail")
    async def fail(self, task: TaskContext) -> None:
        raise Drop("It does not add up.")

    @task("hang")
    async def hang(self, task: TaskContext) -> None:
        self.begun.put_nowait(task.id)
        await asyncio.Event().wait()


@pytest.fixture
async def helper(shared_server: EmbeddedMesh) -> AsyncIterator[Helper]:
    """An agent with a name that no other test has."""
    async with client(shared_server) as mesh, Helper(name("helper")).running(mesh) as helper:
        yield helper

"""Messages and tasks under load, while agents, server and Valkey are killed again and again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bxmesh.client import AsyncMesh, Message, RetryPolicy
from bxmesh.client.errors import Unavailable
from bxmesh.server.embedded import EmbeddedMesh
from tests.processes import children, command

AGENTS = ("recorder-1", "recorder-2", "recorder-3")
_SENDERS = 64
_ENVIRONMENT = {
    # Short, so that what a killed process held comes again soon.
    "BXMESH_DELIVERY_LEASE": "3",
    # However often chance kills the agent that has a message, it is not given up for that.
    "BXMESH_MESSAGE_ATTEMPTS": "100",
}
_RETRY = RetryPolicy(max_attempts=100, initial_backoff=0.1, max_backoff=1.0)
_STILL_SECONDS = 60.0
_T = TypeVar("_T")


@dataclass
class Outcome:
    """What came of a storm."""

    sent: set[str] = field(default_factory=set)
    poison: set[str] = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)
    handled: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Message and task ids, and the attempts at which they were handled."""
    states: Counter[str] = field(default_factory=Counter)
    """Tasks by state."""
    dead: dict[str, str] = field(default_factory=dict)
    """Messages that are dead letters, with their reasons."""
    waiting: int = -1
    """What is left in the mailboxes."""
    kills: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def check(self) -> None:
        """Fails when something was lost, done twice unmarked, or given up without a reason."""
        everything = self.sent | self.tasks
        missing = everything - self.handled.keys()
        assert not missing, f"{len(missing)} were lost, for example {sorted(missing)[:3]}"
        assert self.handled.keys() <= everything
        for name, attempts in self.handled.items():
            # At least once: whatever comes again says so.
            assert len(set(attempts)) == len(attempts), (name, attempts)
        assert self.states == {"completed": len(self.tasks)}, self.states
        assert self.dead == dict.fromkeys(self.poison, "CHAOS_POISON")
        assert self.waiting == 0


class Storm:
    """One run; everything about it depends on its seed but the timing of the machine."""

    def __init__(self, seed: int, *, messages: int, tasks: int, poison: int, kills: int) -> None:
        self.outcome = Outcome()
        self._random = random.Random(seed)
        self._messages = messages
        self._tasks = tasks
        self._poison = poison
        self._kills = kills
        self._folder = Path()
        self._agents: dict[str, subprocess.Popen[bytes]] = {}

    async def run(self) -> Outcome:
        """Runs it to the end, when all is done or nothing moves any more."""
        began = time.monotonic()
        with ExitStack() as stack:
            self._folder = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="bx-", ignore_cleanup_errors=True)
                )
            )
            self._server = EmbeddedMesh(self._folder, workers=0, env=_ENVIRONMENT)
            stack.enter_context(self._server)
            stack.callback(self._stop_agents)
            for name in AGENTS:
                self._start_agent(name)
            async with AsyncMesh(state_dir=self._folder) as mesh:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._wreck())
                    for sender in self._senders(mesh):
                        group.create_task(sender)
                await self._settle(mesh)
                await self._look(mesh)
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    # Load

    def _senders(self, mesh: AsyncMesh) -> list[Coroutine[None, None, None]]:
        jobs: list[Callable[[], Awaitable[None]]] = []
        for number in range(self._messages + self._poison):
            poison = number < self._poison
            name = f"{'poison' if poison else 'message'}-{number}"
            recipient = self._random.choice(AGENTS)
            jobs.append(lambda n=name, r=recipient, p=poison: self._send(mesh, n, r, poison=p))  # type: ignore[misc]
        for number in range(self._tasks):
            jobs.append(lambda n=number: self._assign(mesh, n))  # type: ignore[misc]
        self._random.shuffle(jobs)
        rest = iter(jobs)

        async def sender() -> None:
            for job in rest:
                await job()

        return [sender() for _ in range(_SENDERS)]

    async def _send(self, mesh: AsyncMesh, name: str, recipient: str, *, poison: bool) -> None:
        await _until_accepted(
            lambda: mesh.send(
                recipient,
                "chaos.poison" if poison else "chaos.number",
                {"name": name},
                hold=True,
                message_id=name,
            )
        )
        (self.outcome.poison if poison else self.outcome.sent).add(name)

    async def _assign(self, mesh: AsyncMesh, number: int) -> None:
        task = await _until_accepted(
            lambda: mesh.assign_task(
                "chaos.record", wait_for_agent=True, request_id=f"task-{number}", retry=_RETRY
            )
        )
        self.outcome.tasks.add(task.task_id)

    # Destruction

    async def _wreck(self) -> None:
        total = self._messages + self._tasks
        for kill in range(self._kills):
            due = total * (kill + 1) // (self._kills + 2)
            await self._progress(lambda due=due: len(self._lines()) >= due)  # type: ignore[misc]
            victim = self._random.choice((*AGENTS, "server", "valkey"))
            self.outcome.kills.append(victim)
            if victim == "server":
                self._server.kill()
                await asyncio.to_thread(self._server.start)
            elif victim == "valkey":
                pids = [p for p in children(self._server.pid) if "valkey" in command(p)]
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            else:
                self._agents[victim].kill()
                self._agents[victim].wait()
                self._start_agent(victim)

    def _start_agent(self, name: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._agents[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.recorder", name, self._folder, self._record],
                stdout=log,
                stderr=log,
            )

    def _check_agents(self) -> None:
        for name, process in self._agents.items():
            if process.poll() is not None:
                log = (self._folder / f"{name}.log").read_text(errors="replace")
                raise AssertionError(f"{name} ended by itself: {log[-3000:]}")

    def _stop_agents(self) -> None:
        for process in self._agents.values():
            process.terminate()
        for process in self._agents.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # Looking

    @property
    def _record(self) -> Path:
        return self._folder / "handled"

    def _lines(self) -> list[str]:
        return self._record.read_text().splitlines() if self._record.exists() else []

    async def _progress(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition as long as anything still moves."""
        before, since = -1, time.monotonic()
        while not condition():
            now = len(self._lines())
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > _STILL_SECONDS:
                raise AssertionError(f"nothing has moved since {now} were handled")
            self._check_agents()
            await asyncio.sleep(0.05)

    async def _settle(self, mesh: AsyncMesh) -> None:
        expected = self.outcome.sent | self.outcome.tasks

        def is_handled() -> bool:
            return {line.split()[1] for line in self._lines()} >= expected

        await self._progress(is_handled)
        deadline = time.monotonic() + _STILL_SECONDS
        while time.monotonic() < deadline:
            stats = await _until_accepted(mesh.task_stats)
            ended = stats.by_state.get("completed", 0)
            if ended == len(self.outcome.tasks) and await self._left(mesh) == 0:
                return
            await asyncio.sleep(0.2)

    async def _left(self, mesh: AsyncMesh) -> int:
        async def count() -> int:
            return sum(
                [
                    sum(q.waiting.values()) + q.in_flight + q.delayed
                    async for q in mesh.queue_stats()
                ]
            )

        return await _until_accepted(count)

    async def _look(self, mesh: AsyncMesh) -> None:
        outcome = self.outcome
        for line in self._lines():
            _, name, attempt, _ = line.split()
            outcome.handled[name].append(int(attempt))
        outcome.states = Counter([task.state async for task in mesh.tasks(page_size=1000)])
        async for letter in mesh.dead_letters():
            name = letter.content.id if isinstance(letter.content, Message) else str(letter)
            outcome.dead[name] = letter.error.reason
        outcome.waiting = await self._left(mesh)


async def _until_accepted(call: Callable[[], Awaitable[_T]]) -> _T:
    """Repeats a call while the mesh is away, as whoever must not lose anything does."""
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0.1)


async def storm(seed: int, **size: int) -> Outcome:
    """Runs a storm and returns what came of it."""
    return await Storm(seed, **size).run()


def tell(outcome: Outcome) -> str:
    """A storm in a line."""
    again = sum(len(attempts) - 1 for attempts in outcome.handled.values())
    kills: Any = Counter(outcome.kills)
    return (
        f"{len(outcome.sent)} messages and {len(outcome.tasks)} tasks in {outcome.seconds:.0f} s,"
        f" {again} handled again, killed: {dict(kills)}"
    )

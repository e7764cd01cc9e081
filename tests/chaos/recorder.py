"""An agent that writes down everything it is given: `python -m tests.chaos.recorder NAME STATE_DIR FILE`."""

from __future__ import annotations

import asyncio
import os
import sys

from bxmesh.client import Agent, AsyncMesh, Drop, Message, TaskContext, on, task


class Recorder(Agent):
    """Handles numbered messages and tasks; poison it drops."""

    capabilities = ("chaos.record",)
    concurrency = 50
    lease_seconds = 3

    def __init__(self, agent_id: str, path: str) -> None:
        super().__init__(agent_id)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _record(self, kind: str, name: str, attempt: int) -> None:
        # One write: a killed process has written the line or not.
        os.write(self._file, f"{kind} {name} {attempt} {self.agent_id}\n".encode())

    @on("chaos.number")
    async def number(self, message: Message) -> None:
        await asyncio.sleep(0.005)
        self._record("message", message.id, message.attempt)

    @on("chaos.poison")
    async def poison(self, message: Message) -> None:
        raise Drop("It is poison.", reason="CHAOS_POISON")

    @task("chaos.record")
    async def do(self, context: TaskContext) -> dict[str, str]:
        await context.progress(50, "half")
        await asyncio.sleep(0.005)
        self._record("task", context.task.task_id, context.attempt)
        return {"by": self.agent_id}


async def main(name: str, state_dir: str, path: str) -> None:
    async with AsyncMesh(state_dir=state_dir) as mesh:
        await Recorder(name, path).run(mesh)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

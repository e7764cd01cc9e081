"""An agent in Python that has another agent do its greeting: ADDRESS STATE_DIR."""

import asyncio
import sys
from typing import Any

from bxmesh.client import Agent, AsyncMesh, Message, RetryPolicy, TaskContext, on, task


class Greeter(Agent[Any]):
    """Passes on what it is asked."""

    async def on_start(self) -> None:
        """Says that it can be asked."""
        print("ready", flush=True)

    @on("greeting.request", retry=RetryPolicy(max_attempts=1))
    async def greet(self, message: Message) -> None:
        """Replies as the agent named by `ask` does, and says who that was."""
        question = message.payload
        answer = await self.request(question["ask"], message.type, {"name": question["name"]})
        await message.reply("greeting.response", {**answer.payload, "from": answer.sender})

    @task("python.square")
    async def square(self, work: TaskContext) -> int:
        """Returns the square of a number."""
        return int(work.parameters) ** 2


async def main() -> None:
    """Runs the agent until it is asked to stop."""
    address, state_dir = sys.argv[1:]
    async with AsyncMesh(address, state_dir=state_dir) as mesh:
        await Greeter("python").run(mesh)


if __name__ == "__main__":
    asyncio.run(main())

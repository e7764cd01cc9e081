"""Two agents greet each other, once in each delivery mode.

Needs a running mesh: `bxmesh serve`, then `python examples/greeting.py`.
"""

import asyncio

from pydantic import BaseModel

from bxmesh.client import Agent, AsyncMesh, Message, on
from bxmesh.client.agents import DeliveryMode


class Greeting(BaseModel):
    """What one agent says to another."""

    text: str


class Greeter(Agent):
    """Greets, and greets back."""

    @on("greeting.request", model=Greeting)
    async def greet_back(self, message: Message, greeting: Greeting) -> None:
        """Answers a greeting. It looks the same for both modes."""
        print(f"{self.agent_id} hears {greeting.text!r} by {message.delivery_mode} message")
        await message.reply("greeting.response", Greeting(text=f"Hello, {message.sender}!"))

    async def greet(self, other: str, mode: DeliveryMode) -> None:
        """Greets another agent and waits for the answer."""
        greeting = Greeting(text=f"Good morning, {other}!")
        reply = await self.request(other, "greeting.request", greeting, mode=mode, timeout=10)
        print(f"{self.agent_id} gets {reply.read(Greeting).text!r} back")


async def main() -> None:
    """Lets Ada greet Bert directly, and Bert greet Ada durably."""
    async with (
        AsyncMesh() as mesh,
        Greeter("ada").running(mesh) as ada,
        Greeter("bert").running(mesh) as bert,
    ):
        await ada.greet("bert", "direct")
        await bert.greet("ada", "durable")


asyncio.run(main())

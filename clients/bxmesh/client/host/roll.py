"""Who is in the mesh, as far as a host must know: which names are taken."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.errors import DeadlineExceeded, InternalError, NotFound, Unavailable
from bxmesh.client.mesh import AsyncMesh

__all__ = ["PASSING", "Roll"]

PASSING = (Unavailable, DeadlineExceeded, InternalError)
"""What a repetition may cure."""

_QUIET_SECONDS = 60.0
_LOOK_SECONDS = (60.0, 120.0)


class Roll:
    """The names of live agents, kept up to date by `follow`."""

    def __init__(self, mesh: AsyncMesh) -> None:
        self._mesh = mesh
        self._names: set[str] = set()
        self._waiting: dict[str, asyncio.Event] = {}

    async def follow(self, ready: asyncio.Event) -> None:
        """Follows the registry until it is cancelled; sets the event when it knows all names."""
        backoff = Backoff(None, "the list of agents")
        while True:
            try:
                if not ready.is_set():
                    self._names.update(agent.agent_id for agent in await self._mesh.agents())
                    ready.set()
                changes = self._mesh.watch_agents(min_interval=_QUIET_SECONDS)
                async with aclosing(changes):
                    async for event in changes:
                        backoff.reset()
                        if event.kind == "left":
                            self.strike(event.agent.agent_id)
                        else:
                            self.enter(event.agent.agent_id)
            except PASSING as error:
                await backoff.wait(error)

    def enter(self, name: str) -> None:
        """Notes that a name is taken."""
        self._names.add(name)

    def strike(self, name: str) -> None:
        """Notes that a name is free."""
        self._names.discard(name)
        if event := self._waiting.pop(name, None):
            event.set()

    async def free(self, name: str) -> None:
        """Waits until no live agent has a name."""
        while name in self._names:
            event = self._waiting.setdefault(name, asyncio.Event())
            try:
                async with asyncio.timeout(random.uniform(*_LOOK_SECONDS)):
                    await event.wait()
            except TimeoutError:
                # A watch that was away for very long does not tell who left meanwhile.
                await self.look(name)

    async def look(self, name: str) -> bool:
        """Says whether a name is free right now, as far as the registry can be asked."""
        try:
            await self._mesh.agent(name)
        except NotFound:
            self.strike(name)
        except PASSING:
            pass
        else:
            self.enter(name)
        return name not in self._names

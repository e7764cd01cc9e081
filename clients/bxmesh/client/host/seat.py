"""A place for one agent of a definition, which this host fills while no other does."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.errors import BxmeshError
from bxmesh.client.host.agent import DefinedAgent
from bxmesh.client.host.behaviours import Behaviour
from bxmesh.client.host.figures import AgentFigures
from bxmesh.client.host.roll import PASSING, Roll
from bxmesh.client.mesh import AsyncMesh

__all__ = ["Seat", "Surroundings"]

_log = logging.getLogger(__name__)

_HOPELESS_SECONDS = (5.0, 30.0)
_TAKEN = ("AGENT_EXISTS", "AGENT_REPLACED")


@dataclass(frozen=True)
class Surroundings:
    """What all seats of a host share."""

    mesh: AsyncMesh
    """The mesh."""
    host: str
    """The host's name."""
    roll: Roll
    """Which names are taken."""
    room: AbstractAsyncContextManager[object]
    """What bounds how many agents run at once."""
    defer: Callable[[str], Awaitable[None]]
    """Leaves a free place of a definition to other hosts for a while."""
    timeout: float
    """The seconds for one message where the definition does not say them."""
    lease_seconds: int
    """How long agents stay registered without a heartbeat; 0 for the server's default."""


class Seat:
    """Runs an agent whenever its name is free, until it is told to leave."""

    def __init__(self, around: Surroundings, figures: AgentFigures, behaviour: Behaviour) -> None:
        self.figures = figures
        """What its agents have done."""
        self.behaviour = behaviour
        """What they do."""
        self.agent: DefinedAgent | None = None
        """The agent; None while another host has it."""
        self._around = around
        self._agent_id = figures.agent_id
        self._leaving = False
        self._anew = False
        self.task = asyncio.create_task(self._run())
        """What runs it; done when it has left."""

    def take_up(self, behaviour: Behaviour) -> None:
        """Goes on with another version; what is under way ends by the old one."""
        if behaviour is self.behaviour:
            return
        self.behaviour = behaviour
        if self.agent is not None and not self.agent.take_up(behaviour):
            # Whoever offers something else must register anew, and would lose the tasks it has.
            self._anew = True
            self.agent.leave(self.agent.timeout)

    def drain(self) -> None:
        """Leaves when all that was begun has ended."""
        self._leave(None)

    def stop(self, seconds: float = 0.0) -> None:
        """Leaves when what was begun has ended or, at the latest, so many seconds from now."""
        self._leave(seconds)

    def _leave(self, seconds: float | None) -> None:
        again, self._leaving = self._leaving, True
        if self.agent is None or (again and seconds is not None):
            self.task.cancel()
        elif not again:
            self.agent.leave(self.agent.timeout if seconds is None else seconds)

    async def _run(self) -> None:
        around, backoff = self._around, Backoff()
        while not self._leaving:
            await around.roll.free(self._agent_id)
            await around.defer(self.figures.definition_id)
            async with around.room:
                # What the registry tells of others may still be on its way.
                if not await around.roll.look(self._agent_id):
                    continue
                failure = await self._served()
            if not self._anew and not self._leaving:
                await backoff.wait(failure)

    async def _served(self) -> BxmeshError:
        """Runs an agent until it has left; returns why, unless that was wanted here."""
        roll = self._around.roll
        roll.enter(self._agent_id)
        try:
            await self._serve()
        except BxmeshError as error:
            if error.reason in _TAKEN:
                _log.info("another host runs %s", self._agent_id)
                return error
            _log.warning("%s does not run: %s", self._agent_id, error)
            if not isinstance(error, PASSING):
                error.retry_after = random.uniform(*_HOPELESS_SECONDS)
            failure = error
        except Exception as error:
            # A seat that nobody keeps would stay empty for ever.
            _log.exception("%s does not run", self._agent_id)
            failure = BxmeshError(repr(error), retry_after=_HOPELESS_SECONDS[0])
        else:
            failure = BxmeshError("the mesh asked it to leave", retry_after=_HOPELESS_SECONDS[0])
        roll.strike(self._agent_id)
        return failure

    async def _serve(self) -> None:
        around = self._around
        self._anew = False
        self.agent = DefinedAgent(
            self._agent_id,
            self.behaviour,
            self.figures,
            host=around.host,
            timeout=around.timeout,
            lease_seconds=around.lease_seconds,
        )
        try:
            await self.agent.serve(around.mesh)
        finally:
            self.agent = None

"""Tools for the tests of minions, and what supervisors see of them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import BaseModel, Field

from bxmesh.client import AsyncMesh, Minion, MinionInfo, Supervisor, TaskContext
from bxmesh.client.agents import MinionState
from tests.processes import until


class Atom(BaseModel):
    element: str
    occupancy: Annotated[float, Field(ge=0, le=1)] = 1.0


class Total(BaseModel):
    total: float


async def weigh(atoms: list[Atom], scale: float = 1.0) -> Total:
    """Adds occupancies up.

    And says no more.
    """
    return Total(total=scale * sum(atom.occupancy for atom in atoms))


class Gate:
    """Tools that wait until the test lets them."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.go = asyncio.Event()

    async def wait(self, context: TaskContext) -> str:
        await context.progress(25, "waits")
        self.begun.put_nowait(context.id)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended.put_nowait("cancelled")
            raise
        return "went"


async def info(mesh: AsyncMesh, minion: Minion) -> MinionInfo:
    """What a supervisor sees of one minion."""
    (found,) = [one for one in await Supervisor(mesh).minions() if one.agent_id == minion.agent_id]
    return found


async def told(mesh: AsyncMesh, minion: Minion, **fields: Any) -> MinionState:
    """The minion's state when it has these values."""
    state = MinionState()

    async def fits() -> bool:
        nonlocal state
        state = (await info(mesh, minion)).state
        return all(getattr(state, field) == value for field, value in fields.items())

    await until(fits)
    return state

"""Minions share work: some average, one has others do it, and a supervisor looks on.

Needs a running mesh: `bxmesh serve`, then `python examples/minions.py`.
"""

import asyncio
import time

from pydantic import BaseModel

from bxmesh.client import AsyncMesh, Minion, Supervisor
from bxmesh.client.agents import BlockingTaskContext


class Atom(BaseModel):
    """What tools take can be any type that pydantic knows."""

    element: str
    b_factor: float


def mean(atoms: list[Atom], context: BlockingTaskContext) -> float:
    """Averages B factors, in a thread, as it is no coroutine."""
    context.progress(50, f"{len(atoms)} atoms are there")
    time.sleep(0.01)
    return sum(atom.b_factor for atom in atoms) / len(atoms)


def spread(numbers: list[float]) -> float:
    """Says how far apart numbers are; kept and executed by the mesh."""
    return max(numbers) - min(numbers)


async def main() -> None:
    """Hands tasks out, and says what the minions say of themselves."""
    one, two = (Minion(name, {"examples.mean": mean}) for name in ("one", "two"))
    three = Minion(
        "three",
        {
            "examples.spread": "examples.spread@latest",  # a stored function
            "examples.average": "examples.mean",  # what other minions do
        },
    )
    atoms = [Atom(element="C", b_factor=20), Atom(element="O", b_factor=26)]
    async with (
        AsyncMesh() as mesh,
        one.running(mesh),
        two.running(mesh),
        three.running(mesh),
    ):
        await mesh.functions.create("examples.spread", spread)
        supervisor = Supervisor(mesh)
        print(await (await supervisor.assign("examples.average", {"atoms": atoms})))
        print(await (await supervisor.assign("examples.spread", {"numbers": [20, 26]})))

        await supervisor.map("examples.mean", [{"atoms": atoms}] * 40)
        await asyncio.sleep(1)  # what they tell is a moment old
        minions = await supervisor.minions()
        for minion in minions:
            print(f"{minion.agent_id} is {minion.status}, load {minion.state.load:.0%}")
        print(sum(minion.state.done for minion in minions), "done")


asyncio.run(main())

"""Three validators and a judge look at candidate models of one structure and agree on the better one.

Needs a running mesh: `bxmesh serve`, then `python examples/which_model.py demo-output/7n2l.pdb
demo-output/7n2l.mtz --scattering-table electron`, which are `bxmesh demo`'s. The deposited model first
stands against itself with its atoms shaken, and then against itself after a minimization that knows
nothing of the data: its geometry is better, and yet the data say no.
"""

import argparse
import asyncio
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np

from bxmesh.client import Agent, AgentAnswer, AsyncMesh, Model, Question, TaskContext, task
from bxmesh.client.conversations import ASKED, Conversation
from bxmesh.client.models import ScatteringTable

SHIFT = 0.05
"""How far atoms are shaken, as a standard deviation in angstrom."""


class Validator(Agent, ABC):
    """Measures each candidate on the mesh and votes for the one with the lowest figure."""

    concurrency = 4
    figure = ""

    def __init__(self, agent_id: str, scattering_table: ScatteringTable | None) -> None:
        super().__init__(agent_id)
        self.scattering_table = scattering_table

    @abstractmethod
    async def measure(self, model: Model) -> float:
        """Returns the figure of a model; the lower, the better."""

    async def measured(self, question: Question) -> list[tuple[float, str]]:
        """Returns the figure of each candidate with the name of its bundle, the best first."""
        *candidates, reflections = question.bundle_ids
        models = [
            await self.mesh.create_model(
                bundle_id, reflections, scattering_table=self.scattering_table
            )
            for bundle_id in candidates
        ]
        figures = [await self.measure(model) for model in models]
        return sorted(zip(figures, candidates, strict=True))

    @task(ASKED, model=Question)
    async def answer(self, context: TaskContext, question: Question) -> AgentAnswer:
        """Votes, the surer the further the two are apart."""
        found = await self.measured(question)
        (best, better), (worst, _) = found
        said = f"The {self.figure} is {best:.4g} against {worst:.4g}"
        evidence = [f"{bundle_id} has {self.figure} {value:.4g}" for value, bundle_id in found]
        if question.kind == "judge":
            choice = next(i for i, text in enumerate(question.candidates) if better in text)
            return AgentAnswer(text=said, choice=choice)
        apart = (worst - best) / worst if worst else 0.0
        return AgentAnswer(
            text=f"{said}: {better}",
            answer=better,
            confidence=0.5 + 0.5 * apart,
            evidence=evidence,
        )


class Geometry(Validator):
    """Goes by bonds and angles."""

    figure = "rms Z of bonds and angles"

    async def measure(self, model: Model) -> float:
        """Returns how many standard deviations bonds and angles are off."""
        found = (await self.mesh.validate(model)).deviations
        return float(np.hypot(found["bond"].rms_z, found["angle"].rms_z))


class XrayFit(Validator):
    """Goes by data that no refinement has seen."""

    figure = "R-free"

    async def measure(self, model: Model) -> float:
        """Returns R-free, or R-work of data without free flags."""
        xray = await self.mesh.gradients(model, target="xray")
        return xray.r_work if xray.r_free is None else xray.r_free


class Clash(Validator):
    """Goes by atoms that are too near to each other."""

    figure = "nonbonded energy"

    async def measure(self, model: Model) -> float:
        """Returns the energy of contacts."""
        geometry = await self.mesh.gradients(model, target="geometry")
        return geometry.geometry.terms["nonbonded"].energy


def shaken(pdb: Path) -> bytes:
    """Returns a PDB file's content with its atoms moved at random."""
    random, lines = np.random.default_rng(0), []
    for line in pdb.read_text().splitlines():
        if line.startswith(("ATOM", "HETATM")):
            moved = [float(line[i : i + 8]) + random.normal(0.0, SHIFT) for i in (30, 38, 46)]
            line = line[:30] + "".join(f"{x:8.3f}" for x in moved) + line[54:]
        lines.append(line)
    return "\n".join(lines).encode()


def tell(conversation: Conversation, names: dict[str, str]) -> None:
    """Prints who said what, what came out, and what it rests on."""
    outcome = conversation.outcome
    print(conversation.question)
    for turn in sorted(conversation.turns, key=lambda turn: turn.participant_id):
        print(f"  {turn.participant_id}: {names[turn.answer]}, {turn.confidence:.0%} sure")
    print(f"  better: {names[outcome.answer]}, {outcome.confidence:.0%} sure")
    for one in outcome.evidence:
        print(f"    {one}")


async def main(model_file: Path, data: Path, scattering_table: ScatteringTable | None) -> None:
    """Uploads the candidates, and has the validators talk about them."""
    async with AsyncMesh() as mesh, AsyncExitStack() as stack:
        for kind, name in (
            (Geometry, "geometry"),
            (XrayFit, "xray-fit"),
            (Clash, "clash"),
            (XrayFit, "judge"),
        ):
            await stack.enter_async_context(kind(name, scattering_table).running(mesh))

        reflections = await mesh.bundles.upload(data)
        deposited = await mesh.bundles.upload(model_file)
        moved = await mesh.bundles.upload(shaken(model_file), kind="macromolecule")
        model = await mesh.create_model(deposited.bundle_id)
        minimization = await mesh.minimize(model, target="geometry")
        minimized = minimization.macromolecule_bundle_id
        names = {
            deposited.bundle_id: "the deposited one",
            moved.bundle_id: "the shaken one",
            minimized: "the minimized one",
        }
        for other in (moved.bundle_id, minimized):
            conversation = await mesh.conversations.hold(
                f"Which is better, {names[deposited.bundle_id]} or {names[other]}?",
                participants=["agent:geometry", "agent:xray-fit", "agent:clash"],
                method="judge",
                judge="agent:judge",
                bundle_ids=[deposited.bundle_id, other, reflections.bundle_id],
            )
            tell(conversation, names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the deposited model, PDB")
    parser.add_argument("reflections", type=Path, help="its data, MTZ")
    parser.add_argument("--scattering-table", help="such as electron; found from the file")
    options = parser.parse_args()
    asyncio.run(main(options.model, options.reflections, options.scattering_table))

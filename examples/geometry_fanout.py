"""A supervisor fans geometry jobs out over the workers of a mesh and plots their progress.

Needs a running mesh: `bxmesh serve`, then `python examples/geometry_fanout.py model.pdb`. Each job is
the model with its atoms moved at random; what comes out is a bundle of gradients per job.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from bxmesh.client import AsyncMesh, BxmeshError, Model, Supervisor
from bxmesh.client.agents import WorkProgress
from bxmesh.geometry.v1.geometry_work_pb2 import GradientsWorkResult
from bxmesh.geometry.v1.gradients_pb2 import ComputeGradientsRequest, Coordinates
from bxmesh.tensors import to_message

SHIFT = 0.05
"""How far atoms move, as a standard deviation in angstrom."""


def requests(model: Model, jobs: int) -> Iterator[ComputeGradientsRequest]:
    """Yields the jobs: geometry gradients of the model with its atoms moved, [N, 3] each."""
    assert model.atoms is not None
    random = np.random.default_rng(0)
    for _ in range(jobs):
        sites = model.atoms.sites + random.normal(0.0, SHIFT, model.atoms.sites.shape)
        coordinates = Coordinates(tensor=to_message(sites, "coordinates", "angstrom"))
        yield ComputeGradientsRequest(model_id=model.model_id, coordinates=coordinates)


class Plot:
    """A bar for all jobs, and one for each worker."""

    def __init__(self, jobs: int) -> None:
        self.bar = Progress(BarColumn(60), MofNCompleteColumn(), TimeElapsedColumn())
        self.all = self.bar.add_task("jobs", total=jobs)
        self.live = Live(self.bar, refresh_per_second=10)

    def show(self, progress: WorkProgress) -> None:
        """Draws how far the work is."""
        self.bar.update(self.all, completed=progress.done)
        table = Table("worker", "jobs", "", box=None)
        most = max(progress.by_agent.values(), default=1)
        for worker, done in sorted(progress.by_agent.items()):
            table.add_row(worker, str(done), "█" * round(40 * done / most))
        self.live.update(Group(self.bar, table))


async def main(model_file: Path, jobs: int, concurrency: int) -> None:
    """Runs the jobs and says how fast they went."""
    async with AsyncMesh() as mesh:
        model = await mesh.create_model(model_file, include_atoms=True)
        plot, began = Plot(jobs), time.perf_counter()
        with plot.live:
            results = await Supervisor(mesh).map(
                "geometry.gradients",
                requests(model, jobs),
                result=GradientsWorkResult,
                concurrency=concurrency,
                failures="collect",
                on_progress=plot.show,
            )
        seconds = time.perf_counter() - began
        done = [one for one in results if isinstance(one, GradientsWorkResult)]
        failures = [one for one in results if isinstance(one, BxmeshError)]
        energies = [one.samples[0].geometry.energy for one in done]
        print(
            f"{len(done)} of {jobs} jobs, {jobs / seconds:.0f} a second, {len(failures)} failures"
        )
        if done:
            print(f"energies {min(energies):.1f} to {max(energies):.1f}")
            print(f"the gradients of the first are in {done[0].bundle_id}")
        for failure in failures[:3]:
            print(failure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the macromolecule, PDB or mmCIF")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=32)
    options = parser.parse_args()
    asyncio.run(main(options.model, options.jobs, options.concurrency))

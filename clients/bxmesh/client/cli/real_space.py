"""`bxmesh real-space`: how a model lies in a map, and where more density is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.inputs import Coordinates, Source, in_a_directory, made, model_inputs
from bxmesh.client.cli.progress import Phases
from bxmesh.client.cli.tables import facts
from bxmesh.client.cli.values import as_json as json_option
from bxmesh.client.real_space import INTERPOLATIONS, Interpolation

__all__ = ["real_space"]


@click.command()
@model_inputs
@click.option(
    "--map", "density", type=Source(), required=True, help="CCP4 or MRC, of a whole cell."
)
@click.option(
    "--interpolation",
    type=click.Choice(INTERPOLATIONS.choices),
    help="Between grid points; tricubic.",
)
@click.option("--coordinates", type=Coordinates(), help="Elsewhere: [N, 3] in angstrom.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=in_a_directory,
    help="Write gradients and densities to this .npz file.",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="In seconds.")
@json_option
@connecting
def real_space(
    where: Where,
    density: str,
    interpolation: Interpolation | None,
    coordinates: NDArray[Any] | None,
    output: Path | None,
    timeout: float | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Compute the density of a map at the atoms of MODEL, and its gradients.

    The cell is the model's. Without a running mesh, one is started for the call.
    """
    phases = Phases(quiet=as_json)
    with tracing("real-space") as trace_id, phases, where.connect_or_embed(phases.begin) as mesh:
        model = made(mesh, phases, choices, timeout)
        phases.begin("real space")
        result = mesh.real_space_gradients(
            model,
            density,
            coordinates,
            interpolation=interpolation,
            on_progress=phases.show,
            timeout=timeout,
        )
    if output is not None:
        with output.open("wb") as stream:
            np.savez(stream, allow_pickle=False, gradients=result.gradients, density=result.density)
    norm = float(np.linalg.norm(result.gradients))
    if as_json:
        report = {
            "atoms": len(result.density),
            "value": result.value,
            "gradient_norm": norm,
            "trace_id": trace_id,
        }
        click.echo(json.dumps(report, allow_nan=False))
        return
    facts(
        [
            ("atoms", f"{len(result.density)}"),
            ("density", f"{result.value:.6g}, the sum over the atoms"),
            ("gradient", f"{norm:.6g} per Å, its norm"),
            *([("written to", str(output))] if output is not None else []),
        ]
    )

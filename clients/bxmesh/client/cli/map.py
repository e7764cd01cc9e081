"""`bxmesh map`: an electron-density map as a CCP4 file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from numpy.typing import NDArray

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.inputs import Coordinates, in_a_directory, made, model_inputs
from bxmesh.client.cli.progress import Phases
from bxmesh.client.cli.tables import facts
from bxmesh.client.cli.values import as_json as json_option
from bxmesh.client.maps import MAP_KINDS

__all__ = ["map"]

_KINDS = [kind.replace("_", "-") for kind in MAP_KINDS.choices]


@click.command()
@model_inputs
@click.option("--kind", type=click.Choice(_KINDS), default=_KINDS[0], show_default=True)
@click.option("--coordinates", type=Coordinates(), help="Elsewhere: [N, 3] in angstrom.")
@click.option(
    "--resolution-factor",
    type=click.FloatRange(2, 10),
    default=4,
    show_default=True,
    help="Grid points per high resolution limit.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=in_a_directory,
    required=True,
    help="Write this CCP4 file.",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="In seconds.")
@json_option
@connecting
def map(
    where: Where,
    kind: str,
    coordinates: NDArray[Any] | None,
    resolution_factor: float,
    output: Path,
    timeout: float | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Compute a map of MODEL, a PDB or mmCIF file, and --reflections.

    It covers the unit cell, in electrons per cubic angstrom. Without a running mesh, one is started
    for the call.
    """
    phases = Phases(quiet=as_json)
    with tracing("map") as trace_id, phases, where.connect_or_embed(phases.begin) as mesh:
        model = made(mesh, phases, choices, timeout)
        phases.begin("map")
        result = mesh.map(
            model,
            kind.replace("-", "_"),  # type: ignore[arg-type]
            coordinates,
            resolution_factor=resolution_factor,
            on_progress=phases.show,
            timeout=timeout,
        )
        mesh.bundles.download(result.ccp4_bundle_id, output)
    if as_json:
        report = {
            "grid": result.values.shape,
            "mean": result.mean,
            "sigma": result.sigma,
            "bundle_id": result.ccp4_bundle_id,
            "trace_id": trace_id,
        }
        click.echo(json.dumps(report, allow_nan=False))
        return
    facts(
        [
            ("grid", " × ".join(f"{points}" for points in result.values.shape)),
            ("mean", f"{result.mean:.4g} e/Å³"),
            ("sigma", f"{result.sigma:.4g} e/Å³"),
            ("bundle", result.ccp4_bundle_id),
            ("written to", str(output)),
        ]
    )

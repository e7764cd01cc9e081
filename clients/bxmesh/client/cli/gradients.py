"""`bxmesh gradients`: energies and gradients of a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
from numpy.typing import NDArray

from bxmesh.client.bundles import BundleKind
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.progress import Phases
from bxmesh.client.cli.report import Report
from bxmesh.client.content import BUNDLE_ID
from bxmesh.client.models import HYDROGENS, SCATTERING_TABLES
from bxmesh.client.options import ALGORITHMS, ENGINES, TARGETS, GradientOptions
from bxmesh.client.sync import Mesh
from bxmesh.client.values import XRAY_TARGETS

__all__ = ["Source", "gradients"]


_MODEL_CHOICES = (
    "hydrogens",
    "scattering_table",
    "data_labels",
    "r_free_flags_label",
    "generate_r_free_flags",
    "d_min",
    "d_max",
)


class Source(click.Path):
    """A file, or the name of a bundle that is on the mesh already."""

    name = "file or bundle"

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, readable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the name, or the path of a file that is there."""
        if BUNDLE_ID.fullmatch(str(value)):
            return value
        return super().convert(value, param, ctx)


class _Coordinates(click.Path):
    """A NumPy file of coordinates."""

    name = "file.npy"

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, readable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            self.fail(f"{value} is no NumPy file: {error}", param, ctx)
        if not isinstance(array, np.ndarray):
            self.fail(f"{value} holds several arrays; save one with numpy.save", param, ctx)
        return array


def _in_a_directory(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and not path.parent.is_dir():
        raise click.BadParameter(f"there is no directory {path.parent}", ctx, param)
    return path


@click.command()
@click.argument("model", type=Source())
@click.option("--reflections", type=Source(), help="MTZ or structure-factor CIF.")
@click.option("--restraints", type=Source(), multiple=True, help="Restraint CIF; repeatable.")
@click.option(
    "--target",
    type=click.Choice(TARGETS.choices),
    help="The target; geometry, or combined with reflections.",
)
@click.option("--coordinates", type=_Coordinates(), help="[N, 3] or [B, N, 3] in angstrom.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=_in_a_directory,
    help="Write the gradients to this .npz file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--hydrogens", type=click.Choice(HYDROGENS.choices), help="Keep or set aside.")
@click.option("--scattering-table", type=click.Choice(SCATTERING_TABLES.choices))
@click.option("--data-labels", default="", help='Columns, such as "FOBS,SIGFOBS".')
@click.option("--r-free-flags-label", default="", help="The column with the free flags.")
@click.option("--generate-r-free-flags", is_flag=True, help="Make free flags where there are none.")
@click.option("--d-min", type=click.FloatRange(min=0), default=0.0, help="In angstrom.")
@click.option("--d-max", type=click.FloatRange(min=0), default=0.0, help="In angstrom.")
@click.option("--xray-target", type=click.Choice(XRAY_TARGETS.choices))
@click.option("--twin-law", default="", help='For twin_ls, such as "-h,-k,l".')
@click.option("--algorithm", type=click.Choice(ALGORITHMS.choices), help="For structure factors.")
@click.option("--engine", type=click.Choice(ENGINES.choices), help="For geometry.")
@click.option("--geometry-weight", type=click.FloatRange(min=0), default=0.0)
@click.option("--xray-weight", type=click.FloatRange(min=0), default=0.0)
@click.option("--selection", default="", help="The atoms that move, in mmtbx syntax.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="In seconds.")
@connecting
def gradients(
    where: Where,
    model: str,
    reflections: str | None,
    restraints: tuple[str, ...],
    coordinates: NDArray[Any] | None,
    output: Path | None,
    as_json: bool,
    timeout: float | None,
    **choices: Any,
) -> None:
    """Compute energies and gradients of MODEL, a PDB or mmCIF file.

    Without --address and without a running mesh, one is started for the call.
    """
    model_choices = {name: choices.pop(name) for name in _MODEL_CHOICES}
    options = cast(GradientOptions, choices | {"precision": "float64"})
    phases = Phases(quiet=as_json)
    with tracing("gradients") as trace_id, phases, where.connect_or_embed(phases.begin) as mesh:
        phases.begin("upload")
        macromolecule = _upload(mesh, model, "macromolecule")
        data = _upload(mesh, reflections, "reflections") if reflections else None
        dictionaries = [_upload(mesh, path, "restraints") for path in restraints]
        phases.begin("model")
        created = mesh.create_model(
            macromolecule, data, dictionaries, **model_choices, timeout=timeout
        )
        phases.begin("gradients")
        result = mesh.gradients(
            created, coordinates, on_progress=phases.show, timeout=timeout, **options
        )
    report = Report(created.summary, result, phases.seconds, trace_id)
    if output is not None:
        with output.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **result.arrays)
    if as_json:
        click.echo(json.dumps(report.as_dict(), allow_nan=False))
    else:
        report.show(output)
    if not any(sample.ok for sample in result.samples):
        sys.exit(1)


def _upload(mesh: Mesh, source: str, kind: BundleKind) -> str:
    if BUNDLE_ID.fullmatch(source):
        return source
    return mesh.bundles.upload(Path(source), kind=kind).bundle_id

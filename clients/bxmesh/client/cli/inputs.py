"""What commands take that are about a model: files or bundles, and what is chosen about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from bxmesh.client.bundles import BundleKind
from bxmesh.client.cli.progress import Phases
from bxmesh.client.content import BUNDLE_ID
from bxmesh.client.models import HYDROGENS, SCATTERING_TABLES, Model
from bxmesh.client.options import ALGORITHMS, ENGINES, TARGETS
from bxmesh.client.sync import Mesh
from bxmesh.client.values import XRAY_TARGETS

__all__ = ["Coordinates", "Source", "in_a_directory", "made", "model_inputs", "target_options"]

Command = Callable[..., None]

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


class Coordinates(click.Path):
    """A NumPy file of coordinates."""

    name = "file.npy"

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, readable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the array."""
        path = super().convert(value, param, ctx)
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            self.fail(f"{value} is no NumPy file: {error}", param, ctx)
        if not isinstance(array, np.ndarray):
            self.fail(f"{value} holds several arrays; save one with numpy.save", param, ctx)
        return array


def in_a_directory(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Lets through what can be written; for `callback`."""
    if path is not None and not path.parent.is_dir():
        raise click.BadParameter(f"there is no directory {path.parent}", ctx, param)
    return path


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


model_inputs = _all(
    click.argument("model", type=Source()),
    click.option("--reflections", type=Source(), help="MTZ or structure-factor CIF."),
    click.option("--restraints", type=Source(), multiple=True, help="Restraint CIF; repeatable."),
    click.option("--hydrogens", type=click.Choice(HYDROGENS.choices), help="Keep or set aside."),
    click.option("--scattering-table", type=click.Choice(SCATTERING_TABLES.choices)),
    click.option("--data-labels", default="", help='Columns, such as "FOBS,SIGFOBS".'),
    click.option("--r-free-flags-label", default="", help="The column with the free flags."),
    click.option(
        "--generate-r-free-flags", is_flag=True, help="Make free flags where there are none."
    ),
    click.option("--d-min", type=click.FloatRange(min=0), default=0.0, help="In angstrom."),
    click.option("--d-max", type=click.FloatRange(min=0), default=0.0, help="In angstrom."),
)
"""Adds the model and what `made` makes of it."""

target_options = _all(
    click.option(
        "--target",
        type=click.Choice(TARGETS.choices),
        help="The target; geometry, or combined with reflections.",
    ),
    click.option("--xray-target", type=click.Choice(XRAY_TARGETS.choices)),
    click.option("--twin-law", default="", help='For twin_ls, such as "h,-k,-l".'),
    click.option(
        "--algorithm", type=click.Choice(ALGORITHMS.choices), help="For structure factors."
    ),
    click.option("--engine", type=click.Choice(ENGINES.choices), help="For geometry."),
    click.option("--geometry-weight", type=click.FloatRange(min=0), default=0.0),
    click.option("--xray-weight", type=click.FloatRange(min=0), default=0.0),
    click.option("--selection", default="", help="The atoms that move, in mmtbx syntax."),
)
"""Adds what GradientOptions has."""


def made(mesh: Mesh, phases: Phases, choices: dict[str, Any], timeout: float | None) -> Model:
    """Uploads the inputs and makes a model of them; takes what `model_inputs` added out of choices."""
    phases.begin("upload")
    macromolecule = _upload(mesh, choices.pop("model"), "macromolecule")
    reflections = choices.pop("reflections")
    data = _upload(mesh, reflections, "reflections") if reflections else None
    dictionaries = [_upload(mesh, path, "restraints") for path in choices.pop("restraints")]
    phases.begin("model")
    chosen = {name: choices.pop(name) for name in _MODEL_CHOICES}
    return mesh.create_model(macromolecule, data, dictionaries, **chosen, timeout=timeout)


def _upload(mesh: Mesh, source: str, kind: BundleKind) -> str:
    if BUNDLE_ID.fullmatch(source):
        return source
    return mesh.bundles.upload(Path(source), kind=kind).bundle_id

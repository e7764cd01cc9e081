"""`bxmesh demo`."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path

import click

from bxmesh.client.cli import main

_STRUCTURE = "7n2l"
_TITLE = "a peptide of 150 atoms, by electron diffraction at 0.90 Å"


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Where the inputs and the gradients go.",
)
def demo(output: Path) -> None:
    """Run the main job on a real crystal structure: PDB and MTZ in, gradient tensors out."""
    output.mkdir(parents=True, exist_ok=True)
    model = _copy(f"pdbs/{_STRUCTURE}.pdb", output)
    reflections = _copy(f"mtz/{_STRUCTURE}.mtz", output)
    arguments = [
        "gradients",
        str(model),
        "--reflections",
        str(reflections),
        "--scattering-table",
        "electron",
        "--output",
        str(output / "gradients.npz"),
    ]
    click.echo(f"The structure is {_STRUCTURE}: {_TITLE}. The same by hand:\n")
    click.echo(f"    bxmesh {shlex.join(arguments)}\n")
    main.main(arguments, prog_name="bxmesh", standalone_mode=False)


def _copy(path: str, output: Path) -> Path:
    # Found without importing it: cctbx is for worker processes.
    spec = find_spec("mmtbx")
    if spec is None or not spec.submodule_search_locations:
        raise click.ClickException("cctbx is missing: pip install 'bxmesh[server,monomers]'")
    source = Path(spec.submodule_search_locations[0]) / "regression" / path
    target = output / source.name
    target.write_bytes(source.read_bytes())
    return target

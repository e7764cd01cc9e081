"""The regression data inside the cctbx wheel."""

from importlib.util import find_spec
from pathlib import Path

from bxmesh.server.geometry.engine import ModelInputs, ModelOptions

PDB_7N2L = "mmtbx/regression/pdbs/7n2l.pdb"
MTZ_7N2L = "mmtbx/regression/mtz/7n2l.mtz"
PDB_1YJP = "iotbx/regression/data/1yjp.pdb"


def wheel_file(path: str) -> Path:
    """Return a file of the cctbx wheel."""
    spec = find_spec("iotbx")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).parent / path


def wheel_bytes(path: str) -> bytes:
    return wheel_file(path).read_bytes()


def inputs(
    macromolecule: bytes | str = PDB_7N2L,
    reflections: bytes | None = None,
    **options: object,
) -> ModelInputs:
    data = wheel_bytes(macromolecule) if isinstance(macromolecule, str) else macromolecule
    return ModelInputs(data, reflections, options=ModelOptions(**options))  # type: ignore[arg-type]

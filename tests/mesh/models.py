"""Models of the cctbx wheel on the mesh."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from bxmesh.client import AsyncMesh, Model
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, wheel_file


class Table:
    """The atoms of a model on the mesh, as the comparison with plain cctbx wants them."""

    def __init__(self, model: Model) -> None:
        atoms = sites_of(model) is not None and model.atoms
        assert atoms
        numbers = [re.fullmatch(r"(-?\w*?\d)(\D?)", number) for number in atoms.residue_numbers]
        self.atoms = self
        self.name, self.altloc = atoms.names, atoms.alternative_locations
        self.resname, self.chain = atoms.residue_names, atoms.chain_ids
        self.resseq = [number[1] for number in numbers if number]
        self.icode = [number[2] for number in numbers if number]

    def __len__(self) -> int:
        return len(self.name)


def sites_of(model: Model) -> np.ndarray:
    assert model.atoms is not None
    return model.atoms.sites


async def created(mesh: AsyncMesh, path: str, **options: Any) -> Model:
    return await mesh.create_model(wheel_file(path), include_atoms=True, **options)


async def crystal(mesh: AsyncMesh) -> Model:
    return await created(mesh, PDB_7N2L, reflections=wheel_file(MTZ_7N2L))


def same(result: np.ndarray, expected: np.ndarray, tolerance: float = 1e-9) -> bool:
    return bool(np.linalg.norm(result - expected) <= tolerance * np.linalg.norm(expected))

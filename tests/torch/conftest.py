"""A real mesh with two workers, and models on it, for the tests of the PyTorch package."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from bxmesh.client import Mesh, Model
from bxmesh.client.torch import GeometryEnergy
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_file
from tests.mesh.conftest import start_mesh, wait_until_it_serves

# Threads that wait for each other by spinning take all the time there is when others use the processors.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def only_local_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BXMESH_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedMesh]:
    """The mesh of the tests that break nothing."""
    with start_mesh(2) as server:
        wait_until_it_serves(server)
        yield server


@pytest.fixture(scope="session")
def mesh(server: EmbeddedMesh) -> Iterator[Mesh]:
    """A client of it."""
    with Mesh(server.address, state_dir=server.state_dir) as mesh:
        yield mesh


@pytest.fixture(scope="session")
def peptide(mesh: Mesh) -> Model:
    """1yjp: 66 atoms, seven residues and waters, no hydrogens."""
    return mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)


@pytest.fixture(scope="session")
def crystal(mesh: Mesh) -> Model:
    """7n2l with its reflections: 150 atoms, of which 67 hydrogens."""
    return mesh.create_model(wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L), include_atoms=True)


@pytest.fixture(scope="session")
def geometry(mesh: Mesh, peptide: Model) -> Iterator[GeometryEnergy]:
    """The geometry of the peptide."""
    with GeometryEnergy(mesh, peptide) as target:
        yield target


def sites_of(model: Model, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The coordinates of a model's file, [N, 3]."""
    assert model.atoms is not None
    return torch.tensor(model.atoms.sites, dtype=dtype)


def moved(sites: torch.Tensor, sigma: float, seed: int = 0) -> torch.Tensor:
    """Coordinates with every atom moved at random, by sigma angstrom on each axis."""
    generator = torch.Generator().manual_seed(seed)
    return sites + sigma * torch.randn(sites.shape, dtype=sites.dtype, generator=generator)

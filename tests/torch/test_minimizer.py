"""Minimisation with torch's optimisers, and a mesh that is lost on the way."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import grpc
import pytest
import torch

from bxmesh.client import InvalidInput, Mesh, Model, Unavailable
from bxmesh.client.torch import AtomMap, GeometryEnergy, MinimizationStep, Minimizer, XrayTarget
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import PDB_1YJP, wheel_file
from tests.mesh.conftest import FAST, state_dir, wait_until_it_serves
from tests.torch.conftest import moved, sites_of

__all__ = ["state_dir"]


def bowl(coordinates: torch.Tensor) -> torch.Tensor:
    """An energy whose minimum is known: every atom at (1, 1, 1)."""
    return (coordinates - 1).square().sum((-1, -2))


def test_lbfgs(geometry: GeometryEnergy, peptide: Model) -> None:
    start = moved(sites_of(peptide), 0.1)
    steps: list[MinimizationStep] = []
    minimizer = Minimizer(geometry, start, history_size=20)
    result = minimizer.run(40, steps.append)
    assert result.energy < 0.1 * steps[0].energy
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert geometry(result.coordinates).item() == pytest.approx(result.energy.item(), rel=1e-9)
    assert start.equal(moved(sites_of(peptide), 0.1))
    assert minimizer.run(5).steps > result.steps


def test_adam_over_a_batch(geometry: GeometryEnergy, peptide: Model) -> None:
    start = moved(sites_of(peptide).expand(3, -1, -1), 0.1).float()
    start[1] = torch.nan
    result = Minimizer(geometry, start, torch.optim.Adam, lr=0.01).run(30)
    before = geometry(start)
    assert result.energy.isnan().tolist() == [False, True, False]
    assert bool((result.energy[[0, 2]] < 0.5 * before[[0, 2]]).all())
    assert (result.coordinates.dtype, result.evaluations) == (torch.float32, 31)
    torch.testing.assert_close(geometry(result.coordinates)[0], result.energy[0])


def test_convergence() -> None:
    result = Minimizer(bowl, torch.zeros(4, 3, dtype=torch.float64)).run(50)
    assert (result.converged, result.reason) == (True, "gradient")
    torch.testing.assert_close(result.coordinates, torch.ones(4, 3, dtype=torch.float64))
    slow = Minimizer(bowl, torch.zeros(4, 3), torch.optim.SGD, lr=1e-12, energy_tolerance=1e-6)
    assert slow.run(50).reason == "energy"
    assert Minimizer(bowl, torch.zeros(4, 3)).run(0).reason == "steps"


def test_best_is_kept() -> None:
    result = Minimizer(bowl, torch.zeros(4, 3), torch.optim.SGD, lr=1.5).run(4)
    assert result.energy == 12
    assert result.coordinates.abs().max() == 0


def test_step_into_nowhere_is_taken_back() -> None:
    def fenced(coordinates: torch.Tensor) -> torch.Tensor:
        return bowl(coordinates).masked_fill(coordinates.detach().max() > 1.5, torch.nan)

    start = torch.zeros(4, 3, dtype=torch.float64)
    result = Minimizer(fenced, start, lr=40.0).run(50)
    torch.testing.assert_close(result.coordinates, torch.ones_like(start), rtol=0, atol=1e-2)


def test_state_goes_on_elsewhere(geometry: GeometryEnergy, peptide: Model) -> None:
    start = moved(sites_of(peptide), 0.1)
    whole = Minimizer(geometry, start, torch.optim.Adam, lr=0.01).run(12)
    first = Minimizer(geometry, start, torch.optim.Adam, lr=0.01)
    first.run(6)
    kept = io.BytesIO()
    torch.save(first.state_dict(), kept)
    kept.seek(0)
    second = Minimizer(geometry, start, torch.optim.Adam, lr=0.01)
    second.load_state_dict(torch.load(kept, weights_only=True))
    result = second.run(6)
    assert result.steps == 12
    torch.testing.assert_close(result.coordinates, whole.coordinates)


def test_raising_callback_ends_the_run_and_the_next_goes_on() -> None:
    minimizer = Minimizer(bowl, torch.zeros(4, 3), torch.optim.SGD, lr=0.1)

    def stop(step: MinimizationStep) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minimizer.run(10, stop)
    assert minimizer.best().steps == 3
    assert minimizer.run(1).steps == 4
    with pytest.raises(InvalidInput, match="nothing was evaluated"):
        Minimizer(bowl, torch.zeros(4, 3)).best()


def test_scales_are_refreshed(mesh: Mesh, crystal: Model) -> None:
    with XrayTarget(mesh, crystal) as target:
        sites = moved(sites_of(crystal), 0.05)
        first = target(sites).item()
        energies: list[float] = []
        Minimizer(
            target, sites, torch.optim.SGD, lr=1e-9, refresh_scales_every=2, energy_tolerance=0
        ).run(3, lambda step: energies.append(step.energy.item()))
    assert energies[0] != pytest.approx(first, rel=1e-6)
    assert energies[1] == pytest.approx(energies[0], rel=1e-6)
    with pytest.raises(InvalidInput, match="X-ray scales"):
        Minimizer(bowl, sites, refresh_scales_every=1).run(1)


def test_session_lost_for_good(mesh: Mesh, peptide: Model) -> None:
    class Lost(GeometryEnergy):
        left = 2

        def forward(
            self, coordinates: torch.Tensor, mask: torch.Tensor | None = None
        ) -> torch.Tensor:
            energy = super().forward(coordinates, mask)
            self.left -= 1
            if not self.left:
                raise Unavailable("gone", code=grpc.StatusCode.UNAVAILABLE, reason="WORKERS_LOST")
            return energy

    start = moved(sites_of(peptide), 0.1)
    with Lost(mesh, peptide) as target, GeometryEnergy(mesh, peptide) as undisturbed:
        (before,) = target.open()
        result = Minimizer(target, start).run(4)
        (after,) = target.open()
        assert after.session_id != before.session_id
        torch.testing.assert_close(
            result.coordinates, Minimizer(undisturbed, start).run(4).coordinates
        )
        target.left = 1
        with pytest.raises(Unavailable, match="gone"):
            Minimizer(target, start, patience=0.0).run(1)


def test_layout_of_the_caller(mesh: Mesh, peptide: Model) -> None:
    atom_map = AtomMap.atom37(peptide, missing="file")
    with GeometryEnergy(mesh, peptide, atom_map=atom_map) as target:
        start = atom_map.from_model(moved(sites_of(peptide).expand(2, -1, -1), 0.1))
        result = Minimizer(target, start).run(10)
        assert bool((result.energy < 0.5 * target(start)).all())
    assert result.coordinates.shape == (2, 7, 37, 3)
    assert result.coordinates[:, ~atom_map.mask].abs().max() == 0


def test_server_lost_and_started_again(state_dir: Path) -> None:
    with EmbeddedMesh(state_dir, workers=1, env=FAST) as server:
        wait_until_it_serves(server)
        with Mesh(server.address, state_dir=state_dir) as mesh:
            model = mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
            start = moved(sites_of(model), 0.1)
            with GeometryEnergy(mesh, model) as target:
                undisturbed = Minimizer(target, start).run(12)
                lost: list[threading.Thread] = []

                def lose(step: MinimizationStep) -> None:
                    if step.step == 6:
                        server.kill()
                        lost.append(threading.Thread(target=_later, args=(server,)))
                        lost[0].start()

                result = Minimizer(target, start).run(12, lose)
                lost[0].join()
    assert result.steps == 12
    torch.testing.assert_close(result.coordinates, undisturbed.coordinates)


def _later(server: EmbeddedMesh) -> None:
    time.sleep(0.3)
    server.start()

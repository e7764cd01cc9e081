"""Targets as modules, against finite differences and against cctbx called directly."""

from __future__ import annotations

import asyncio
import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from bxmesh.client import InvalidInput, Mesh, Model
from bxmesh.client.torch import AtomMap, CombinedTarget, GeometryEnergy, XrayTarget
from tests.engine.plain import PlainGeometry
from tests.engine.prepared import prepared_library
from tests.engine.wheel import PDB_1YJP, wheel_bytes
from tests.mesh.models import Table
from tests.torch.conftest import moved, sites_of


@pytest.fixture(scope="module")
def plain(peptide: Model) -> PlainGeometry:
    prepared_library()
    return PlainGeometry(PDB_1YJP, Table(peptide))  # type: ignore[arg-type]


def test_energy_and_gradient_are_those_of_cctbx(
    geometry: GeometryEnergy, peptide: Model, plain: PlainGeometry
) -> None:
    sites = moved(sites_of(peptide), 0.05).requires_grad_(True)
    energy = geometry(sites)
    (3 * energy).backward()
    energies, gradients = plain.evaluate(sites.detach().numpy())
    assert energy.shape == ()
    assert energy.item() == pytest.approx(energies.target, rel=1e-9)
    np.testing.assert_allclose(sites.grad, 3 * gradients, rtol=1e-6, atol=1e-6)


def test_batches_of_any_depth(
    geometry: GeometryEnergy, peptide: Model, plain: PlainGeometry
) -> None:
    sites = moved(sites_of(peptide).expand(2, 3, -1, -1), 0.05).requires_grad_(True)
    energies = geometry(sites)
    weights = torch.arange(1.0, 7.0).reshape(2, 3)
    (weights * energies).sum().backward()
    assert energies.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        expected, gradient = plain.evaluate(sites[i, j].detach().numpy())
        assert energies[i, j].item() == pytest.approx(expected.target, rel=1e-9)
        np.testing.assert_allclose(
            sites.grad[i, j], weights[i, j].item() * gradient, rtol=1e-6, atol=1e-6
        )


def test_gradcheck_of_geometry(geometry: GeometryEnergy, peptide: Model) -> None:
    sites = moved(sites_of(peptide), 0.02)

    def some(few: torch.Tensor) -> torch.Tensor:
        return geometry(torch.cat([few, sites[..., 4:, :].expand(len(few), -1, -1)], dim=-2))

    few = moved(sites[:4].expand(2, -1, -1), 0.01).requires_grad_(True)
    assert torch.autograd.gradcheck(some, few, eps=1e-6, atol=1e-3, rtol=1e-5)


def test_gradcheck_of_xray(mesh: Mesh, crystal: Model) -> None:
    sites = sites_of(crystal)
    with XrayTarget(mesh, crystal, algorithm="direct") as target:

        def some(few: torch.Tensor) -> torch.Tensor:
            return target(torch.cat([few, sites[1:]]))

        few = sites[:1].clone().requires_grad_(True)
        assert torch.autograd.gradcheck(some, few, eps=1e-4, atol=1e-6, rtol=1e-2)


def test_combined_is_the_weighted_sum(mesh: Mesh, crystal: Model) -> None:
    sites = moved(sites_of(crystal, torch.float32), 0.02).requires_grad_(True)
    with CombinedTarget(mesh, crystal, geometry_weight=0.5, xray_weight=100.0) as target:
        energy = target(sites)
        energy.backward()
        (sample,) = target.samples
        assert sample.geometry is not None and sample.xray is not None
        expected = 0.5 * sample.geometry.energy + 100 * sample.xray.value
        assert energy.item() == pytest.approx(expected, rel=1e-6)
        assert sites.grad.dtype == torch.float32
        step = mesh.gradients(crystal, sites.detach().numpy(), target="combined")
        expected_gradient = 0.5 * step.geometry_sites + 100 * step.xray_sites
        np.testing.assert_allclose(sites.grad, expected_gradient, rtol=1e-3, atol=1e-2)


def test_new_scales_hold_in_all_sessions_and_in_new_ones(mesh: Mesh, crystal: Model) -> None:
    sites = moved(sites_of(crystal), 0.1)
    batch = torch.stack([sites, sites])
    with XrayTarget(mesh, crystal, sessions=2) as target:
        before = target(batch)
        target.refresh_scales(sites)
        after = target(batch)
        target.reopen()
        again = target(batch)
    with mesh.session(crystal, target="xray") as session:
        expected = session.step(sites.numpy(), refresh_scales=True).xray.value
    assert abs(before[0].item() - expected) > 1e-6
    torch.testing.assert_close(after, torch.full_like(after, expected), rtol=1e-9, atol=0)
    torch.testing.assert_close(again, after)


def test_scales_that_cannot_be_had_leave_the_old_ones(mesh: Mesh, crystal: Model) -> None:
    sites = sites_of(crystal)
    with XrayTarget(mesh, crystal) as target:
        before = target(sites)
        with pytest.raises(InvalidInput):
            target.refresh_scales(sites * torch.nan)
        with pytest.raises(InvalidInput, match="one sample"):
            target.refresh_scales(torch.stack([sites, sites]))
        torch.testing.assert_close(target(sites), before)


def test_batches_divided_among_sessions(
    mesh: Mesh, geometry: GeometryEnergy, peptide: Model
) -> None:
    batch = moved(sites_of(peptide).expand(5, -1, -1), 0.05)
    one, two = batch.clone().requires_grad_(), batch.clone().requires_grad_()
    geometry(one).sum().backward()
    with GeometryEnergy(mesh, peptide, sessions=3) as divided:
        assert len({session.worker_id for session in divided.open()}) == 2
        divided(two).sum().backward()
        assert divided(batch[:1]).shape == (1,)
    torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision(
    geometry: GeometryEnergy, peptide: Model, plain: PlainGeometry, dtype: torch.dtype
) -> None:
    sites = sites_of(peptide, dtype).requires_grad_(True)
    energy = geometry(sites)
    (energy / 100).backward()
    expected, gradient = plain.evaluate(sites.detach().double().numpy())
    assert energy.dtype == torch.float32
    assert energy.item() == pytest.approx(expected.target, rel=1e-5)
    assert sites.grad.dtype == dtype
    np.testing.assert_allclose(sites.grad.double(), gradient / 100, rtol=1e-2, atol=1e-2)


def test_autocast(geometry: GeometryEnergy, peptide: Model) -> None:
    network = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = network(sites_of(peptide, torch.float32))
        assert moved.dtype == torch.bfloat16
        energy = geometry(moved)
    energy.backward()
    assert energy.dtype == torch.float32
    assert bool(torch.isfinite(network.weight.grad).all())
    assert network.weight.grad.norm() > 0


def test_second_derivatives_are_refused(geometry: GeometryEnergy, peptide: Model) -> None:
    sites = sites_of(peptide).requires_grad_(True)
    (first,) = torch.autograd.grad(geometry(sites), sites, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first.sum().backward()


def test_sample_that_fails_harms_nobody(geometry: GeometryEnergy, peptide: Model) -> None:
    sites = torch.stack([sites_of(peptide), sites_of(peptide) * torch.nan, sites_of(peptide)])
    sites.requires_grad_(True)
    energies = geometry(sites)
    energies.square().sum().backward()
    assert energies.isnan().tolist() == [False, True, False]
    assert geometry.samples[1].status == "non_finite"
    assert sites.grad[1].abs().max() == 0
    torch.testing.assert_close(sites.grad[0], sites.grad[2])
    assert sites.grad[0].abs().max() > 0


def test_sample_that_fails_can_raise(mesh: Mesh, peptide: Model) -> None:
    sites = sites_of(peptide)
    with GeometryEnergy(mesh, peptide, on_failure="raise") as target:
        with pytest.raises(InvalidInput, match="sample 1 cannot be computed") as raised:
            target(torch.stack([sites, sites * 1e6]))
        assert raised.value.reason == "SAMPLE_OUT_OF_RANGE"
        assert target(sites).isfinite()


def test_prefetched_answers_are_taken(mesh: Mesh, peptide: Model) -> None:
    with GeometryEnergy(mesh, peptide) as target:
        sites = sites_of(peptide)
        expected = target(sites).item()
        (session,) = target.open()
        target.prefetch(sites)
        sites += 0.0  # the caller's tensor may change
        begun = session.begin(sites.numpy()).result().step_id
        assert target(sites).item() == expected
        assert session.begin(sites.numpy()).result().step_id == begun + 1
        for seed in range(20):
            target.prefetch(moved(sites, 0.01, seed))
        assert target(sites).item() == expected


def test_threads(mesh: Mesh, peptide: Model, plain: PlainGeometry) -> None:
    batch = moved(sites_of(peptide).expand(24, -1, -1), 0.05)
    with GeometryEnergy(mesh, peptide) as target, ThreadPoolExecutor(8) as threads:

        def gradient(sites: torch.Tensor) -> torch.Tensor:
            sites = sites.clone().requires_grad_(True)
            target(sites).backward()
            assert sites.grad is not None
            return sites.grad

        for sites, found in zip(batch, threads.map(gradient, batch), strict=True):
            _, expected = plain.evaluate(sites.numpy())
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_inside_a_running_event_loop(geometry: GeometryEnergy, peptide: Model) -> None:
    async def run() -> float:
        return float(geometry(sites_of(peptide)))

    assert math.isfinite(asyncio.run(run()))


def test_closed(mesh: Mesh, peptide: Model) -> None:
    target = GeometryEnergy(mesh, peptide)
    target(sites_of(peptide))
    target.close()
    target.close()
    with pytest.raises(InvalidInput, match="closed"):
        target(sites_of(peptide))


def test_atom37(geometry: GeometryEnergy, peptide: Model) -> None:
    atom_map = AtomMap.atom37(peptide, missing="file")
    places = atom_map.from_model(sites_of(peptide)).requires_grad_(True)
    with torch.no_grad():
        places[~atom_map.mask] = 1e9
    geometry(atom_map.to_model(places)).backward()
    sites = sites_of(peptide).requires_grad_(True)
    geometry(sites).backward()
    assert places.grad.shape == (7, 37, 3)
    assert places.grad[~atom_map.mask].abs().max() == 0
    torch.testing.assert_close(places.grad, atom_map.from_model(sites.grad))


def test_mask_alone(mesh: Mesh) -> None:
    lines = wheel_bytes(PDB_1YJP).splitlines(keepends=True)
    dry = mesh.create_model(b"".join(x for x in lines if b"HOH" not in x), include_atoms=True)
    sites = moved(sites_of(dry).expand(2, -1, -1), 0.05).requires_grad_(True)
    atom_map = AtomMap.atom37(dry)
    assert (atom_map.only_in_model, atom_map.only_in_caller) == ((), ())
    places = atom_map.from_model(sites.detach())
    places[:, ~atom_map.mask] = torch.nan
    places.requires_grad_(True)
    with GeometryEnergy(mesh, dry) as geometry:
        energies = geometry(places, atom_map.mask)
        energies.sum().backward()
        geometry(sites).sum().backward()
    assert energies.shape == (2,)
    torch.testing.assert_close(places.grad, atom_map.from_model(sites.grad))


def test_mask_beside_the_coordinates(mesh: Mesh, peptide: Model, geometry: GeometryEnergy) -> None:
    atom_map = AtomMap.atom37(peptide, missing="file")
    places = atom_map.from_model(sites_of(peptide))
    with pytest.raises(InvalidInput, match='missing="file"'):
        geometry(places, atom_map.mask)  # it lacks the waters
    with GeometryEnergy(mesh, peptide, atom_map=atom_map) as target:
        half = places.half().requires_grad_(True)
        target(half).backward()
        assert half.grad.dtype == torch.float16
        assert target(places, atom_map.mask).item() == geometry(sites_of(peptide)).item()
        with pytest.raises(InvalidInput, match="lacks atoms"):
            target(places, torch.zeros_like(atom_map.mask))


def test_module(mesh: Mesh, peptide: Model) -> None:
    network = torch.nn.ModuleDict({"geometry": GeometryEnergy(mesh, peptide)})
    assert network.state_dict() == {}
    network.to(torch.float16).train()
    assert "GeometryEnergy(sha256:" in repr(network)
    twin = copy.deepcopy(network)["geometry"]
    assert isinstance(twin, GeometryEnergy)
    with twin:
        assert twin(sites_of(peptide)).isfinite()


def test_compiled(geometry: GeometryEnergy, peptide: Model) -> None:
    outside = torch.compiler.disable(geometry)
    compiled = torch.compile(lambda sites: 2 * outside(sites + 1).sin(), backend="eager")
    sites = sites_of(peptide)
    torch.testing.assert_close(compiled(sites), 2 * geometry(sites + 1).sin())


@pytest.mark.parametrize("coordinates", [np.zeros((66, 3)), torch.zeros(66, 3, dtype=torch.int64)])
def test_other_than_floating_point_tensors(geometry: GeometryEnergy, coordinates: object) -> None:
    with pytest.raises(InvalidInput, match="floating-point"):
        geometry(coordinates)


@pytest.mark.parametrize("options", [{"sessions": 0}, {"on_failure": "ignore"}])
def test_bad_options(mesh: Mesh, peptide: Model, options: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        GeometryEnergy(mesh, peptide, **options)
    with pytest.raises(InvalidInput, match="Mesh"):
        GeometryEnergy(None, peptide)


@pytest.mark.parametrize("shape", [(3,), (66, 2), (65, 3), (0, 66, 3)])
def test_bad_shapes(geometry: GeometryEnergy, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"is due|needs|must be|are expected"):
        geometry(torch.zeros(shape))

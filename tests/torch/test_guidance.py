"""Guidance of sampling, and the shapes that sampleworks and Boltz ask for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bxmesh.client import InvalidInput, Model
from bxmesh.client.torch import (
    BoltzPotential,
    GeometryEnergy,
    Guidance,
    SampleworksReward,
    constant,
    cosine,
    exponential,
    linear,
)
from tests.torch.conftest import moved, sites_of


def gradient_of(geometry: GeometryEnergy, sites: torch.Tensor) -> torch.Tensor:
    sites = sites.clone().requires_grad_(True)
    geometry(sites).sum().backward()
    assert sites.grad is not None
    return sites.grad


@pytest.fixture
def x0(peptide: Model) -> torch.Tensor:
    return moved(sites_of(peptide).expand(2, -1, -1), 0.05).float()


def test_schedules() -> None:
    assert [constant(2)(p) for p in (0, 1)] == [2, 2]
    for schedule in (linear, cosine, exponential):
        weight = schedule(1.0, 4.0)
        assert weight(0.0) == pytest.approx(1)
        assert weight(1.0) == pytest.approx(4)
        assert 1 < weight(0.3) < weight(0.6) < 4
    assert cosine(0, 2)(0.5) == pytest.approx(1)
    assert exponential(1, 4)(0.5) == pytest.approx(2)


def test_move_is_the_weighted_gradient(geometry: GeometryEnergy, x0: torch.Tensor) -> None:
    expected = gradient_of(geometry, x0)
    guidance = Guidance(geometry, linear(0.0, 1e-3))
    torch.testing.assert_close(guidance(x0, 5, 11), -0.5e-3 * expected)
    with torch.inference_mode():
        torch.testing.assert_close(guidance(x0, 10, 11), -1e-3 * expected)
    assert guidance(x0, 0, 11).abs().max() == 0


def test_moves_are_clipped(geometry: GeometryEnergy, x0: torch.Tensor) -> None:
    whole = Guidance(geometry, 1.0)(x0, 0, 10)
    by_atom = Guidance(geometry, 1.0, clip=0.1)(x0, 0, 10)
    assert by_atom.norm(dim=-1).max() == pytest.approx(0.1, rel=1e-5)
    torch.testing.assert_close(
        torch.nn.functional.normalize(by_atom, dim=-1),
        torch.nn.functional.normalize(whole, dim=-1),
    )
    by_sample = Guidance(geometry, 1.0, clip=2.0, clip_by="sample")(x0, 0, 10)
    torch.testing.assert_close(by_sample.flatten(1).norm(dim=1), torch.full((2,), 2.0))
    small = Guidance(geometry, 1e-9, clip=2.0)(x0, 0, 10)
    torch.testing.assert_close(small, 1e-9 * whole)


def test_only_some_steps_ask(geometry: GeometryEnergy, x0: torch.Tensor) -> None:
    asked = []

    def target(sites: torch.Tensor) -> torch.Tensor:
        asked.append(step)
        return sites.square().sum((-1, -2))

    guidance = Guidance(target, every=3, start=0.5)
    for step in range(21):
        guidance(x0, step, 21)
    assert asked == [12, 15, 18]


def test_samples_that_fail_stay(geometry: GeometryEnergy, x0: torch.Tensor) -> None:
    x0[1] *= 1e6
    move = Guidance(geometry, 1e-3, clip=0.1)(x0, 0, 10)
    assert move[1].abs().max() == 0
    assert move[0].abs().max() > 0


@pytest.mark.parametrize("options", [{"every": 0}, {"start": 0.9, "end": 0.1}, {"clip": 0.0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Guidance(lambda x: x.sum(), **options)  # type: ignore[arg-type]


def test_reward_of_sampleworks(geometry: GeometryEnergy, peptide: Model, x0: torch.Tensor) -> None:
    atoms = peptide.atoms
    assert atoms is not None
    order = np.random.default_rng(0).permutation(66)[:60]
    array = SimpleNamespace(
        chain_id=np.array(atoms.chain_ids)[order],
        res_id=np.array([int(number) for number in atoms.residue_numbers])[order],
        atom_name=np.array(atoms.names)[order],
    )
    reward = SampleworksReward(geometry, weight=0.5)
    reward.prepare(array, device="cpu")
    coordinates = x0[:, order].clone().requires_grad_(True)
    nothing = torch.zeros(2, 60)
    loss = reward(coordinates=coordinates, elements=nothing, b_factors=nothing, occupancies=nothing)
    loss.backward()
    sites = sites_of(peptide).float().repeat(2, 1, 1)
    sites[:, order] = x0[:, order]
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0.5 * geometry(sites).sum().item(), rel=1e-6)
    torch.testing.assert_close(coordinates.grad, 0.5 * gradient_of(geometry, sites)[:, order])


def test_potential_of_boltz(geometry: GeometryEnergy, x0: torch.Tensor) -> None:
    padded = torch.nn.functional.pad(x0, (0, 0, 0, 6))
    feats = {"atom_pad_mask": torch.tensor([[1.0] * 66 + [0.0] * 6])}
    potential = BoltzPotential(geometry, linear(0.0, 2e-3), guidance_interval=2)
    parameters = potential.compute_parameters(0.25)
    assert parameters == {
        "guidance_weight": pytest.approx(1.5e-3),
        "guidance_interval": 2,
        "resampling_weight": 0.0,
    }
    torch.testing.assert_close(potential.compute(padded, feats, parameters), geometry(x0))
    with torch.no_grad():
        gradients = potential.compute_gradient(padded, feats, parameters)
    torch.testing.assert_close(gradients[:, :66], gradient_of(geometry, x0))
    assert gradients[:, 66:].abs().max() == 0

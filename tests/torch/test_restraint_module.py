"""Restraints as a module: derivatives, compilation, bad samples, chunks, neighbours that are kept."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from bxmesh.client.torch import RestraintModule
from bxmesh.restraints import Restraints, RestraintsError, Status
from bxmesh.restraints.layout import FIELDS
from tests.restraints.invented import GROUPS, invented

ATOMS = 14

# PyTorch's compiler does what PyTorch has deprecated.
compiling = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def tensors(seed: int = 0, samples: int = 3, *, group: str = "P 21") -> tuple[Restraints, Tensor]:
    restraints, sites = invented(seed, ATOMS, group, masked=2)
    noise = torch.randn(samples, *sites.shape, generator=torch.Generator().manual_seed(seed))
    return restraints, torch.tensor(sites) + 0.3 * noise.double()


def energies_and_gradient(module: torch.nn.Module, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    leaf = coordinates.clone().requires_grad_()
    energies = module(leaf)
    energies.sum().backward()
    assert leaf.grad is not None
    return energies.detach(), leaf.grad


@pytest.mark.parametrize(("group", "chunk"), [*zip(GROUPS, (None, 2) * 2, strict=True)])
def test_derivatives_are_those_of_the_energy(group: str, chunk: int | None) -> None:
    for seed in range(3):
        restraints, coordinates = tensors(seed, group=group)
        module = RestraintModule(restraints, chunk=chunk)
        coordinates.requires_grad_()
        assert torch.autograd.gradcheck(module, coordinates, rtol=1e-5, fast_mode=True)
        assert torch.autograd.gradgradcheck(
            module, coordinates, rtol=1e-4, atol=1e-3, fast_mode=True
        )


def test_gradients_are_those_of_an_evaluation() -> None:
    restraints, coordinates = tensors()
    module = RestraintModule(restraints)
    energies, gradient = energies_and_gradient(module, coordinates)
    result = module.evaluate(coordinates, per_term=True)
    torch.testing.assert_close(result.energies, energies)
    torch.testing.assert_close(result.gradients, gradient)
    torch.testing.assert_close(sum(result.terms.values()), energies)
    torch.testing.assert_close(sum(result.term_gradients.values()), gradient)
    assert result.statuses == (Status.OK,) * 3
    assert not result.energies.requires_grad and not result.gradients.requires_grad
    assert not module.evaluate(coordinates).term_gradients


@compiling
def test_compiled_in_one_piece() -> None:
    restraints, coordinates = tensors()
    module = RestraintModule(restraints)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for number in range(3):
        places = (coordinates + 0.5 * number).float()
        expected = energies_and_gradient(module, places)
        torch.testing.assert_close(energies_and_gradient(compiled, places), expected)


@compiling
@pytest.mark.skipif(not shutil.which("g++"), reason="PyTorch compiles for processors with g++.")
def test_compiled_to_machine_code() -> None:
    """Of bonds and contacts, as the rest takes a minute to compile."""
    restraints, coordinates = tensors()
    few = dict(restraints.tensors)
    for name in ("angle", "dihedral", "chirality", "planarity", "parallelity", "symmetry_bond"):
        for field in (field for field in FIELDS if field.startswith(name)):
            few[field] = few[field][: field.endswith("offsets")]
    module = RestraintModule(Restraints(few), isolated=True)
    compiled = torch.compile(module, fullgraph=True)
    expected = energies_and_gradient(module, coordinates)
    torch.testing.assert_close(energies_and_gradient(compiled, coordinates), expected)


def bad(coordinates: Tensor, restraints: Restraints) -> dict[Status, Tensor]:
    [(first, *_), *_] = restraints["bond_atoms"]
    samples = {status: coordinates[0].clone() for status in Status}
    samples[Status.NON_FINITE][first, 1] = torch.nan
    samples[Status.OUT_OF_RANGE][first, 2] = 2e4
    samples[Status.EXPLODED] = 200 * (coordinates[0] - coordinates[0].mean(0))
    return {status: samples[status] for status in Status if status is not Status.CROWDED}


@compiling
@pytest.mark.parametrize("compiled", [False, True])
def test_bad_samples_leave_others_alone(compiled: bool) -> None:
    restraints, coordinates = tensors()
    restraints = Restraints({**restraints.tensors, "max_bond_distance": np.array([200.0])})
    samples = bad(coordinates, restraints)
    batch = torch.stack([*samples.values(), coordinates[1]])
    module = RestraintModule(restraints, isolated=compiled)
    assert module.evaluate(batch).statuses == (*samples, Status.OK)
    called = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    leaf = batch.clone().requires_grad_()
    energies = called(leaf)
    energies.square().sum().backward()
    assert leaf.grad is not None
    good = torch.tensor([0, 4])
    alone = batch[good].requires_grad_()
    expected = module(alone)
    expected.square().sum().backward()
    torch.testing.assert_close(energies[good], expected)
    torch.testing.assert_close(leaf.grad[good], alone.grad)
    assert energies[1:4].isnan().all()
    assert not leaf.grad[1:4].any()


def test_what_overflows_is_not_finite() -> None:
    restraints, coordinates = tensors()
    heavy = {**restraints.tensors, "bond_weight": restraints["bond_weight"] * 1e38}
    module = RestraintModule(Restraints(heavy))
    batch = coordinates.float()
    result = module.evaluate(batch)
    assert result.statuses == (Status.NON_FINITE,) * 3
    assert not result.gradients.any()
    assert module.evaluate(coordinates).statuses == (Status.OK,) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", ["all in one", "in line", "flat", "pair"])
def test_degenerate_geometry_has_finite_derivatives(dtype: torch.dtype, shape: str) -> None:
    for seed in range(5):
        restraints, coordinates = tensors(seed, group="P 1")
        sites = coordinates.clone()
        if shape == "all in one":
            sites[:] = sites[:, :1].clone()
        elif shape == "pair":
            i, j = restraints["bond_atoms"][0]
            sites[:, j] = sites[:, i]
        else:
            sites[:, :, 2 if shape == "flat" else slice(1, 3)] = 0
        leaf = sites.to(dtype).requires_grad_()
        energies = RestraintModule(restraints, isolated=True)(leaf)
        (gradient,) = torch.autograd.grad(energies.sum(), leaf, create_graph=True)
        assert energies.isfinite().all()
        assert gradient.isfinite().all()
        assert shape == "all in one" or gradient.any(2).any(1).all()
        (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
        assert not second.isnan().any()


def test_chunks_do_not_matter() -> None:
    restraints, coordinates = tensors(samples=7)
    together = energies_and_gradient(RestraintModule(restraints), coordinates)
    for chunk in (1, 3):
        module = RestraintModule(restraints, chunk=chunk)
        torch.testing.assert_close(energies_and_gradient(module, coordinates), together)
        torch.testing.assert_close(module.evaluate(coordinates).gradients, together[1])
        with torch.no_grad():
            torch.testing.assert_close(module(coordinates), together[0])


@pytest.mark.parametrize("buffer", [0.0, 0.5, 3.0])
def test_neighbours_that_are_kept_do_not_matter(buffer: float) -> None:
    restraints, coordinates = tensors()
    module = RestraintModule(restraints, buffer=buffer)
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        coordinates = coordinates + 0.1 * torch.randn(
            coordinates.shape, generator=generator, dtype=coordinates.dtype
        )
        batch = coordinates.clone()
        if step % 4 == 1:  # Bad, then good again at another place.
            batch[1] = torch.nan
        fresh = RestraintModule(restraints, buffer=0.0)
        result, expected = module.evaluate(batch), fresh.evaluate(batch)
        assert result.statuses == expected.statuses
        torch.testing.assert_close(result.energies, expected.energies, equal_nan=True)
        torch.testing.assert_close(result.gradients, expected.gradients)


def test_isolated_restraints_turn_with_the_model() -> None:
    restraints, coordinates = tensors()
    module = RestraintModule(restraints, isolated=True)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    rotation = rotation * torch.linalg.det(rotation)
    energies, gradient = energies_and_gradient(module, coordinates)
    moved = coordinates @ rotation.T + torch.tensor([3.0, -40.0, 12.5], dtype=torch.float64)
    there, turned = energies_and_gradient(module, moved)
    torch.testing.assert_close(there, energies, rtol=1e-9, atol=0)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(turned, gradient @ rotation.T, rtol=0, atol=1e-8 * scale)


def test_casts_leave_restraints_as_they_are() -> None:
    restraints, coordinates = tensors()
    module = RestraintModule(restraints)
    expected = module(coordinates)
    parent = torch.nn.Sequential(copy.deepcopy(module)).to(torch.bfloat16).half().to("cpu")
    torch.testing.assert_close(parent(coordinates), expected, rtol=0, atol=0)
    assert parent(coordinates.float()).dtype == torch.float32
    assert not parent.state_dict() and not list(parent.parameters())


def test_mixed_precision_does_not_reach_it() -> None:
    restraints, coordinates = tensors()
    module = RestraintModule(restraints)
    for places in (coordinates, coordinates.float()):
        expected = energies_and_gradient(module, places)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(energies_and_gradient(module, places), expected)


def test_inference_mode_leaves_nothing_behind() -> None:
    restraints, coordinates = tensors()
    module = RestraintModule(restraints)
    expected = energies_and_gradient(RestraintModule(restraints), coordinates)
    with torch.inference_mode():
        torch.testing.assert_close(module(coordinates + 0.0), expected[0])
        torch.testing.assert_close(module.evaluate(coordinates + 0.0).gradients, expected[1])
    torch.testing.assert_close(energies_and_gradient(module, coordinates), expected)


@pytest.mark.parametrize("group", GROUPS)
def test_all_is_made_on_the_device_of_the_coordinates(group: str) -> None:
    restraints, coordinates = tensors(group=group)
    module = RestraintModule(restraints, chunk=2)
    expected = energies_and_gradient(RestraintModule(restraints), coordinates)
    with torch.device("meta"):
        energies, gradient = energies_and_gradient(module, coordinates)
        result = module.evaluate(coordinates, per_term=True)
    torch.testing.assert_close((energies, gradient), expected)
    torch.testing.assert_close((result.energies, result.gradients), expected)


def test_one_sample_without_a_batch() -> None:
    restraints, coordinates = tensors()
    module = RestraintModule(restraints)
    torch.testing.assert_close(module(coordinates[0]), module(coordinates[:1]))
    assert module.evaluate(coordinates[0]).gradients.shape == (1, ATOMS + 2, 3)


@pytest.mark.parametrize(
    ("coordinates", "reason"),
    [
        (torch.zeros(2, ATOMS + 2, 3, dtype=torch.float16), "COORDINATES_DTYPE"),
        (torch.zeros(2, ATOMS, 3), "COORDINATES_SHAPE"),
        (torch.zeros(0, ATOMS + 2, 3), "COORDINATES_SHAPE"),
        (torch.zeros(1, 2, ATOMS + 2, 3), "COORDINATES_SHAPE"),
    ],
)
def test_other_tensors_are_refused(coordinates: Tensor, reason: str) -> None:
    module = RestraintModule(tensors()[0])
    with pytest.raises(RestraintsError) as caught:
        module(coordinates)
    assert caught.value.reason == reason


@pytest.mark.parametrize("keywords", [{"chunk": 0}, {"buffer": -1.0}, {"buffer": 11.0}])
def test_other_keywords_are_refused(keywords: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        RestraintModule(tensors()[0], **keywords)  # type: ignore[arg-type]


def test_needs_neither_numba_nor_cctbx() -> None:
    code = "import sys; sys.modules['numba'] = None; import bxmesh.restraints.torch; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cctbx" not in ran.stdout.split()

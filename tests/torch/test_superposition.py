"""Superposition of structures in other frames."""

from __future__ import annotations

import pytest
import torch

from bxmesh.client import InvalidInput, Model
from bxmesh.client.torch import GeometryEnergy, superpose
from tests.torch.conftest import moved, sites_of


def rotations(count: int) -> torch.Tensor:
    """Proper rotations [count, 3, 3]."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64, generator=generator))
    return q * torch.linalg.det(q)[:, None, None]


def test_rigid_motion_is_undone(peptide: Model) -> None:
    sites = sites_of(peptide)
    elsewhere = sites @ rotations(3) + 20.0
    torch.testing.assert_close(superpose(elsewhere, sites), sites.expand(3, -1, -1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = superpose(elsewhere.float(), sites)
    torch.testing.assert_close(single, sites.float().expand(3, -1, -1), rtol=0, atol=1e-4)
    assert superpose(elsewhere.half(), sites).dtype == torch.float32


def test_mirror_images_stay_mirror_images(peptide: Model) -> None:
    sites = sites_of(peptide)
    assert (superpose(-sites, sites) - sites).norm(dim=-1).mean() > 0.5


def test_weights(peptide: Model) -> None:
    sites = sites_of(peptide)
    bent = sites.clone()
    bent[30:] += 5.0
    weights = (torch.arange(66) < 30).double()
    torch.testing.assert_close(superpose(bent @ rotations(1)[0], sites, weights), bent)


def test_gradients_come_back_in_the_frame_of_the_caller(
    geometry: GeometryEnergy, peptide: Model
) -> None:
    sites = moved(sites_of(peptide), 0.05)
    rotation = rotations(1)[0]
    here = sites.clone().requires_grad_(True)
    elsewhere = (sites @ rotation + 20.0).requires_grad_(True)
    one = geometry(superpose(here, sites_of(peptide)))
    other = geometry(superpose(elsewhere, sites_of(peptide)))
    (one + other).backward()
    assert other.item() == pytest.approx(one.item(), rel=1e-9)
    torch.testing.assert_close(elsewhere.grad, here.grad @ rotation)


def test_what_is_not_finite_harms_nobody(geometry: GeometryEnergy, peptide: Model) -> None:
    sites = sites_of(peptide)
    batch = torch.stack([sites, sites * torch.nan]).requires_grad_(True)
    geometry(superpose(batch, sites)).nansum().backward()
    assert bool(batch.grad.isfinite().all())


def test_bad_shapes(peptide: Model) -> None:
    with pytest.raises(InvalidInput, match="are due"):
        superpose(sites_of(peptide)[1:], sites_of(peptide))

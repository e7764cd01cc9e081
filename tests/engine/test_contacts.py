"""Leaving out pairs that are not in contact changes nothing, wherever the coordinates go."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from bxmesh.server.geometry.engine.model import BuiltModel
from tests.engine.wheel import PDB_1YJP

Built = Callable[[str], BuiltModel]

MODELS = (
    PDB_1YJP,  # many contacts with symmetry mates
    "iotbx/regression/secondary_structure/1ubf_cutted.pdb",
    "iotbx/pdb/remediation/tst/protein-dna-test.pdb",
)


def journey(start: np.ndarray) -> Iterator[np.ndarray]:
    """Stays, creeps away until atoms collide, jumps, and comes back."""
    generator = np.random.default_rng(7)
    for _ in range(8):
        yield start + generator.normal(0.0, 0.02, start.shape)
    drift = generator.normal(0.0, 0.03, start.shape)
    for step in range(30):
        yield start + step * drift
    for sigma in (0.5, 0.5, 0.02, 0.02):
        yield start + generator.normal(0.0, sigma, start.shape)
    for _ in range(8):
        yield start + 30 * drift + generator.normal(0.0, 0.01, start.shape)
    for _ in range(8):
        yield start


@pytest.mark.parametrize("path", MODELS)
def test_nothing_is_lost_on_a_journey(built: Built, path: str) -> None:
    model = built(path)
    target = model._geometry_target(model._on_step)
    repelled = set()
    for sites in journey(model.atoms.sites):
        result = model.geometry(sites)
        # The same manager, as what cctbx lists depends on where it was asked before.
        expected = target._manager.energies_sites(
            sites_cart=target._order.to_flex(sites), compute_gradients=True
        )
        gradients = expected.gradients.as_double().as_numpy_array().reshape(-1, 3)
        assert result.energy == pytest.approx(expected.target, rel=1e-12)
        np.testing.assert_allclose(
            result.gradients[model.atom_mask],
            target._order.to_file(gradients)[model.atom_mask],
            rtol=0,
            atol=1e-12 * np.linalg.norm(gradients),
        )
        assert result.terms["nonbonded"].energy == pytest.approx(
            expected.nonbonded_residual_sum, rel=1e-12
        )
        assert result.terms["nonbonded"].count == expected.n_nonbonded_proxies
        repelled.add(result.terms["nonbonded"].energy)
    assert max(repelled) > 2 * min(repelled)


def test_fewer_pairs_are_looked_at_while_the_coordinates_hardly_move(built: Built) -> None:
    model = built(MODELS[1])
    target = model._geometry_target(model._on_step)
    listed, looked_at = [], []
    model.geometry(model.atoms.sites + 0.3)
    among = target._contacts.among

    def watched(pairs: object, sites: object) -> object:
        near = among(pairs, sites)
        listed.append(pairs.n_total())  # type: ignore[attr-defined]
        looked_at.append(near.n_total())
        return near

    target._contacts.among = watched  # type: ignore[method-assign]
    try:
        for seed in range(10):
            noise = np.random.default_rng(seed).normal(0.0, 0.02, model.atoms.sites.shape)
            model.geometry(model.atoms.sites + noise)
    finally:
        del target._contacts.among
    assert looked_at[0] == listed[0]
    assert looked_at[-1] < listed[-1] / 2

"""The energy of a plane is the smallest eigenvalue of its atoms' spread, however these lie."""

import numpy as np
import pytest

from bxmesh.restraints.kernels.planes import Planarities, planarity_energy


@pytest.mark.parametrize("width", [1.0, 0.3, 3e-2, 3e-3, 3e-4, 1e-6, 0.0])
@pytest.mark.parametrize("height", [1.0, 0.02, 1e-6, 0.0])
def test_planes_of_any_shape(width: float, height: float) -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
        count = int(random.integers(3, 12))
        sites = random.normal(size=(count, 3)) * (2.0, 2.0 * width, 2.0 * width * height)
        sites = sites @ rotation + random.normal(scale=30, size=3)
        weights = random.uniform(1, 2500, count)
        planes = Planarities(np.array([0, count]), np.arange(count), weights)
        gradients = np.zeros_like(sites)
        energy = planarity_energy(sites, planes, gradients)
        around = sites - np.average(sites, axis=0, weights=weights)
        spread = (weights[:, np.newaxis] * around).T @ around
        least, *_, most = np.linalg.eigvalsh(spread)
        assert energy == pytest.approx(least, rel=1e-10, abs=1e-14 * most)
        # Moving along or turning, a plane stays as good as it is.
        assert np.abs(gradients.sum(axis=0)).max() < 1e-9 * np.sqrt(most * weights.sum())
        torque = np.abs(np.cross(around, gradients).sum(axis=0)).max()
        assert torque < 1e-11 * most

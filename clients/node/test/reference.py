"""Prints as JSON what the client in Python gets: ADDRESS STATE_DIR MODEL REFLECTIONS."""

import json
import sys
from typing import Any

import numpy as np

from bxmesh.client import Gradients, Mesh, Step


def values(answer: Gradients | Step) -> dict[str, Any]:
    """Returns gradients as flat lists, and what belongs to them."""
    return {
        "tensors": {
            name: {"data": array.ravel().tolist(), "shape": array.shape}
            for name, array in answer.arrays.items()
        },
        "energy": answer.energy,
        "rWork": answer.r_work,
        "rFree": answer.r_free,
    }


def main() -> None:
    """Prints sites, gradients there, and a session's three steps from there."""
    address, state_dir, macromolecule, reflections = sys.argv[1:]
    with Mesh(address, state_dir=state_dir) as mesh:
        model = mesh.create_model(macromolecule, reflections, include_atoms=True)
        assert model.atoms is not None
        sites = model.atoms.sites
        random = np.random.default_rng(1)
        steps = [sites + random.normal(0, 0.02, sites.shape) for _ in range(3)]
        own = values(mesh.gradients(model))
        with mesh.session(model) as session:
            answers = [
                values(session.step(step, refresh_scales=index == 1))
                for index, step in enumerate(steps)
            ]
    json.dump(
        {
            "modelId": model.model_id,
            "sites": sites.ravel().tolist(),
            "own": own,
            "coordinates": [step.ravel().tolist() for step in steps],
            "steps": answers,
        },
        sys.stdout,
    )


main()

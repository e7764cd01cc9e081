"""Moves the atoms of a structure at random, and refines it against its own data with torch's LBFGS.

Needs a running mesh and PyTorch: `bxmesh serve`, then
`python examples/torch_refine.py model.pdb data.mtz`.
"""

import argparse
from pathlib import Path

import torch

from bxmesh.client import Mesh
from bxmesh.client.torch import CombinedTarget, MinimizationStep, Minimizer


def main(model_file: Path, data_file: Path, shift: float, steps: int) -> None:
    """Refines and says what became of R-free."""
    torch.manual_seed(0)
    with Mesh() as mesh:
        model = mesh.create_model(model_file, data_file, include_atoms=True)
        assert model.atoms is not None
        sites = torch.tensor(model.atoms.sites)
        with CombinedTarget(mesh, model) as target:

            def r_free(coordinates: torch.Tensor) -> float:
                target(coordinates)
                xray = target.samples[0].xray
                assert xray is not None
                assert xray.r_free is not None
                return xray.r_free

            def show(step: MinimizationStep) -> None:
                if step.step % 5 == 0:
                    print(f"step {step.step:3d}  target {step.energy.item():12.2f}")

            start = sites + shift * torch.randn_like(sites)
            before = r_free(start)
            refined = Minimizer(target, start).run(steps, show)
            after = r_free(refined.coordinates)
    rmsd = (refined.coordinates - sites).square().sum(-1).mean().sqrt().item()
    print(f"R-free {before:.3f} -> {after:.3f}, {rmsd:.2f} Å rms from the file")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the macromolecule, PDB or mmCIF")
    parser.add_argument("data", type=Path, help="its reflections, MTZ")
    parser.add_argument("--shift", type=float, default=0.2, help="in angstrom, on each axis")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    main(options.model, options.data, options.shift, options.steps)

"""Steers a toy diffusion model with the geometry of a structure: once without guidance, once with it.

Needs a running mesh and PyTorch: `bxmesh serve`, then `python examples/torch_guidance.py model.pdb`. The
denoiser knows each atom by itself, to within 0.2 Å; the restraints know what a molecule is.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from bxmesh.client import Mesh
from bxmesh.client.torch import GeometryEnergy, Guidance, cosine

Denoiser = Callable[[Tensor, float], Tensor]


def toy_denoiser(sites: Tensor, spread: float) -> Denoiser:
    """Predicts x0 as a diffusion model would that knows each atom to within a spread in angstrom."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        x0: Tensor = torch.lerp(sites, x, spread**2 / (spread**2 + sigma**2))
        return x0

    return denoise


def sample(denoise: Denoiser, noise: Tensor, steps: int, guidance: Guidance | None) -> Tensor:
    """Euler steps from noise [B, N, 3] at 20 Å down to 0.02 Å (Karras et al. 2022)."""
    sigmas = torch.logspace(1.3, -1.7, steps + 1).tolist()
    x: Tensor = noise * sigmas[0]
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if guidance is not None:
            x0 = x0 + guidance(x0, step, steps)
        x = x0 + (x - x0) * following / sigma
    return x


def main(model_file: Path, samples: int, steps: int) -> None:
    """Samples twice from the same noise and compares the energies."""
    torch.manual_seed(0)
    with Mesh() as mesh:
        model = mesh.create_model(model_file, include_atoms=True)
        assert model.atoms is not None
        sites = torch.tensor(model.atoms.sites, dtype=torch.float32)
        denoise = toy_denoiser(sites, 0.2)
        noise = torch.randn(samples, *sites.shape)
        with GeometryEnergy(mesh, model, sessions=2) as geometry:
            guidance = Guidance(geometry, cosine(0.0, 1e-3), start=0.3, clip=0.2)
            alone = geometry(sample(denoise, noise, steps, None)).mean().item()
            guided = geometry(sample(denoise, noise, steps, guidance)).mean().item()
    print(f"mean energy of {samples} samples: {alone:.0f} without guidance, {guided:.0f} with it")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the macromolecule, PDB or mmCIF")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    main(options.model, options.samples, options.steps)

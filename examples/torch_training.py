"""Trains a small generator of structures on noisy ones, with the restraints' energy in the loss.

Needs a running mesh and PyTorch: `bxmesh serve`, then `python examples/torch_training.py model.pdb`.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from bxmesh.client import Mesh
from bxmesh.client.torch import GeometryEnergy


class Generator(nn.Module):
    """Decodes latent variables [B, 8] to structures [B, N, 3]."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean.clone())
        self.decode = nn.Linear(8, mean.numel(), bias=False)

    def forward(self, latent: Tensor) -> Tensor:
        """Returns the structures."""
        moves: Tensor = self.decode(latent)
        return self.mean + 0.1 * moves.view(-1, *self.mean.shape)


def main(model_file: Path, epochs: int, batch: int) -> None:
    """Trains and says how the loss fell."""
    torch.manual_seed(0)
    with Mesh() as mesh:
        model = mesh.create_model(model_file, include_atoms=True)
        assert model.atoms is not None
        sites = torch.tensor(model.atoms.sites, dtype=torch.float32)
        generator = Generator(sites + 0.2 * torch.randn_like(sites))
        optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
        energies = []
        with GeometryEnergy(mesh, model, sessions=2) as geometry:
            for epoch in range(epochs):
                structures = generator(torch.randn(batch, 8))
                geometry.prefetch(structures)
                # The mesh computes while this does.
                examples = sites + 0.2 * torch.randn_like(structures)
                distance = (structures - examples).square().sum(-1).mean()
                energy = torch.log1p(geometry(structures)).nanmean()
                loss = distance + 0.05 * energy
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                energies.append(energy.item())
                if epoch % 20 == 0:
                    print(f"epoch {epoch:3d}  distance {distance:.3f} Å²  log energy {energy:.2f}")
    print(f"log energy {energies[0]:.2f} -> {energies[-1]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the macromolecule, PDB or mmCIF")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    main(options.model, options.epochs, options.batch)

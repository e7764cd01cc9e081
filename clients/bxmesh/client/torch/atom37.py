"""The layout of AlphaFold and OpenFold: 37 named places for the atoms of each residue."""

from __future__ import annotations

from torch import Tensor

from bxmesh.client.names import invalid
from bxmesh.layouts import ATOM37

__all__ = ["ATOM37", "check_atom37", "from_atom37", "to_atom37"]


def from_atom37(coordinates: Tensor, mask: Tensor) -> Tensor:
    """Returns [..., R, 37, 3] as [..., N, 3]: the N atoms of the mask [R, 37], residue by residue.

    Within a residue the order is that of ATOM37, which is not a PDB file's: AtomMap goes from one
    to the other. Differentiable; what is off the mask gets zero gradients.
    """
    check_atom37(coordinates, mask)
    return coordinates[..., mask.bool().to(coordinates.device), :]


def to_atom37(values: Tensor, mask: Tensor) -> Tensor:
    """Returns [..., N, 3] as [..., R, 37, 3] with zeros off the mask, the way back."""
    mask = mask.bool().to(values.device)
    count = int(mask.sum())
    if values.shape[-2:] != (count, 3):
        shape = list(values.shape)
        raise invalid(
            "values", f"the mask has {count} atoms; [..., {count}, 3] is due, not {shape}"
        )
    placed = values.new_zeros((*values.shape[:-2], *mask.shape, 3))
    placed[..., mask, :] = values
    return placed


def check_atom37(coordinates: Tensor, mask: Tensor) -> None:
    """Raises InvalidInput unless they are [..., R, 37, 3] and [R, 37] for the same R."""
    if mask.ndim != 2 or mask.shape[1] != len(ATOM37):
        raise invalid("mask", f"a mask is [R, 37], one for the whole batch, not {list(mask.shape)}")
    if coordinates.shape[-3:] != (*mask.shape, 3):
        expected = f"[..., {mask.shape[0]}, 37, 3]"
        raise invalid(
            "coordinates", f"{expected} is due with this mask, not {[*coordinates.shape]}"
        )

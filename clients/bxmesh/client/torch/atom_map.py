"""Which of a caller's atoms is which of the model's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bxmesh.client.models import Atoms, Model
from bxmesh.client.names import invalid
from bxmesh.layouts import ATOM37, AtomName, amino_acids, atom37_names, match

__all__ = ["AtomMap", "AtomName"]

Missing = Literal["refuse", "file"]

_NAMED = 5


class AtomMap:
    """Maps a caller's layout to the model's N atoms, in the order of its file, and back.

    Of alternative locations the first one counts. What the caller lacks and the model has is
    refused with `missing="refuse"`; with "file" such atoms stay where the model's file has them, and
    their gradients are dropped.
    """

    def __init__(
        self,
        atoms: Atoms,
        names: Sequence[AtomName | None],
        shape: tuple[int, ...] | None = None,
        *,
        missing: Missing = "refuse",
    ) -> None:
        """Takes the model's atoms, the caller's in its order (None for a place without an atom),
        and the shape of the caller's layout without batch and without 3; flat unless given."""
        self.shape = (len(names),) if shape is None else shape
        """The caller's layout: (M,) or (R, 37)."""
        try:
            matched = match(_names(atoms), names)
        except ValueError as error:
            raise invalid("atoms", str(error)) from error
        self.only_in_model = matched.only_in_model
        """The atoms that the caller lacks, alternative locations after the first among them."""
        self.only_in_caller = matched.only_in_caller
        """The atoms that the model lacks; their gradients are zero."""
        if self.only_in_model and missing == "refuse":
            raise invalid(
                "atoms",
                f"the model has {len(self.only_in_model)} atoms that the caller's layout lacks"
                f" ({_some(self.only_in_model)}); leave them out of the model, or let them stay where"
                ' its file has them: missing="file"',
                "ATOMS_MISSING",
            )
        self._places = torch.tensor(matched.places, dtype=torch.int64)
        self._atoms = torch.tensor(matched.atoms, dtype=torch.int64)
        # A copy, since the array is read-only memory of the answer, which torch cannot respect.
        self._sites = torch.tensor(np.asarray(atoms.sites))
        mask = torch.zeros(int(np.prod(self.shape)), dtype=torch.bool)
        mask[self._places] = True
        self.mask = mask.reshape(self.shape)
        """The places whose atoms the model has, bool in the caller's layout."""

    @classmethod
    def flat(
        cls,
        model: Model | Atoms | str,
        names: Iterable[Sequence[str]],
        *,
        missing: Missing = "refuse",
    ) -> AtomMap:
        """Returns the map of M atoms in the caller's order, each (chain, residue number, name)."""
        return cls(_atoms_of(model), [AtomName(*name) for name in names], missing=missing)

    @classmethod
    def atom37(
        cls,
        model: Model | Atoms | str,
        mask: Tensor | None = None,
        residues: Sequence[tuple[str, str]] | None = None,
        *,
        missing: Missing = "refuse",
    ) -> AtomMap:
        """Returns the map of [R, 37] places in the order of ATOM37.

        Residues are (chain, residue number); those of the model with N, CA and C unless given. The
        mask [R, 37] says which atoms the caller has; all that the model has unless given.
        """
        atoms = _atoms_of(model)
        if residues is None:
            residues = amino_acids(_names(atoms))
        shape = (len(residues), len(ATOM37))
        if mask is not None and tuple(mask.shape) != shape:
            raise invalid(
                "mask", f"the model has {shape[0]} amino acids: [{shape[0]}, 37] is due, not"
                f" {list(mask.shape)}; say with `residues` which of them the mask is of"
            )  # fmt: skip
        has = None if mask is None else mask.bool().cpu().numpy()
        names = atom37_names(_names(atoms), residues, has)
        return cls(atoms, names, shape, missing=missing)

    @classmethod
    def of_atom_array(
        cls, model: Model | Atoms | str, atom_array: Any, *, missing: Missing = "refuse"
    ) -> AtomMap:
        """Returns the map of a biotite AtomArray, or of what has its annotations."""
        insertions = getattr(atom_array, "ins_code", None)
        if insertions is None:
            insertions = [""] * len(atom_array.atom_name)
        columns = (atom_array.chain_id, atom_array.res_id, insertions, atom_array.atom_name)
        names = [
            (str(chain), f"{number}{str(insertion).strip()}", str(name))
            for chain, number, insertion, name in zip(*columns, strict=True)
        ]
        return cls.flat(model, names, missing=missing)

    def __repr__(self) -> str:
        return (
            f"AtomMap({list(self.shape)}, {len(self._atoms)} mapped, {len(self.only_in_model)} only in"
            f" the model, {len(self.only_in_caller)} only in the caller)"
        )

    def to_model(self, coordinates: Tensor) -> Tensor:
        """Returns [..., *shape, 3] as [..., N, 3]. Differentiable, with zeros off the mask.

        Half precision becomes float32, as it cannot hold the file's coordinates.
        """
        depth = len(self.shape) + 1
        if tuple(coordinates.shape[-depth:]) != (*self.shape, 3):
            expected = ", ".join(map(str, self.shape))
            raise invalid(
                "coordinates", f"[..., {expected}, 3] is due, not {list(coordinates.shape)}"
            )
        batch = coordinates.shape[:-depth]
        dtype = torch.promote_types(coordinates.dtype, torch.float32)
        flat = coordinates.reshape(*batch, -1, 3).to(dtype)
        device = coordinates.device
        sites = self._sites.to(device, dtype).expand(*batch, -1, 3)
        mapped = flat.index_select(-2, self._places.to(device))
        return sites.index_copy(-2, self._atoms.to(device), mapped)

    def from_model(self, values: Tensor) -> Tensor:
        """Returns [..., N, 3] as [..., *shape, 3], with zeros off the mask."""
        device = values.device
        mapped = values.index_select(-2, self._atoms.to(device))
        flat = values.new_zeros((*values.shape[:-2], self.mask.numel(), 3))
        flat = flat.index_copy(-2, self._places.to(device), mapped)
        return flat.reshape(*values.shape[:-2], *self.shape, 3)


def _atoms_of(model: Model | Atoms | str) -> Atoms:
    atoms = model.atoms if isinstance(model, Model) else model
    if not isinstance(atoms, Atoms):
        raise invalid(
            "model",
            "the model's atoms are not known here: create_model(…, include_atoms=True)",
            "ATOMS_UNKNOWN",
        )
    return atoms


def _names(atoms: Atoms) -> list[AtomName]:
    columns = (atoms.chain_ids, atoms.residue_numbers, atoms.names)
    return [AtomName(*name) for name in zip(*columns, strict=True)]


def _some(names: Sequence[AtomName]) -> str:
    more = ", …" if len(names) > _NAMED else ""
    return ", ".join(map(str, names[:_NAMED])) + more

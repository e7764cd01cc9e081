"""Which of a caller's atoms is which of the model's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bxmesh.client.models import Atoms, Model
from bxmesh.client.names import invalid
from bxmesh.client.torch.atom37 import ATOM37

__all__ = ["AtomMap", "AtomName"]

Missing = Literal["refuse", "file"]

_BACKBONE = {"N", "CA", "C"}
_NAMED = 5


class AtomName(NamedTuple):
    """What an atom is known by."""

    chain_id: str
    residue_number: str
    """With its insertion code, such as "52A"."""
    name: str

    def __str__(self) -> str:
        return "/".join(self)


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
        own = _first_places(atoms)
        pairs = [(place, own[name]) for place, name in enumerate(names) if name in own]
        found = {atom for _, atom in pairs}
        if len(found) < len(pairs):
            raise invalid("atoms", "an atom is named twice; every atom has one place")
        self.only_in_model = tuple(
            name for atom, name in enumerate(_names(atoms)) if atom not in found
        )
        """The atoms that the caller lacks, alternative locations after the first among them."""
        self.only_in_caller = tuple(n for n in names if n is not None and n not in own)
        """The atoms that the model lacks; their gradients are zero."""
        if self.only_in_model and missing == "refuse":
            raise invalid(
                "atoms",
                f"the model has {len(self.only_in_model)} atoms that the caller's layout lacks"
                f" ({_some(self.only_in_model)}); leave them out of the model, or let them stay where"
                ' its file has them: missing="file"',
                "ATOMS_MISSING",
            )
        self._places = torch.tensor([place for place, _ in pairs], dtype=torch.int64)
        self._atoms = torch.tensor([atom for _, atom in pairs], dtype=torch.int64)
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
            residues = _amino_acids(atoms)
        shape = (len(residues), len(ATOM37))
        if mask is None:
            own = set(_names(atoms))
            has = [[AtomName(*residue, name) in own for name in ATOM37] for residue in residues]
        elif tuple(mask.shape) != shape:
            raise invalid(
                "mask", f"the model has {shape[0]} amino acids: [{shape[0]}, 37] is due, not"
                f" {list(mask.shape)}; say with `residues` which of them the mask is of"
            )  # fmt: skip
        else:
            has = mask.bool().tolist()
        names = [
            AtomName(*residue, name) if present else None
            for residue, row in zip(residues, has, strict=True)
            for name, present in zip(ATOM37, row, strict=True)
        ]
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


def _first_places(atoms: Atoms) -> dict[AtomName, int]:
    places: dict[AtomName, int] = {}
    for place, name in enumerate(_names(atoms)):
        places.setdefault(name, place)
    return places


def _amino_acids(atoms: Atoms) -> list[tuple[str, str]]:
    residues: dict[tuple[str, str], set[str]] = {}
    for chain_id, number, name in _names(atoms):
        residues.setdefault((chain_id, number), set()).add(name)
    return [residue for residue, names in residues.items() if names >= _BACKBONE]


def _some(names: Sequence[AtomName]) -> str:
    more = ", …" if len(names) > _NAMED else ""
    return ", ".join(map(str, names[:_NAMED])) + more

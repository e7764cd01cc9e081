"""The layout atom37 of a session, and what of it is in the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bxmesh.client.names import invalid
from bxmesh.geometry.v1 import gradients_pb2 as pb
from bxmesh.layouts import ATOM37, AtomName
from bxmesh.tensors import from_message, to_message

__all__ = ["Atom37", "Atom37Map"]

_MOST_BYTES = 1024 * 1024


@dataclass(frozen=True, eq=False)
class Atom37:
    """The layout of AlphaFold and OpenFold: [R, 37], 37 places for each residue.

    Atoms of the model that it lacks stay where the model's file has them.
    """

    residues: Sequence[tuple[str, str]] = ()
    """(chain, residue number with insertion code) of each row; the model's amino acids unless given."""
    mask: ArrayLike | None = None
    """The places with atoms, bool [R, 37]; all that the model has unless given. What is off it is not
    looked at."""

    def to_message(self) -> pb.Atom37Layout:
        """Returns the layout as a message. InvalidInput for a mask that is none."""
        layout = pb.Atom37Layout(
            residues=[
                pb.ResidueId(chain_id=chain_id, residue_number=number)
                for chain_id, number in self.residues
            ]
        )
        if self.mask is not None:
            mask = np.asarray(self.mask)
            if mask.ndim != 2 or mask.shape[1] != len(ATOM37):
                raise invalid("mask", f"a mask is [R, 37], not {list(mask.shape)}")
            layout.mask.CopyFrom(to_message(mask.astype(np.bool_), "mask"))
        return layout


@dataclass(frozen=True, eq=False)
class Atom37Map:
    """What of a layout is in the model."""

    residues: tuple[tuple[str, str], ...]
    """(chain, residue number) of each row."""
    mask: NDArray[np.bool_]
    """The places that are atoms of the model, [R, 37]; gradients are zero at the others."""
    only_in_model: tuple[AtomName, ...]
    """Atoms of the model that the layout lacks, the first 1,000."""
    only_in_model_count: int
    """How many these are."""
    only_in_caller: tuple[AtomName, ...]
    """Atoms of the layout that the model lacks, the first 1,000."""
    only_in_caller_count: int
    """How many these are."""

    @classmethod
    def from_message(cls, message: pb.Atom37Map) -> Atom37Map:
        """Returns the map that the message holds."""
        return cls(
            residues=tuple((each.chain_id, each.residue_number) for each in message.residues),
            mask=from_message(message.mask, max_bytes=_MOST_BYTES),
            only_in_model=_names(message.only_in_model),
            only_in_model_count=message.only_in_model_count,
            only_in_caller=_names(message.only_in_caller),
            only_in_caller_count=message.only_in_caller_count,
        )


def _names(atoms: Iterable[pb.AtomId]) -> tuple[AtomName, ...]:
    return tuple(
        AtomName(atom.residue.chain_id, atom.residue.residue_number, atom.name) for atom in atoms
    )

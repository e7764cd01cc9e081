"""The layouts that the steps of a session may have: coordinates on their way in, gradients on theirs out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bxmesh.geometry.v1 import geometry_work_pb2, gradients_pb2
from bxmesh.layouts import ATOM37, AtomName, amino_acids, atom37_names, match
from bxmesh.server.errors import MeshError, invalid_argument
from bxmesh.server.geometry.agent.warm_models import engine_call
from bxmesh.server.geometry.engine import AtomTable, as_samples
from bxmesh.tensors import TensorError, from_message, to_message

Array = NDArray[Any]

_MOST_NAMED = 1000


class Layout(Protocol):
    """How a caller arranges atoms."""

    axes: int
    """The axes of one sample's coordinates."""

    def samples(self, coordinates: Array) -> Array:
        """Coordinates of one sample or a batch as float64 [B, N, 3]; raises MeshError."""

    def arranged(self, values: Array) -> Array:
        """Values [B, N, …] in the caller's arrangement, [B, …]."""

    def describe(self, opened: gradients_pb2.SessionOpened) -> None:
        """Says in `opened` what of the layout is in the model, where it is not the model's own."""


def layout_of(work: geometry_work_pb2.OpenSessionWork, atoms: AtomTable, max_bytes: int) -> Layout:
    """The layout of a session; raises MeshError."""
    if work.HasField("atom37"):
        return Atom37Layout(work.atom37, atoms, max_bytes)
    return FlatLayout(len(atoms))


class FlatLayout:
    """The order of the model's file."""

    axes = 2

    def __init__(self, atoms: int) -> None:
        self._atoms = atoms

    def samples(self, coordinates: Array) -> Array:
        """Coordinates [N, 3] or [B, N, 3] as float64 [B, N, 3]; raises MeshError."""
        return engine_call(lambda: as_samples(coordinates, self._atoms))

    def arranged(self, values: Array) -> Array:
        """Values [B, N, …] as they are."""
        return values

    def describe(self, opened: gradients_pb2.SessionOpened) -> None:
        """Says nothing: all of it is."""


class Atom37Layout:
    """37 places for each residue. Atoms of the model without one stay where its file has them."""

    axes = 3

    def __init__(
        self, layout: gradients_pb2.Atom37Layout, atoms: AtomTable, max_bytes: int
    ) -> None:
        own = _names(atoms)
        self._residues = [
            (each.chain_id, each.residue_number) for each in layout.residues
        ] or amino_acids(own)
        if not self._residues:
            raise _refused(
                "residues", "the model has no amino acids; name the residues.", "NO_RESIDUES"
            )
        mask = _mask(layout, len(self._residues)) if layout.HasField("mask") else None
        try:
            self._match = match(own, atom37_names(own, self._residues, mask))
        except ValueError as error:
            raise _refused("residues", f"{error}.", "ATOM_TWICE") from error
        self._shape = (len(self._residues), len(ATOM37))
        self._sites = atoms.sites
        self._max_bytes = max_bytes

    def samples(self, coordinates: Array) -> Array:
        """Coordinates [R, 37, 3] or [B, R, 37, 3] as float64 [B, N, 3]; raises MeshError."""
        rows = self._shape[0]
        batch = coordinates[np.newaxis] if coordinates.ndim == self.axes else coordinates
        if batch.ndim != self.axes + 1 or batch.shape[1:] != (*self._shape, 3):
            raise _bad_coordinates(
                f"they have the shape {list(coordinates.shape)}; this session needs [{rows}, 37, 3] "
                f"or, for a batch, [B, {rows}, 37, 3].",
                "COORDINATES_SHAPE",
            )
        if len(batch) * self._sites.nbytes > self._max_bytes:
            raise _bad_coordinates(
                f"{len(batch)} samples of the whole model are more than {self._max_bytes} bytes; send "
                "smaller batches.",
                "TENSOR_TOO_LARGE",
            )
        places = rows * len(ATOM37)
        flat = engine_call(lambda: as_samples(batch.reshape(len(batch), places, 3), places))
        sites = np.repeat(self._sites[np.newaxis], len(batch), axis=0)
        sites[:, self._match.atoms] = flat[:, self._match.places]
        return sites

    def arranged(self, values: Array) -> Array:
        """Values [B, N, …] as [B, R, 37, …], zero at the places that are no atoms of the model."""
        samples, rest = len(values), values.shape[2:]
        flat = np.zeros((samples, self._shape[0] * self._shape[1], *rest), values.dtype)
        flat[:, self._match.places] = values[:, self._match.atoms]
        return flat.reshape(samples, *self._shape, *rest)

    def describe(self, opened: gradients_pb2.SessionOpened) -> None:
        """Says in `opened` what of the layout is in the model."""
        mask = np.zeros(self._shape, dtype=np.bool_)
        mask.reshape(-1)[self._match.places] = True
        found = self._match
        opened.atom37.CopyFrom(
            gradients_pb2.Atom37Map(
                residues=[_residue(*residue) for residue in self._residues],
                mask=to_message(mask, "mask"),
                only_in_model_count=len(found.only_in_model),
                only_in_model=map(_atom, found.only_in_model[:_MOST_NAMED]),
                only_in_caller_count=len(found.only_in_caller),
                only_in_caller=map(_atom, found.only_in_caller[:_MOST_NAMED]),
            )
        )


def _names(atoms: AtomTable) -> list[AtomName]:
    numbers = np.char.add(atoms.resseq, atoms.icode)
    columns = (atoms.chain.tolist(), numbers.tolist(), atoms.name.tolist())
    return [AtomName(*name) for name in zip(*columns, strict=True)]


def _mask(layout: gradients_pb2.Atom37Layout, rows: int) -> NDArray[np.bool_]:
    try:
        mask = from_message(layout.mask, max_bytes=rows * len(ATOM37))
    except TensorError as error:
        raise _refused("mask", f"{error}.", error.reason) from error
    if mask.dtype != np.bool_ or mask.shape != (rows, len(ATOM37)):
        raise _refused(
            "mask",
            f"it is {mask.dtype} {list(mask.shape)}; bool [{rows}, 37] is due, a row for each residue.",
            "MASK_SHAPE",
        )
    return mask


def _residue(chain_id: str, number: str) -> gradients_pb2.ResidueId:
    return gradients_pb2.ResidueId(chain_id=chain_id, residue_number=number)


def _atom(name: AtomName) -> gradients_pb2.AtomId:
    residue = _residue(name.chain_id, name.residue_number)
    return gradients_pb2.AtomId(residue=residue, name=name.name)


def _refused(field: str, description: str, reason: str) -> MeshError:
    return invalid_argument(f"open.atom37.{field}", description, reason=reason)


def _bad_coordinates(description: str, reason: str) -> MeshError:
    return invalid_argument("step.coordinates", description, reason=reason)

"""Restraints as tensors: checked, saved and loaded."""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bxmesh.restraints.errors import RestraintsError
from bxmesh.restraints.layout import FIELDS, Tensors, check

__all__ = ["Restraints"]

_MOST_BYTES = 4 * 1024**3
_UNREADABLE = (ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class Restraints:
    """The geometry restraints of one model, without cctbx; docs/restraints.md tells every tensor.

    Raises RestraintsError for tensors that are no restraints or have a layout that is too new.
    """

    def __init__(self, tensors: Tensors) -> None:
        check(tensors)
        self._tensors = {name: tensors[name] for name in FIELDS}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._tensors[name]

    def __repr__(self) -> str:
        return f"Restraints(atoms={self.n_atoms}, layout_version={self.layout_version})"

    @property
    def tensors(self) -> Tensors:
        """All tensors by name."""
        return dict(self._tensors)

    @property
    def layout_version(self) -> int:
        """The version of the layout."""
        return int(self["layout_version"][0])

    @property
    def n_atoms(self) -> int:
        """N, the atoms of the model's file, restrained or not."""
        return len(self["atom_mask"])

    def save(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Writes the tensors as an npz file, which has no pickles."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, tensor in self._tensors.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(
                        member, np.ascontiguousarray(tensor), (1, 0), allow_pickle=False
                    )

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO | bytes) -> Restraints:
        """Returns the restraints in an npz file or its bytes; raises RestraintsError."""
        source = io.BytesIO(file) if isinstance(file, bytes) else file
        try:
            with zipfile.ZipFile(source) as archive:
                size = sum(member.file_size for member in archive.infolist())
                if size > _MOST_BYTES:
                    raise ValueError(f"{size} bytes")
                tensors = {name: _read(archive, name) for name in _named(archive)}
        except _UNREADABLE as error:
            raise RestraintsError(
                "RESTRAINTS_DAMAGED", "This is not a file of restraints; export them again."
            ) from error
        return cls(tensors)


def _named(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in FIELDS if f"{name}.npy" in archive.namelist()]


def _read(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Returns an array that is as large as its header says; read_array would believe the header."""
    content = io.BytesIO(archive.read(f"{name}.npy"))
    if np.lib.format.read_magic(content) != (1, 0):
        raise ValueError(f"{name} is no array of version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(content)
    data = content.read()
    if dtype.hasobject or len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} is not what its header says")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

"""Restraints as tensors: checked, saved and loaded."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bxmesh.restraints.errors import RestraintsError
from bxmesh.restraints.layout import FIELDS, Tensors, check

__all__ = ["Restraints"]


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
        # np.savez would add `.npz` to a path.
        if isinstance(file, (str, os.PathLike)):
            with Path(file).open("wb") as opened:
                np.savez_compressed(opened, **self._tensors)
        else:
            np.savez_compressed(file, **self._tensors)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO | bytes) -> Restraints:
        """Returns the restraints in an npz file or its bytes; raises RestraintsError."""
        source = io.BytesIO(file) if isinstance(file, bytes) else file
        try:
            with np.load(source, allow_pickle=False) as archive:
                tensors = {name: archive[name] for name in archive.files}
        except (ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            raise RestraintsError(
                "RESTRAINTS_DAMAGED", "This is not a file of restraints; export them again."
            ) from error
        return cls(tensors)

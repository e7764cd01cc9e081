"""What all terms of the energy are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bxmesh.restraints.restraints import Restraints

__all__ = ["Term", "keep"]


class Term(nn.Module):
    """A term of the energy over M restraints of A atoms each."""

    atoms: Tensor
    """[A, M]"""
    numbers: Tensor
    """[.., M], as in the layout."""
    flags: Tensor
    """[M], for which of them something holds."""

    def __init__(
        self,
        restraints: Restraints,
        name: str,
        numbers: str,
        flags: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__()
        atoms = restraints[f"{name}_atoms"].T
        columns = [restraints[f"{name}_{column}"].astype(np.float64) for column in numbers.split()]
        flags = np.zeros(atoms.shape[1], bool) if flags is None else flags
        keep(self, atoms=atoms.astype(np.int64), numbers=np.stack(columns), flags=flags)
        # Known when the term is made, so that it costs nothing later.
        self.any_flag = bool(flags.any())

    def in_type_of(self, points: Tensor) -> tuple[Tensor, ...]:
        """Returns the restraints' numbers [M] in the type of the coordinates."""
        return self.numbers.to(points.dtype).unbind(0)


def keep(module: nn.Module, **arrays: Any) -> None:
    """Registers copies of arrays that move with a module and are not in its state."""
    for name, array in arrays.items():
        module.register_buffer(name, torch.tensor(array), persistent=False)

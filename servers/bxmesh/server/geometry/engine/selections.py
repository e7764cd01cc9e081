"""Selections of atoms, in the syntax of mmtbx."""

import numpy as np
from iotbx.pdb.atom_selection import AtomSelectionError
from libtbx.utils import Sorry

from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.macromolecule import Macromolecule
from bxmesh.server.geometry.engine.types import Mask
from bxmesh.server.geometry.engine.words import words

_FIELD = "options"
_SHOWN = 80


def select(model: Macromolecule, selection: str) -> Mask:
    """Return which atoms of the file are selected, [N].

    Raises EngineError SELECTION_INVALID, and SELECTION_EMPTY for one that no atom fits.
    """
    try:
        chosen = model.hierarchy.atom_selection_cache().selection(selection).as_numpy_array()
    except (AtomSelectionError, Sorry, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise EngineError(
            "SELECTION_INVALID",
            f"The selection {selection[:_SHOWN]!r} cannot be read: {words(error)}",
            field=_FIELD,
        ) from error
    if not chosen.any():
        raise EngineError(
            "SELECTION_EMPTY", f"No atom fits the selection {selection[:_SHOWN]!r}.", field=_FIELD
        )
    mask = np.zeros(len(model.atoms), dtype=np.bool_)
    mask[model.order[chosen]] = True
    return mask

"""Selections of atoms, in the syntax of mmtbx."""

import math
from typing import Any

import numpy as np
from cctbx import crystal
from iotbx.pdb import atom_selection
from libtbx.utils import Sorry

from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.macromolecule import Macromolecule
from bxmesh.server.geometry.engine.types import Mask
from bxmesh.server.geometry.engine.words import words

_FIELD = "options"
_SHOWN = 80
_MOST_WILDCARDS = 4
"""In a word: the time that iotbx takes to match one grows with their number as a power."""
_MOST_WITHIN = 8
_LONGEST_RADIUS = 15.0
"""In Å, of within and residues_within."""
_MOST_PAIRS = 3.0e7
"""Of atoms in one such search; about a second."""


def select(model: Macromolecule, selection: str) -> Mask:
    """Return which atoms of the file are selected, [N].

    Raises EngineError SELECTION_INVALID, which says where, and SELECTION_EMPTY for one that no atom
    fits.
    """
    cache = _Cache(model)
    tokens = cache.selection_tokenizer(selection)
    try:
        _refuse_unbounded(tokens)
        tokens = cache.selection_tokenizer(selection)
        chosen = cache.selection_parser(word_iterator=tokens).as_numpy_array()
    except Exception as error:
        raise EngineError(
            "SELECTION_INVALID",
            f"The selection cannot be read at character {tokens.char_iter.i_char}, where "
            f"{_before(selection, tokens.char_iter.i_char)!r} ends: {_reason(error)}. It is in the "
            "syntax of mmtbx, such as 'chain A and resseq 5:7 and not name CB'.",
            field=_FIELD,
        ) from error
    if not chosen.any():
        raise EngineError(
            "SELECTION_EMPTY", f"No atom fits the selection {selection[:_SHOWN]!r}.", field=_FIELD
        )
    mask = np.zeros(len(model.atoms), dtype=np.bool_)
    mask[model.order[chosen]] = True
    return mask


class _Cache(atom_selection.cache):  # type: ignore[misc]
    """Selects over all copies by symmetry, within bounds."""

    __slots__ = ()

    def __init__(self, model: Macromolecule) -> None:
        symmetry = model.symmetry or crystal.non_crystallographic_symmetry(
            sites_cart=model.hierarchy.atoms().extract_xyz(), buffer_layer=_LONGEST_RADIUS
        )
        super().__init__(
            model.hierarchy, special_position_settings=crystal.special_position_settings(symmetry)
        )

    def sel_within(self, radius: float, primary_selection: Any) -> Any:
        if not 0 < radius <= _LONGEST_RADIUS:
            raise ValueError(f"a radius is above 0 and at most {_LONGEST_RADIUS:g} angstrom")
        settings = self.special_position_settings
        in_cell = self.n_seq * settings.space_group().order_z()
        neighbours = in_cell / settings.unit_cell().volume() * 4 / 3 * math.pi * radius**3
        if self.n_seq * neighbours > _MOST_PAIRS:
            raise ValueError(f"{radius:g} angstrom is too far for so many atoms")
        return super().sel_within(radius, primary_selection)

    def sel_residues_within(self, radius: float, primary_selection: Any) -> Any:
        # Not iotbx's, whose time grows with the square of the residues.
        near = self.sel_within(radius, primary_selection)
        for residue in self.root.residue_groups():
            places = residue.atoms().extract_i_seq()
            if near.select(places).count(True):
                near.set_selected(places, True)
        return near


def _refuse_unbounded(tokens: Any) -> None:
    searches = 0
    for word in tokens:
        if word.value.count("*") > _MOST_WILDCARDS:
            raise ValueError(f"a word has at most {_MOST_WILDCARDS} asterisks")
        searches += word.value.lower().endswith("within")
        if searches > _MOST_WITHIN:
            raise ValueError(f"a selection has within at most {_MOST_WITHIN} times")


def _before(selection: str, end: int) -> str:
    return selection[:end] if end <= _SHOWN else f"…{selection[end - _SHOWN : end]}"


def _reason(error: Any) -> str:
    # What is not said in words is an assertion of the parser about its stack, or None for the next word.
    if isinstance(error, Sorry | RuntimeError | ValueError):
        return words(error).rstrip(".")
    return "something is missing there"

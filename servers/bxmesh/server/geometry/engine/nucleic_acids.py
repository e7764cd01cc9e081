"""The nucleic-acid part of a restraint library, as CIF blocks in the form that mmtbx reads."""

import tomllib
from importlib.resources import files
from typing import Any

from iotbx.cif import model as cif

_PUCKERS = {"rna2p": "c2_endo", "rna3p": "c3_endo"}
_BASES = {"": False, "_pur": True, "_pyr": True}
"""Suffix of the modification, and whether the base is known well enough to restrain chi."""
_NO_GROUP = (".",) * 6


def overlay() -> tuple[dict[str, cif.block], dict[str, cif.block]]:
    """Return the links and the modifications by identifier."""
    text = files(__package__).joinpath("data/nucleic_acids.toml").read_text("utf-8")
    puckers = tomllib.loads(text)
    links = {name: _link(puckers[pucker]["link"]) for name, pucker in _PUCKERS.items()}
    modifications = {
        name + base: _modification(puckers[pucker], with_chi=with_chi)
        for name, pucker in _PUCKERS.items()
        for base, with_chi in _BASES.items()
    }
    return links, modifications


def link_row(name: str) -> tuple[str, ...]:
    """Return the row of `link_list`: without groups, as mmtbx asks for these links by name."""
    return (name, *_NO_GROUP, name)


def modification_row(name: str) -> tuple[str, ...]:
    """Return the row of `mod_list`."""
    return name, name, ".", "DNA/RNA"


def _link(link: dict[str, Any]) -> cif.block:
    block = cif.block()
    block.add_loop(
        _loop(
            "_chem_link_bond",
            "atom_1_comp_id atom_id_1 atom_2_comp_id atom_id_2 type value_dist value_dist_esd",
            [(1, "O3*", 2, "P", "single", *link["bond"])],
        )
    )
    block.add_loop(
        _loop(
            "_chem_link_angle",
            "atom_1_comp_id atom_id_1 atom_2_comp_id atom_id_2 atom_3_comp_id atom_id_3"
            " value_angle value_angle_esd",
            link["angles"],
        )
    )
    block.add_loop(
        _loop(
            "_chem_link_tor",
            "id atom_1_comp_id atom_id_1 atom_2_comp_id atom_id_2 atom_3_comp_id atom_id_3"
            " atom_4_comp_id atom_id_4 value_angle value_angle_esd period",
            link["torsions"],
        )
    )
    return block


def _modification(pucker: dict[str, Any], *, with_chi: bool) -> cif.block:
    block = cif.block()
    block.add_loop(
        _loop(
            "_chem_mod_bond",
            "function atom_id_1 atom_id_2 new_type new_value_dist new_value_dist_esd",
            [("change", *row[:2], "coval", *row[2:]) for row in pucker["bonds"]],
        )
    )
    block.add_loop(
        _loop(
            "_chem_mod_angle",
            "function atom_id_1 atom_id_2 atom_id_3 new_value_angle new_value_angle_esd",
            [("change", *row) for row in pucker["angles"]],
        )
    )
    torsions = [
        # Dictionaries have no delta row that could be changed.
        ("add" if row[0] == "delta" else "change", *row[:6], ".", *row[6:])
        for row in pucker["torsions"]
    ]
    if with_chi:
        torsions += [("change", "chi", *row, 1) for row in pucker["chi"]]
    block.add_loop(
        _loop(
            "_chem_mod_tor",
            "function id atom_id_1 atom_id_2 atom_id_3 atom_id_4 new_value_angle new_alt_value_angle"
            " new_value_angle_esd new_period",
            torsions,
        )
    )
    return block


def _loop(category: str, keys: str, rows: list[Any]) -> cif.loop:
    loop = cif.loop(header=[f"{category}.{key}" for key in keys.split()])
    for row in rows:
        loop.add_row([str(value) for value in row])
    return loop

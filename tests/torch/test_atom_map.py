"""Which atom is which: layouts of callers and of the model, and what either lacks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bxmesh.client import InvalidInput, Model
from bxmesh.client.torch import ATOM37, AtomMap, AtomName
from tests.torch.conftest import sites_of


def names_of(model: Model) -> list[AtomName]:
    atoms = model.atoms
    assert atoms is not None
    rows = zip(atoms.chain_ids, atoms.residue_numbers, atoms.names, strict=True)
    return [AtomName(*row) for row in rows]


def test_any_order(peptide: Model) -> None:
    names, sites = names_of(peptide), sites_of(peptide)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    atom_map = AtomMap.flat(peptide, [names[i] for i in order])
    shuffled = sites[order].expand(2, -1, -1).clone().requires_grad_(True)
    assert (atom_map.only_in_model, atom_map.only_in_caller) == ((), ())
    flat = atom_map.to_model(shuffled)
    torch.testing.assert_close(flat, sites.expand(2, -1, -1))
    (flat * sites).sum().backward()
    torch.testing.assert_close(shuffled.grad, sites[order].expand(2, -1, -1))
    torch.testing.assert_close(atom_map.from_model(flat), shuffled.detach())


def test_what_either_side_lacks(peptide: Model) -> None:
    names, sites = names_of(peptide), sites_of(peptide)
    caller = [AtomName("Z", "1", "CA"), *names[2:]]
    with pytest.raises(InvalidInput, match=r"2 atoms .*A/1/N, A/1/CA") as raised:
        AtomMap.flat(peptide, caller)
    assert raised.value.reason == "ATOMS_MISSING"
    atom_map = AtomMap.flat(peptide, caller, missing="file")
    assert atom_map.only_in_model == tuple(names[:2])
    assert atom_map.only_in_caller == (AtomName("Z", "1", "CA"),)
    given = torch.full((65, 3), 5.0, dtype=torch.float64, requires_grad=True)
    flat = atom_map.to_model(given)
    torch.testing.assert_close(flat[:2], sites[:2])
    assert bool((flat[2:] == 5).all())
    flat.sum().backward()
    assert given.grad[0].abs().max() == 0
    assert given.grad[1:].min() == 1


def test_atom37(peptide: Model) -> None:
    names, sites = names_of(peptide), sites_of(peptide)
    atom_map = AtomMap.atom37(peptide, missing="file")
    assert atom_map.shape == (7, 37)
    assert {name.name for name in atom_map.only_in_model} == {"O"}  # the waters
    places = atom_map.from_model(sites)
    for place, name in enumerate(names[:59]):
        row, column = int(name.residue_number) - 1, ATOM37.index(name.name)
        assert bool(atom_map.mask[row, column])
        torch.testing.assert_close(places[row, column], sites[place])
    assert int(atom_map.mask.sum()) == 59
    torch.testing.assert_close(atom_map.to_model(places), sites)


def test_atom37_with_a_mask_of_the_caller(peptide: Model) -> None:
    whole = AtomMap.atom37(peptide, missing="file")
    mask = whole.mask.clone()
    mask[0, ATOM37.index("OXT")] = True
    mask[2, ATOM37.index("CB")] = False
    atom_map = AtomMap.atom37(peptide, mask, missing="file")
    assert atom_map.only_in_caller == (AtomName("A", "1", "OXT"),)
    assert set(atom_map.only_in_model) - set(whole.only_in_model) == {AtomName("A", "3", "CB")}
    part = AtomMap.atom37(peptide, mask[:2], [("A", "1"), ("A", "2")], missing="file")
    assert part.shape == (2, 37)
    with pytest.raises(InvalidInput, match="7 amino acids"):
        AtomMap.atom37(peptide, mask[:2])


def test_alternative_locations_after_the_first_stay(peptide: Model) -> None:
    atoms = peptide.atoms
    assert atoms is not None
    twice = SimpleNamespace(**{name: (*getattr(atoms, name)[:4], *getattr(atoms, name)[:2])
                               for name in ("chain_ids", "residue_numbers", "names")})  # fmt: skip
    sites = np.concatenate([atoms.sites[:4], atoms.sites[:2] + 1])
    both = replace(atoms, sites=sites, **vars(twice))
    atom_map = AtomMap.flat(both, names_of(peptide)[:4], missing="file")
    assert atom_map.only_in_model == tuple(names_of(peptide)[:2])
    flat = atom_map.to_model(torch.zeros(4, 3, dtype=torch.float64))
    torch.testing.assert_close(flat[4:], torch.tensor(sites[4:]))


def test_atom_array(peptide: Model) -> None:
    atoms = peptide.atoms
    assert atoms is not None
    array = SimpleNamespace(
        chain_id=np.array(atoms.chain_ids),
        res_id=np.array([int(number) for number in atoms.residue_numbers]),
        ins_code=np.array([""] * 66),
        atom_name=np.array(atoms.names),
    )
    assert bool(AtomMap.of_atom_array(peptide, array).mask.all())


def test_bad_input(peptide: Model) -> None:
    names = names_of(peptide)
    with pytest.raises(InvalidInput, match="twice"):
        AtomMap.flat(peptide, [*names, names[0]])
    with pytest.raises(InvalidInput, match="include_atoms=True"):
        AtomMap.atom37(peptide.model_id)
    with pytest.raises(InvalidInput, match="is due"):
        AtomMap.flat(peptide, names).to_model(torch.zeros(65, 3))

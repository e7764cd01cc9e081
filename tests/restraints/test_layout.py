"""Files of restraints: written and read, of other versions, damaged, hostile; and their description."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bxmesh.restraints import LAYOUT_VERSION, Restraints, RestraintsError
from bxmesh.restraints.layout import FIELDS
from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.export import export
from tests.engine.wheel import PDB_1YJP, wheel_bytes
from tests.restraints.plain import Exported

Export = Callable[..., Exported]


@pytest.fixture(scope="module")
def restraints(exported: Export) -> Restraints:
    return exported(PDB_1YJP).restraints


def file_of(restraints: Restraints) -> bytes:
    file = io.BytesIO()
    restraints.save(file)
    return file.getvalue()


def test_saved_and_loaded(restraints: Restraints, tmp_path: Path) -> None:
    path = tmp_path / "restraints.of.a.model"
    restraints.save(path)
    assert path.read_bytes() == file_of(restraints)
    for loaded in (Restraints.load(path), Restraints.load(path.read_bytes())):
        assert loaded.n_atoms == 66
        for name, tensor in restraints.tensors.items():
            np.testing.assert_array_equal(loaded[name], tensor)
            assert loaded[name].dtype == tensor.dtype
    with np.load(path, allow_pickle=False) as archive:
        assert set(archive.files) == set(FIELDS)


def changed(restraints: Restraints, name: str, value: Any) -> dict[str, Any]:
    return {**restraints.tensors, name: value}


@pytest.mark.parametrize("version", [LAYOUT_VERSION + 1, 0, 2**31 - 1])
def test_another_layout_is_refused(restraints: Restraints, version: int) -> None:
    with pytest.raises(RestraintsError, match=str(version)) as caught:
        Restraints(changed(restraints, "layout_version", np.array([version], dtype=np.int32)))
    assert caught.value.reason == "RESTRAINTS_LAYOUT_UNKNOWN"


@pytest.mark.parametrize("name", FIELDS)
def test_every_tensor_is_checked(restraints: Restraints, name: str) -> None:
    tensor = restraints[name]
    broken: list[Any] = [tensor.astype("<c16"), tensor[..., np.newaxis]]
    if tensor.size:
        broken.append(np.concatenate([tensor, tensor]))
    if tensor.dtype.kind == "f" and tensor.size and name != "max_bond_distance":
        broken.append(np.full_like(tensor, np.nan))
    if re.search("atoms|offsets|operator|type", name) and tensor.size:
        for value in (-5, 10**6):
            beyond = tensor.copy()
            beyond.flat[-1] = value
            broken.append(beyond)
    for value in broken:
        with pytest.raises(RestraintsError) as caught:
            Restraints(changed(restraints, name, value))
        assert caught.value.reason in ("RESTRAINTS_DAMAGED", "RESTRAINTS_LAYOUT_UNKNOWN")
    with pytest.raises(RestraintsError, match=name):
        Restraints({each: restraints[each] for each in FIELDS if each != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("atom_mask", False),
        ("nonbonded_distance", 0.0),
        ("nonbonded_distance", 1e3),
        ("nonbonded_function", -1.0),
        ("fractionalization", 1e300),
        ("orthogonalization", 1e-3),
        ("symmetry_rotations", 7),
        ("symmetry_translations", 1e300),
        ("close_bonds", 4),
        ("close_shift", -(2**31)),
        ("angle_slack", -1.0),
        ("planarity_weight", 0.0),
        ("max_bond_distance", 0.0),
    ],
)
def test_values_that_would_lead_astray(restraints: Restraints, name: str, value: float) -> None:
    with pytest.raises(RestraintsError) as caught:
        Restraints(changed(restraints, name, np.full_like(restraints[name], value)))
    assert caught.value.reason == "RESTRAINTS_DAMAGED"


@pytest.mark.parametrize("fault", ["empty", "text", "cut", "flipped", "pickle", "bomb"])
def test_hostile_files_are_refused(restraints: Restraints, fault: str) -> None:
    good = file_of(restraints)
    pickled = io.BytesIO()
    np.savez(pickled, **changed(restraints, "bond_ideal", np.array([{}])))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("atom_mask.npy", "w", force_zip64=True) as member:
            for _ in range(5):
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "|b1", "fortran_order": False, "shape": (2**40,)}
                )
                member.write(bytes(2**20))
    data = {
        "empty": b"",
        "text": b"ATOM      1",
        "cut": good[: len(good) // 2],
        "flipped": good[:500] + bytes(byte ^ 255 for byte in good[500:700]) + good[700:],
        "pickle": pickled.getvalue(),
        "bomb": bomb.getvalue(),
    }[fault]
    with pytest.raises(RestraintsError) as caught:
        Restraints.load(data)
    assert caught.value.reason == "RESTRAINTS_DAMAGED"


def test_what_has_no_place_is_named(exported: Export) -> None:
    model = exported(wheel_bytes(PDB_1YJP) + b"\n")
    from cctbx.geometry_restraints import cos_repulsion_function

    kept = model.manager.nonbonded_function
    model.manager.nonbonded_function = cos_repulsion_function(max_residual=1)
    with pytest.raises(EngineError, match="cos_repulsion_function") as caught:
        export(model.model)
    assert caught.value.reason == "RESTRAINTS_NOT_EXPORTABLE"
    model.manager.nonbonded_function = kept


def test_every_tensor_is_described() -> None:
    text = Path("docs/restraints.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.MULTILINE))
    shapes = {
        name: f"{np.dtype(field.dtype).name} [{', '.join(map(str, field.shape))}]"
        for name, field in FIELDS.items()
    }
    assert rows == shapes


def test_reading_needs_neither_numba_nor_cctbx() -> None:
    code = "import sys, bxmesh.restraints, bxmesh.client; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numba", "cctbx", "torch"} & set(ran.stdout.split())

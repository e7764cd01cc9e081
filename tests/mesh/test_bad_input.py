"""Bad input gets a typed error that names it, leaves nothing behind, and the server serves on."""

from __future__ import annotations

import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cctbx import crystal as symmetry
from cctbx.array_family import flex
from iotbx import mtz

from bxmesh.client import AsyncMesh
from bxmesh.client.errors import (
    BxmeshError,
    FailedPrecondition,
    InternalError,
    InvalidInput,
    NotFound,
    ResourceExhausted,
)
from bxmesh.geometry.v1 import bundle_pb2, model_pb2
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.test_macromolecule import BAD, without
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_bytes, wheel_file
from tests.mesh.raw import raw
from tests.mesh.refusals import NO_BUNDLE, asked, bundles, checked, peptide
from tests.processes import until

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
PDB = wheel_bytes(PDB_7N2L)
DATA = wheel_bytes(MTZ_7N2L)


async def refused_model(lone: AsyncMesh, *inputs: Any, **options: Any) -> BxmeshError:
    before = await bundles(lone, "model", "gradients")
    with pytest.raises(BxmeshError) as caught:
        await lone.create_model(*inputs, **options)
    assert await bundles(lone, "model", "gradients") == before
    return caught.value


@pytest.mark.parametrize("name", BAD)
async def test_macromolecule(lone: AsyncMesh, name: str) -> None:
    content, reason = BAD[name]
    error = checked(await refused_model(lone, content), reason)
    assert isinstance(error, InvalidInput)
    assert error.metadata["input"] == "macromolecule"
    assert error.field_violations[0][0] == "macromolecule"


def as_mtz(path: Path, **arrays: Any) -> bytes:
    (first, array), *rest = arrays.items()
    dataset = array.as_mtz_dataset(column_root_label=first)
    for name, array in rest:
        dataset.add_miller_array(array, column_root_label=name)
    dataset.mtz_object().write(str(path))
    return path.read_bytes()


ARRAYS = {
    array.info().label_string(): array
    for array in mtz.object(str(wheel_file(MTZ_7N2L))).as_miller_arrays()
}
AMPLITUDES, FLAGS = ARRAYS["FOBS,SIGFOBS"], ARRAYS["R-free-flags"]
PHASED = AMPLITUDES.array(data=flex.complex_double(AMPLITUDES.size(), 1 + 1j))


def elsewhere(cell: tuple[float, ...], group: str) -> Any:
    other = symmetry.symmetry(unit_cell=cell, space_group_symbol=group)
    return AMPLITUDES.customized_copy(crystal_symmetry=other)


REFLECTIONS = {
    "empty": (b"", "EMPTY_FILE"),
    "random bytes": (bytes(range(256)) * 20, "REFLECTIONS_UNREADABLE"),
    "cut off": (DATA[: len(DATA) // 2], "REFLECTIONS_UNREADABLE"),
    "a model": (PDB, "REFLECTIONS_UNREADABLE"),
    "CIF with a missing loop": (b"data_x\nloop_\n_refln.index_h", "REFLECTIONS_UNREADABLE"),
    "flags only": ({"FREE": FLAGS}, "NO_DATA_IN_REFLECTIONS"),
    "calculated only": ({"FC": PHASED, "FREE": FLAGS}, "NO_DATA_IN_REFLECTIONS"),
    "another cell": (
        {"F": elsewhere((30, 40, 50, 90, 90, 90), "P 1")},
        "CRYSTAL_SYMMETRY_MISMATCH",
    ),
    "another space group": (
        {"F": elsewhere((4.87, 10.06, 30.66, 94.85, 90.26, 99.99), "P -1")},
        "CRYSTAL_SYMMETRY_MISMATCH",
    ),
}


@pytest.mark.parametrize("name", REFLECTIONS)
async def test_reflections(lone: AsyncMesh, tmp_path: Path, name: str) -> None:
    content, reason = REFLECTIONS[name]
    data = content if isinstance(content, bytes) else as_mtz(tmp_path / "x.mtz", **content)
    error = checked(await refused_model(lone, PDB, data), reason)
    assert error.metadata["input"] == "reflections"


@pytest.mark.parametrize(
    "limits", [{"d_min": 0.5}, {"d_min": 20.0}, {"d_max": 0.5}, {"d_min": 3.0, "d_max": 2.0}]
)
async def test_resolution_outside_the_data(lone: AsyncMesh, limits: dict[str, float]) -> None:
    error = checked(await refused_model(lone, PDB, DATA, **limits), "RESOLUTION_OUTSIDE_DATA")
    assert "0.900" in error.message


@pytest.mark.parametrize("limits", [{"d_min": -1.0}, {"d_min": float("nan")}, {"d_min": 2000.0}])
async def test_impossible_resolution(lone: AsyncMesh, limits: dict[str, float]) -> None:
    error = await refused_model(lone, PDB, DATA, **limits)
    assert isinstance(error, InvalidInput)
    assert error.field_violations


@pytest.mark.parametrize("options", [{"data_labels": "FNONE"}, {"r_free_flags_label": "nothing"}])
async def test_labels_that_are_not_there(lone: AsyncMesh, options: dict[str, str]) -> None:
    error = await refused_model(lone, PDB, DATA, **options)
    assert error.reason in ("NO_DATA_IN_REFLECTIONS", "NO_R_FREE_FLAGS")
    assert next(iter(options.values())) in error.message


async def test_without_free_flags(lone: AsyncMesh, tmp_path: Path) -> None:
    data = as_mtz(tmp_path / "x.mtz", F=AMPLITUDES)
    model = await lone.create_model(PDB, data)
    assert model.summary.reflections is not None
    assert model.summary.reflections.free_reflections == 0
    with pytest.raises(FailedPrecondition) as caught:
        await lone.gradients(model)
    checked(caught.value, "NO_R_FREE_FLAGS")
    with pytest.raises(FailedPrecondition):
        async with lone.session(model):
            raise AssertionError("it opened")
    result = await lone.gradients(model, target="xray", xray_target="ls")
    assert result.r_free is None
    generated = await lone.create_model(PDB, data, generate_r_free_flags=True)
    assert (await lone.gradients(generated, target="xray")).r_free


async def test_without_crystal_symmetry(lone: AsyncMesh) -> None:
    pdb = without(PDB, b"CRYST1")
    model = await lone.create_model(pdb)
    assert model.summary.unit_cell is None
    assert (await lone.gradients(model)).energy > 0
    with pytest.raises(FailedPrecondition) as caught:
        await lone.gradients(model, target="xray")
    checked(caught.value, "NO_REFLECTIONS")
    error = checked(await refused_model(lone, pdb, DATA), "NO_CRYSTAL_SYMMETRY")
    assert error.metadata["input"] == "macromolecule"


async def test_unknown_residue(lone: AsyncMesh) -> None:
    model = await lone.create_model(wheel_file("iotbx/regression/data/2ERL.pdb"))
    with pytest.raises(FailedPrecondition) as caught:
        await lone.gradients(model)
    error = checked(caught.value, "UNKNOWN_RESIDUES")
    assert error.metadata["subjects"] == "EOH"
    with pytest.raises(FailedPrecondition):
        async with lone.session(model):
            raise AssertionError("it opened")


async def test_unknown_atom(lone: AsyncMesh) -> None:
    pdb = wheel_bytes(PDB_1YJP).replace(b"  CA  GLY A   1", b"  XX  GLY A   1")
    model = await lone.create_model(pdb)
    with pytest.raises(InvalidInput) as caught:
        await lone.gradients(model)
    error = checked(caught.value, "UNKNOWN_ATOMS")
    assert "GLY A   1" in error.message


@pytest.mark.parametrize("dictionary", [b"", b"hello", b"\0\1\2", PDB])
async def test_restraints(lone: AsyncMesh, dictionary: bytes) -> None:
    error = await refused_model(lone, PDB, restraints=[dictionary])
    assert error.reason in ("RESTRAINTS_UNREADABLE", "EMPTY_FILE")
    assert error.metadata["input"] == "restraints"


async def test_unknown_names(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model, _ = await peptide(lone)
    macromolecule = model.macromolecule
    for request in (
        {"macromolecule": NO_BUNDLE},
        {"macromolecule": macromolecule, "reflections": NO_BUNDLE},
        {"macromolecule": macromolecule, "restraints": [NO_BUNDLE]},
    ):
        with pytest.raises(NotFound) as caught:
            await lone.create_model(**request)  # type: ignore[arg-type]
        error = checked(caught.value, "BUNDLE_NOT_FOUND")
        assert NO_BUNDLE in error.message
        assert error.metadata["input"] == list(request)[-1]
    for call in (lone.gradients(NO_BUNDLE), lone.gradients(macromolecule)):
        with pytest.raises(NotFound) as caught:
            await call
        checked(caught.value, "MODEL_NOT_FOUND")
    for name in ("", "sha256:12", "../../etc/passwd"):
        with pytest.raises(InvalidInput):
            await lone.gradients(name)
    request_ = asked(model.model_id)
    request_.coordinates.bundle_id = NO_BUNDLE
    async with raw(lone_mesh) as stubs:
        with pytest.raises(NotFound) as caught:
            await stubs.gradients(request_)
    checked(caught.value, "BUNDLE_NOT_FOUND")
    for session in (lone.session(NO_BUNDLE), lone.session(macromolecule)):
        with pytest.raises(NotFound):
            async with session:
                raise AssertionError("it opened")


async def test_expired_bundle(lone: AsyncMesh) -> None:
    content = wheel_bytes(PDB_1YJP) + b"REMARK expires\n"
    bundle = await lone.bundles.upload(
        content, kind="macromolecule", lifetime=timedelta(milliseconds=200)
    )

    async def expired() -> bool:
        try:
            await lone.bundles.get(bundle.bundle_id)
        except NotFound:
            return True
        return False

    await until(expired)
    with pytest.raises(NotFound) as caught:
        await lone.create_model(bundle.bundle_id)
    error = checked(caught.value, "BUNDLE_NOT_FOUND")
    assert "upload it again" in error.message
    assert error.metadata["input"] == "macromolecule"
    with pytest.raises(NotFound):
        await lone.bundles.download(bundle.bundle_id)


async def test_inputs_that_were_deleted(lone: AsyncMesh) -> None:
    model = await lone.create_model(wheel_bytes(PDB_1YJP) + b"REMARK deleted\n")
    await lone.bundles.delete(model.macromolecule)
    # While it is warm it serves.
    assert (await lone.gradients(model)).ok
    for remark in (b"REMARK one\n", b"REMARK two\n", b"REMARK three\n"):
        await lone.create_model(wheel_bytes(PDB_1YJP) + remark)
    with pytest.raises(NotFound) as caught:
        await lone.gradients(model)
    error = checked(caught.value, "BUNDLE_NOT_FOUND")
    assert model.macromolecule in error.message
    assert "macromolecule" in error.message


async def test_uploads(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    header = bundle_pb2.UploadBundleHeader(kind=bundle_pb2.BUNDLE_KIND_MACROMOLECULE)
    first = bundle_pb2.UploadBundleRequest(header=header)

    def piece(data: bytes, offset: int = 0, crc32: int | None = None) -> Any:
        crc32 = zlib.crc32(data) if crc32 is None else crc32
        chunk = bundle_pb2.BundleChunk(offset=offset, data=data, crc32=crc32)
        return bundle_pb2.UploadBundleRequest(chunk=chunk)

    cases = [
        ([], InvalidInput, "UPLOAD_HEADER_MISSING"),
        ([piece(b"x")], InvalidInput, "UPLOAD_HEADER_MISSING"),
        ([first, piece(b"x", 1)], InvalidInput, "UPLOAD_GAP"),
        ([first, piece(b"x", 0, 1)], InternalError, "UPLOAD_CHECKSUM"),
        ([first, piece(b"x" * 5_000_000)], ResourceExhausted, "RESOURCE_EXHAUSTED"),
    ]
    before = await bundles(lone, "macromolecule")
    async with raw(lone_mesh) as stubs:
        for requests, kind, reason in cases:
            with pytest.raises(kind) as caught:
                await stubs.unary("UploadBundle", iter(requests))
            assert caught.value.reason == reason
    assert await bundles(lone, "macromolecule") == before


async def test_model_without_anything(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    async with raw(lone_mesh) as stubs:
        with pytest.raises(InvalidInput) as caught:
            await stubs.unary("CreateModel", model_pb2.CreateModelRequest())
    assert caught.value.field_violations[0][0] == "spec"

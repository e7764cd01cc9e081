"""Bad input gets a typed error that names it, leaves nothing behind, and the server serves on."""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cctbx import crystal as symmetry
from cctbx.array_family import flex
from iotbx import mtz

from bxmesh.client import AsyncMesh, Model
from bxmesh.client.errors import (
    BxmeshError,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    Unimplemented,
)
from bxmesh.geometry.v1 import bundle_pb2, gradients_pb2, model_pb2
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.tensor.v1 import tensor_pb2
from bxmesh.tensors import to_message
from tests.engine.test_macromolecule import BAD, without
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_bytes, wheel_file
from tests.mesh.conftest import start_mesh, wait_until_it_serves
from tests.mesh.raw import noisy, raw, stats
from tests.processes import open_files, until, worker_pids

AF = "mmtbx/regression/pdbs/AF_json_v3.pdb"
PDB = wheel_bytes(PDB_7N2L)
DATA = wheel_bytes(MTZ_7N2L)
NO_BUNDLE = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedMesh]:
    with start_mesh(1, BXMESH_WARM_MODELS="2") as mesh:
        wait_until_it_serves(mesh)
        yield mesh


@pytest.fixture
async def mesh(server: EmbeddedMesh) -> AsyncIterator[AsyncMesh]:
    async with AsyncMesh(server.address, state_dir=server.state_dir) as client:
        yield client


@pytest.fixture(autouse=True)
async def nothing_left_behind(mesh: AsyncMesh, server: EmbeddedMesh) -> AsyncIterator[None]:
    """After every test the queue and the dead letters are empty, and a calculation goes through."""
    yield

    async def empty() -> bool:
        now = await stats(server)
        assert now.dead == 0
        return now.waiting == now.pending == now.delayed == 0

    await until(empty)
    assert (await mesh.gradients(await mesh.create_model(wheel_file(PDB_1YJP)))).ok
    (agent,) = await mesh.agents()
    assert agent.metadata["sessions"] == "0"
    assert not list((server.state_dir / "bundles" / "incoming").glob("*"))


async def bundles(mesh: AsyncMesh, *kinds: str) -> set[str]:
    return {b.bundle_id async for b in mesh.bundles.list() if b.kind in kinds}


def checked(error: BxmeshError, reason: str) -> BxmeshError:
    """What every error has."""
    assert error.reason == reason
    assert len(error.trace_id) == 32
    assert "Traceback" not in error.message
    return error


async def refused_model(mesh: AsyncMesh, *inputs: Any, **options: Any) -> BxmeshError:
    before = await bundles(mesh, "model", "gradients")
    with pytest.raises(BxmeshError) as caught:
        await mesh.create_model(*inputs, **options)
    assert await bundles(mesh, "model", "gradients") == before
    return caught.value


@pytest.mark.parametrize("name", BAD)
async def test_macromolecule(mesh: AsyncMesh, name: str) -> None:
    content, reason = BAD[name]
    error = checked(await refused_model(mesh, content), reason)
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
async def test_reflections(mesh: AsyncMesh, tmp_path: Path, name: str) -> None:
    content, reason = REFLECTIONS[name]
    data = content if isinstance(content, bytes) else as_mtz(tmp_path / "x.mtz", **content)
    error = checked(await refused_model(mesh, PDB, data), reason)
    assert error.metadata["input"] == "reflections"


@pytest.mark.parametrize(
    "limits", [{"d_min": 0.5}, {"d_min": 20.0}, {"d_max": 0.5}, {"d_min": 3.0, "d_max": 2.0}]
)
async def test_resolution_outside_the_data(mesh: AsyncMesh, limits: dict[str, float]) -> None:
    error = checked(await refused_model(mesh, PDB, DATA, **limits), "RESOLUTION_OUTSIDE_DATA")
    assert "0.900" in error.message


@pytest.mark.parametrize("limits", [{"d_min": -1.0}, {"d_min": float("nan")}, {"d_min": 2000.0}])
async def test_impossible_resolution(mesh: AsyncMesh, limits: dict[str, float]) -> None:
    error = await refused_model(mesh, PDB, DATA, **limits)
    assert isinstance(error, InvalidInput)
    assert error.field_violations


@pytest.mark.parametrize(
    "options", [{"data_labels": "FNONE"}, {"r_free_flags_label": "nothing"}]
)
async def test_labels_that_are_not_there(mesh: AsyncMesh, options: dict[str, str]) -> None:
    error = await refused_model(mesh, PDB, DATA, **options)
    assert error.reason in ("NO_DATA_IN_REFLECTIONS", "NO_R_FREE_FLAGS")
    assert next(iter(options.values())) in error.message


async def test_without_free_flags(mesh: AsyncMesh, tmp_path: Path) -> None:
    data = as_mtz(tmp_path / "x.mtz", F=AMPLITUDES)
    model = await mesh.create_model(PDB, data)
    assert model.summary.reflections is not None
    assert model.summary.reflections.free_reflections == 0
    with pytest.raises(FailedPrecondition) as caught:
        await mesh.gradients(model)
    checked(caught.value, "NO_R_FREE_FLAGS")
    with pytest.raises(FailedPrecondition):
        async with mesh.session(model):
            raise AssertionError("it opened")
    result = await mesh.gradients(model, target="xray", xray_target="ls")
    assert result.r_free is None
    generated = await mesh.create_model(PDB, data, generate_r_free_flags=True)
    assert (await mesh.gradients(generated, target="xray")).r_free


async def test_without_crystal_symmetry(mesh: AsyncMesh) -> None:
    pdb = without(PDB, b"CRYST1")
    model = await mesh.create_model(pdb)
    assert model.summary.unit_cell is None
    assert (await mesh.gradients(model)).energy > 0
    with pytest.raises(FailedPrecondition) as caught:
        await mesh.gradients(model, target="xray")
    checked(caught.value, "NO_REFLECTIONS")
    error = checked(await refused_model(mesh, pdb, DATA), "NO_CRYSTAL_SYMMETRY")
    assert error.metadata["input"] == "macromolecule"


async def test_unknown_residue(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_file("iotbx/regression/data/2ERL.pdb"))
    with pytest.raises(FailedPrecondition) as caught:
        await mesh.gradients(model)
    error = checked(caught.value, "UNKNOWN_RESIDUES")
    assert error.metadata["subjects"] == "EOH"
    with pytest.raises(FailedPrecondition):
        async with mesh.session(model):
            raise AssertionError("it opened")


async def test_unknown_atom(mesh: AsyncMesh) -> None:
    pdb = wheel_bytes(PDB_1YJP).replace(b"  CA  GLY A   1", b"  XX  GLY A   1")
    model = await mesh.create_model(pdb)
    with pytest.raises(InvalidInput) as caught:
        await mesh.gradients(model)
    error = checked(caught.value, "UNKNOWN_ATOMS")
    assert "GLY A   1" in error.message


@pytest.mark.parametrize("dictionary", [b"", b"hello", b"\0\1\2", PDB])
async def test_restraints(mesh: AsyncMesh, dictionary: bytes) -> None:
    error = await refused_model(mesh, PDB, restraints=[dictionary])
    assert error.reason in ("RESTRAINTS_UNREADABLE", "EMPTY_FILE")
    assert error.metadata["input"] == "restraints"


async def test_bad_samples_have_their_own_status(mesh: AsyncMesh) -> None:
    model, sites = await peptide(mesh)
    good = noisy(sites)
    nan, infinite = good.copy(), good.copy()
    nan[5, 1], infinite[0, 0] = np.nan, -np.inf
    batch = np.stack(
        [good, nan, infinite, noisy(sites, sigma=500.0), np.zeros_like(good), good + 2e4, good]
    )
    result = await mesh.gradients(model, batch)
    assert [sample.status for sample in result.samples] == [
        "ok", "non_finite", "non_finite", "exploded", "degenerate", "out_of_range", "ok",
    ]
    for place, sample in enumerate(result.samples):
        if not sample.ok:
            assert sample.message
            assert not result.geometry_sites[place].any()
    alone = await mesh.gradients(model, good)
    for place in (0, 6):
        np.testing.assert_allclose(
            result.geometry_sites[place], alone.geometry_sites, rtol=1e-9, atol=1e-9
        )


async def peptide(mesh: AsyncMesh) -> tuple[Model, np.ndarray]:
    model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
    assert model.atoms is not None
    return model, model.atoms.sites


def asked(model_id: str, array: np.ndarray | None = None, **more: Any) -> Any:
    request = gradients_pb2.ComputeGradientsRequest(model_id=model_id, **more)
    if array is not None:
        request.coordinates.tensor.CopyFrom(to_message(array, "coordinates"))
    return request


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((65, 3)), "COORDINATES_SHAPE"),
        (np.zeros((3, 66)), "COORDINATES_SHAPE"),
        (np.zeros(198), "COORDINATES_SHAPE"),
        (np.zeros(()), "COORDINATES_SHAPE"),
        (np.zeros((0, 66, 3)), "COORDINATES_SHAPE"),
        (np.zeros((2, 66, 4)), "COORDINATES_SHAPE"),
        (np.zeros((1, 2, 66, 3)), "COORDINATES_SHAPE"),
        (np.zeros((66, 3), np.int32), "COORDINATES_DTYPE"),
        (np.zeros((66, 3), np.bool_), "COORDINATES_DTYPE"),
        (np.zeros((66, 3), np.complex64), "COORDINATES_DTYPE"),
        (np.zeros((400, 66, 4)), "COORDINATES_SHAPE"),
        (np.zeros((400, 66, 3), np.int32), "COORDINATES_DTYPE"),
    ],
)
@pytest.mark.parametrize("bundle", [False, True])
async def test_coordinates(
    mesh: AsyncMesh, server: EmbeddedMesh, array: np.ndarray, reason: str, bundle: bool
) -> None:
    model, _ = await peptide(mesh)
    before = await bundles(mesh, "gradients")
    request = asked(model.model_id, None if bundle else array)
    if bundle:
        request.coordinates.bundle_id = await npy(mesh, array)
    async with raw(server) as stubs:
        with pytest.raises(InvalidInput) as caught:
            await stubs.gradients(request)
    error = checked(caught.value, reason)
    assert error.field_violations[0][0].startswith("coordinates")
    assert await bundles(mesh, "gradients") == before


async def npy(mesh: AsyncMesh, array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return (await mesh.bundles.upload(buffer.getvalue(), kind="coordinates")).bundle_id


def tensor(data: bytes, *shape: int, data_type: int = 2) -> Any:
    return tensor_pb2.Tensor(
        spec=tensor_pb2.TensorSpec(name="x", data_type=data_type, shape=shape),  # type: ignore[arg-type]
        data=data,
    )


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (tensor(bytes(66 * 24 - 1), 66, 3), "TENSOR_TRUNCATED"),
        (tensor(bytes(66 * 24 + 8), 66, 3), "TENSOR_SHAPE"),
        (tensor(b"", 66, 3), "TENSOR_TRUNCATED"),
        (tensor(bytes(2**17), 10, 66, 3), "TENSOR_SHAPE"),
        (tensor(b"", 2**40, 2**40, 3), "TENSOR_SHAPE"),
        (tensor(b"", 2**30, 66, 3), "TENSOR_TOO_LARGE"),
        (tensor(b"", 66, 3, data_type=0), "INVALID_ARGUMENT"),
        (tensor(b"", 66, 3, data_type=99), "INVALID_ARGUMENT"),
        (tensor(b"", 66, -3), "INVALID_ARGUMENT"),
        (tensor(b"", *[1] * 9), "INVALID_ARGUMENT"),
        (tensor_pb2.Tensor(data=b"x"), "INVALID_ARGUMENT"),
    ],
)
async def test_tensors(
    mesh: AsyncMesh, server: EmbeddedMesh, wrong: tensor_pb2.Tensor, reason: str
) -> None:
    model, _ = await peptide(mesh)
    request = asked(model.model_id)
    request.coordinates.tensor.CopyFrom(wrong)
    async with raw(server) as stubs:
        with pytest.raises(InvalidInput) as caught:
            await stubs.gradients(request)
    checked(caught.value, reason)


def npy_header(shape: str, descr: str = "'<f8'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"random bytes",
        b"\x93NUMPY",
        npy_header("(66, 3)") + bytes(100),
        npy_header(f"({2**62}, {2**62}, 3)"),
        npy_header("(-66, 3)") + bytes(66 * 24),
        npy_header("(66, 3)", "'|O'") + bytes(66 * 24),
        npy_header("(66, 3)", "'<U8'") + bytes(66 * 96),
        npy_header("(66, 3)", "[('x', '<f8')]") + bytes(66 * 24),
        npy_header("(66, 3)", "'>f8'") + bytes(66 * 24),
        npy_header("__import__('os')") + bytes(66 * 24),
        npy_header("(" * 5000) + bytes(66 * 24),
        npy_header("-" * 9000 + "1") + bytes(66 * 24),
    ],
)
async def test_coordinate_bundles(mesh: AsyncMesh, server: EmbeddedMesh, content: bytes) -> None:
    model, _ = await peptide(mesh)
    request = asked(model.model_id)
    bundle = await mesh.bundles.upload(content, kind="coordinates")
    request.coordinates.bundle_id = bundle.bundle_id
    async with raw(server) as stubs:
        with pytest.raises(InvalidInput) as caught:
            await stubs.gradients(request)
    assert caught.value.reason in ("COORDINATES_UNREADABLE", "COORDINATES_DTYPE")


async def test_unknown_names(mesh: AsyncMesh, server: EmbeddedMesh) -> None:
    model, _ = await peptide(mesh)
    macromolecule = model.macromolecule
    for request in (
        {"macromolecule": NO_BUNDLE},
        {"macromolecule": macromolecule, "reflections": NO_BUNDLE},
        {"macromolecule": macromolecule, "restraints": [NO_BUNDLE]},
    ):
        with pytest.raises(NotFound) as caught:
            await mesh.create_model(**request)  # type: ignore[arg-type]
        error = checked(caught.value, "BUNDLE_NOT_FOUND")
        assert NO_BUNDLE in error.message
        assert error.metadata["input"] == list(request)[-1]
    for call in (mesh.gradients(NO_BUNDLE), mesh.gradients(macromolecule)):
        with pytest.raises(NotFound) as caught:
            await call
        checked(caught.value, "MODEL_NOT_FOUND")
    for name in ("", "sha256:12", "../../etc/passwd"):
        with pytest.raises(InvalidInput):
            await mesh.gradients(name)
    request_ = asked(model.model_id)
    request_.coordinates.bundle_id = NO_BUNDLE
    async with raw(server) as stubs:
        with pytest.raises(NotFound) as caught:
            await stubs.gradients(request_)
    checked(caught.value, "BUNDLE_NOT_FOUND")
    for session in (mesh.session(NO_BUNDLE), mesh.session(macromolecule)):
        with pytest.raises(NotFound):
            async with session:
                raise AssertionError("it opened")


async def test_expired_bundle(mesh: AsyncMesh) -> None:
    content = wheel_bytes(PDB_1YJP) + b"REMARK expires\n"
    bundle = await mesh.bundles.upload(
        content, kind="macromolecule", lifetime=timedelta(milliseconds=200)
    )

    async def expired() -> bool:
        try:
            await mesh.bundles.get(bundle.bundle_id)
        except NotFound:
            return True
        return False

    await until(expired)
    with pytest.raises(NotFound) as caught:
        await mesh.create_model(bundle.bundle_id)
    error = checked(caught.value, "BUNDLE_NOT_FOUND")
    assert "upload it again" in error.message
    assert error.metadata["input"] == "macromolecule"
    with pytest.raises(NotFound):
        await mesh.bundles.download(bundle.bundle_id)


async def test_inputs_that_were_deleted(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_bytes(PDB_1YJP) + b"REMARK deleted\n")
    await mesh.bundles.delete(model.macromolecule)
    # While it is warm it serves.
    assert (await mesh.gradients(model)).ok
    for remark in (b"REMARK one\n", b"REMARK two\n"):
        await mesh.create_model(wheel_bytes(PDB_1YJP) + remark)
    with pytest.raises(NotFound) as caught:
        await mesh.gradients(model)
    error = checked(caught.value, "BUNDLE_NOT_FOUND")
    assert model.macromolecule in error.message
    assert "macromolecule" in error.message


async def test_uploads(mesh: AsyncMesh, server: EmbeddedMesh) -> None:
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
    before = await bundles(mesh, "macromolecule")
    async with raw(server) as stubs:
        for requests, kind, reason in cases:
            with pytest.raises(kind) as caught:
                await stubs.unary("UploadBundle", iter(requests))
            assert caught.value.reason == reason
    assert await bundles(mesh, "macromolecule") == before


async def test_message_over_the_limit(mesh: AsyncMesh, server: EmbeddedMesh) -> None:
    model, sites = await peptide(mesh)
    batch = noisy(sites, 4000)
    async with raw(server) as stubs:
        with pytest.raises(ResourceExhausted) as caught:
            await stubs.gradients(asked(model.model_id, batch))
        assert "4194304" in caught.value.message
        async with stubs.session() as session:
            await session.open(model.model_id)
            await session.step(0, batch)
            with pytest.raises(ResourceExhausted):
                await session.receive()
    # The client knows better: the same batch goes through in chunks.
    assert (await mesh.gradients(model, batch[:3000])).ok


@pytest.mark.parametrize(
    "options",
    [
        {"target": 99},
        {"with_respect_to": [0]},
        {"with_respect_to": [1, 1]},
        {"geometry_weight": -1.0},
        {"xray_weight": float("nan")},
        {"xray_weight": float("inf")},
        {"selection": "x" * 5000},
    ],
)
async def test_options(mesh: AsyncMesh, server: EmbeddedMesh, options: dict[str, Any]) -> None:
    model, _ = await peptide(mesh)
    message = gradients_pb2.GradientOptions(**options)
    async with raw(server) as stubs:
        with pytest.raises(InvalidInput) as caught:
            await stubs.gradients(asked(model.model_id, options=message))
        assert next(iter(options)) in caught.value.field_violations[0][0]
        async with stubs.session() as session:
            with pytest.raises(InvalidInput):
                await session.open(model.model_id, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"xray_target": "mlhl", "target": "xray"},
        {"with_respect_to": ("adp_aniso",), "target": "xray"},
        {"selection": "name CA"},
        {"gradients_per_term": True},
        {"engine": "fast"},
    ],
)
async def test_options_of_later(mesh: AsyncMesh, options: dict[str, Any]) -> None:
    model = await mesh.create_model(PDB, DATA)
    with pytest.raises(Unimplemented) as caught:
        await mesh.gradients(model, **options)
    checked(caught.value, "UNIMPLEMENTED")


async def test_chunk_size(mesh: AsyncMesh, server: EmbeddedMesh) -> None:
    model, _ = await peptide(mesh)
    async with raw(server) as stubs:
        for chunk_bytes in (1, 2**20 + 1, -1):
            with pytest.raises(InvalidInput):
                await stubs.gradients(asked(model.model_id, chunk_bytes=chunk_bytes))


async def test_model_without_anything(mesh: AsyncMesh, server: EmbeddedMesh) -> None:
    async with raw(server) as stubs:
        with pytest.raises(InvalidInput) as caught:
            await stubs.unary("CreateModel", model_pb2.CreateModelRequest())
    assert caught.value.field_violations[0][0] == "spec"


async def test_deadline_of_a_millisecond(mesh: AsyncMesh, server: EmbeddedMesh) -> None:
    model, sites = await peptide(mesh)
    before = await bundles(mesh, "gradients")
    batch = noisy(sites, 300)
    for _ in range(10):
        with pytest.raises(DeadlineExceeded) as caught:
            await mesh.gradients(model, batch[:100], timeout=0.001)
        assert len(caught.value.trace_id) == 32
    async with raw(server) as stubs:
        for _ in range(10):
            with pytest.raises(DeadlineExceeded):
                await stubs.gradients(asked(model.model_id, batch[:20]), timeout=0.001)
            with pytest.raises(DeadlineExceeded):
                await stubs.unary(
                    "CreateModel",
                    model_pb2.CreateModelRequest(
                        spec=model_pb2.ModelSpec(macromolecule=model.macromolecule)
                    ),
                    timeout=0.001,
                )
    assert len(await bundles(mesh, "gradients") - before) < 10


async def test_client_that_vanishes(mesh: AsyncMesh, server: EmbeddedMesh) -> None:
    model = await mesh.create_model(wheel_file(AF), include_atoms=True)
    assert model.atoms is not None
    await mesh.gradients(model)
    (worker,) = worker_pids(server.pid)

    async def at_rest() -> bool:
        (agent,) = await mesh.agents()
        return agent.current_load == 0.0 and agent.active_tasks == 0

    await until(at_rest)
    rest = (open_files(server.pid), open_files(worker))
    # Far more than can be computed while the test waits.
    batch = noisy(model.atoms.sites, 800, sigma=0.5).astype(np.float32)
    request = asked(model.model_id)
    request.coordinates.bundle_id = await npy(mesh, batch)
    before = await bundles(mesh, "gradients")
    for _ in range(3):
        async with raw(server) as stubs:
            calls = [
                stubs.stub.ComputeGradients(request, metadata=stubs.metadata) for _ in range(3)
            ]
            async for response in calls[0]:
                if response.HasField("sample"):
                    break
        # The connection is gone, and with it the calls.
        await until(at_rest, seconds=15)

        async def taken_back() -> bool:
            now = await stats(server)
            return now.waiting == now.pending == 0

        await until(taken_back)
    # Of the 1,029 shares only those under way when the client went were computed.
    assert len(await bundles(mesh, "gradients") - before) < 60
    await until(lambda: open_files(server.pid) <= rest[0] + 2)
    await until(lambda: open_files(worker) <= rest[1] + 2)


async def test_full_queue() -> None:
    with start_mesh(1, BXMESH_QUEUE_DEPTH="4") as server:
        wait_until_it_serves(server)
        async with (
            AsyncMesh(server.address, state_dir=server.state_dir) as mesh,
            raw(server) as stubs,
        ):
            model, sites = await peptide(mesh)
            batch = noisy(sites, 60, sigma=0.2)
            expected = (await mesh.gradients(model, batch)).geometry_sites
            requests = [
                asked(model.model_id, np.stack([batch[n]] * 30)) for n in range(len(batch))
            ]
            answers = await asyncio.gather(
                *map(stubs.gradients, requests), return_exceptions=True
            )
            refused = [answer for answer in answers if isinstance(answer, ResourceExhausted)]
            for error in refused:
                checked(error, "QUEUE_FULL")
                assert error.retry_after
            accepted = 0
            for number, answer in enumerate(answers):
                if isinstance(answer, ResourceExhausted):
                    continue
                assert not isinstance(answer, BaseException), answer
                accepted += 1
                for sites_ in answer.arrays["geometry_sites"]:
                    np.testing.assert_allclose(sites_, expected[number], rtol=1e-9, atol=1e-9)
            assert refused
            # At the least what fits into the queue.
            assert accepted >= 4
            now = await stats(server)
            assert now.waiting == now.pending == now.dead == 0
            assert (await mesh.gradients(model)).ok

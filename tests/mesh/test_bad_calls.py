"""Bad calls get a typed error, leave nothing behind, and hurt nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from bxmesh.client import AsyncMesh
from bxmesh.client.errors import (
    DeadlineExceeded,
    InvalidInput,
    ResourceExhausted,
)
from bxmesh.geometry.v1 import gradients_pb2, model_pb2
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.tensor.v1 import tensor_pb2
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, wheel_bytes, wheel_file
from tests.mesh.conftest import start_mesh, wait_until_it_serves
from tests.mesh.raw import noisy, raw, stats
from tests.mesh.refusals import asked, bundles, checked, npy, peptide
from tests.processes import open_files, until, worker_pids

AF = "mmtbx/regression/pdbs/AF_json_v3.pdb"
PDB = wheel_bytes(PDB_7N2L)
DATA = wheel_bytes(MTZ_7N2L)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


async def test_bad_samples_have_their_own_status(lone: AsyncMesh) -> None:
    model, sites = await peptide(lone)
    good = noisy(sites)
    nan, infinite = good.copy(), good.copy()
    nan[5, 1], infinite[0, 0] = np.nan, -np.inf
    batch = np.stack(
        [good, nan, infinite, noisy(sites, sigma=500.0), np.zeros_like(good), good + 2e4, good]
    )
    result = await lone.gradients(model, batch)
    assert [sample.status for sample in result.samples] == [
        "ok",
        "non_finite",
        "non_finite",
        "exploded",
        "degenerate",
        "out_of_range",
        "ok",
    ]
    for place, sample in enumerate(result.samples):
        if not sample.ok:
            assert sample.message
            assert not result.geometry_sites[place].any()
    alone = await lone.gradients(model, good)
    for place in (0, 6):
        np.testing.assert_allclose(
            result.geometry_sites[place], alone.geometry_sites, rtol=1e-9, atol=1e-9
        )


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
    lone: AsyncMesh, lone_mesh: EmbeddedMesh, array: np.ndarray, reason: str, bundle: bool
) -> None:
    model, _ = await peptide(lone)
    before = await bundles(lone, "gradients")
    request = asked(model.model_id, None if bundle else array)
    if bundle:
        request.coordinates.bundle_id = await npy(lone, array)
    async with raw(lone_mesh) as stubs:
        with pytest.raises(InvalidInput) as caught:
            await stubs.gradients(request)
    error = checked(caught.value, reason)
    assert error.field_violations[0][0].startswith("coordinates")
    assert await bundles(lone, "gradients") == before


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
    lone: AsyncMesh, lone_mesh: EmbeddedMesh, wrong: tensor_pb2.Tensor, reason: str
) -> None:
    model, _ = await peptide(lone)
    request = asked(model.model_id)
    request.coordinates.tensor.CopyFrom(wrong)
    async with raw(lone_mesh) as stubs:
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
async def test_coordinate_bundles(lone: AsyncMesh, lone_mesh: EmbeddedMesh, content: bytes) -> None:
    model, _ = await peptide(lone)
    request = asked(model.model_id)
    bundle = await lone.bundles.upload(content, kind="coordinates")
    request.coordinates.bundle_id = bundle.bundle_id
    async with raw(lone_mesh) as stubs:
        with pytest.raises(InvalidInput) as caught:
            await stubs.gradients(request)
    assert caught.value.reason in ("COORDINATES_UNREADABLE", "COORDINATES_DTYPE")


async def test_message_over_the_limit(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model, sites = await peptide(lone)
    batch = noisy(sites, 4000)
    async with raw(lone_mesh) as stubs:
        with pytest.raises(ResourceExhausted) as caught:
            await stubs.gradients(asked(model.model_id, batch))
        assert "4194304" in caught.value.message
        async with stubs.session() as session:
            await session.open(model.model_id)
            await session.step(0, batch)
            with pytest.raises(ResourceExhausted):
                await session.receive()
    # The client knows better: the same batch goes through in chunks.
    assert (await lone.gradients(model, batch[:3000])).ok


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
async def test_options(lone: AsyncMesh, lone_mesh: EmbeddedMesh, options: dict[str, Any]) -> None:
    model, _ = await peptide(lone)
    message = gradients_pb2.GradientOptions(**options)
    async with raw(lone_mesh) as stubs:
        with pytest.raises(InvalidInput) as caught:
            await stubs.gradients(asked(model.model_id, options=message))
        assert next(iter(options)) in caught.value.field_violations[0][0]
        async with stubs.session() as session:
            with pytest.raises(InvalidInput):
                await session.open(model.model_id, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"twin_law": "-h,-k,l"}, "TWIN_LAW_INVALID"),
        ({"twin_law": "nonsense"}, "TWIN_LAW_INVALID"),
        ({"xray_target": "twin_ls"}, "TWIN_LAW_MISSING"),
        ({"xray_target": "ml", "twin_law": "-h,-k,l"}, "TWIN_LAW_NOT_IN_TARGET"),
        ({"selection": "name CA and"}, "SELECTION_INVALID"),
        ({"selection": "name XX"}, "SELECTION_EMPTY"),
    ],
)
async def test_options_at_odds_with_the_model(
    lone: AsyncMesh, options: dict[str, Any], reason: str
) -> None:
    model = await lone.create_model(PDB, DATA)
    with pytest.raises(InvalidInput) as caught:
        await lone.gradients(model, target="xray", **options)
    checked(caught.value, reason)


async def test_chunk_size(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model, _ = await peptide(lone)
    async with raw(lone_mesh) as stubs:
        for chunk_bytes in (1, 2**20 + 1, -1):
            with pytest.raises(InvalidInput):
                await stubs.gradients(asked(model.model_id, chunk_bytes=chunk_bytes))


async def test_deadline_of_a_millisecond(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model, sites = await peptide(lone)
    before = await bundles(lone, "gradients")
    batch = noisy(sites, 300)
    for _ in range(10):
        with pytest.raises(DeadlineExceeded) as caught:
            await lone.gradients(model, batch[:100], timeout=0.001)
        assert len(caught.value.trace_id) == 32
    async with raw(lone_mesh) as stubs:
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
    assert len(await bundles(lone, "gradients") - before) < 10


async def test_client_that_vanishes(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model = await lone.create_model(wheel_file(AF), include_atoms=True)
    assert model.atoms is not None
    await lone.gradients(model)
    (worker,) = worker_pids(lone_mesh.pid)

    async def at_rest() -> bool:
        (agent,) = await lone.agents()
        return agent.current_load == 0.0 and agent.active_tasks == 0

    async def taken_back() -> bool:
        now = await stats(lone_mesh)
        return now.waiting == now.pending == 0

    await until(at_rest)
    rest = (open_files(lone_mesh.pid), open_files(worker))
    # Far more than can be computed while the test waits.
    batch = noisy(model.atoms.sites, 800, sigma=0.5).astype(np.float32)
    request = asked(model.model_id)
    request.coordinates.bundle_id = await npy(lone, batch)
    before = await bundles(lone, "gradients")
    for _ in range(3):
        async with raw(lone_mesh) as stubs:
            calls = [
                stubs.stub.ComputeGradients(request, metadata=stubs.metadata) for _ in range(3)
            ]
            async for response in calls[0]:
                if response.HasField("samples"):
                    break
        # The connection is gone, and with it the calls.
        await until(taken_back, seconds=15)
        await until(at_rest, seconds=15)
    # Of the 1,029 shares only those under way when the client went were computed.
    assert len(await bundles(lone, "gradients") - before) < 60
    await until(lambda: open_files(lone_mesh.pid) <= rest[0] + 2)
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
            requests = [asked(model.model_id, np.stack([batch[n]] * 30)) for n in range(len(batch))]
            answers = await asyncio.gather(*map(stubs.gradients, requests), return_exceptions=True)
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

"""Sessions through the whole mesh: in order, in chunks, refused, resumed, and gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bxmesh.client import AsyncMesh, Mesh, Model
from bxmesh.client.errors import (
    BxmeshError,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    from_status,
)
from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.tensors import to_chunks, to_spec
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_file
from tests.mesh.conftest import start_mesh
from tests.mesh.raw import damaged, gradient, noisy, raw, stats
from tests.processes import open_files, until, worker_pids

AF = "mmtbx/regression/pdbs/AF_json_v3.pdb"


async def created(mesh: AsyncMesh, path: str = PDB_1YJP, **inputs: Any) -> tuple[Model, np.ndarray]:
    model = await mesh.create_model(wheel_file(path), include_atoms=True, **inputs)
    assert model.atoms is not None
    return model, model.atoms.sites


async def crystal(mesh: AsyncMesh) -> tuple[Model, np.ndarray]:
    return await created(mesh, PDB_7N2L, reflections=wheel_file(MTZ_7N2L))


def error_reason(result: gradients_pb2.StepResult) -> str:
    assert result.HasField("error")
    error = from_status(result.error)
    assert len(error.trace_id) == 32
    return error.reason


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def test_pipelined_steps_are_answered_in_order(lone: AsyncMesh) -> None:
    model, sites = await created(lone)
    batch = noisy(sites, 100)
    expected = (await lone.gradients(model, batch)).geometry_sites
    async with lone.session(model, window=16) as session:
        assert session.atoms == len(sites)
        answers = [await session.submit(sample) for sample in batch]
        ended: list[int] = []
        for number, answer in enumerate(answers):
            answer.add_done_callback(lambda _, number=number: ended.append(number))
        steps = await asyncio.gather(*answers)
    assert [step.step_id for step in steps] == list(range(100))
    assert ended == sorted(ended)
    for step, own in zip(steps, expected, strict=True):
        np.testing.assert_allclose(step.geometry_sites, own, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
async def test_batches(lone: AsyncMesh, dtype: str) -> None:
    model, sites = await created(lone)
    batch = noisy(sites, 10).astype(dtype)
    expected = await lone.gradients(model, batch)
    async with lone.session(model) as session:
        step = await session.step(batch)
        one = await session.step(batch[:1])
        alone = await session.step(batch[0])
    assert step.geometry_sites.dtype == dtype
    assert [sample.sample for sample in step.samples] == list(range(10))
    assert one.geometry_sites.shape == (1, *sites.shape)
    assert alone.geometry_sites.shape == sites.shape
    for result, own in (
        (step.geometry_sites, expected.geometry_sites),
        (one.geometry_sites[0], expected.geometry_sites[0]),
        (alone.geometry_sites, expected.geometry_sites[0]),
    ):
        np.testing.assert_allclose(result, own, rtol=1e-6, atol=1e-6)


async def test_steps_in_chunks(lone: AsyncMesh) -> None:
    model, sites = await created(lone)
    batch = noisy(sites, 2800)
    assert batch.nbytes > 4 * 1024 * 1024
    expected = await lone.gradients(model, batch)
    async with lone.session(model) as session:
        before, large, after = await asyncio.gather(
            *[await session.submit(each) for each in (batch[0], batch, batch[-1])]
        )
    np.testing.assert_allclose(large.geometry_sites, expected.geometry_sites, rtol=1e-9, atol=1e-9)
    for single, place in ((before, 0), (after, -1)):
        np.testing.assert_allclose(
            single.geometry_sites, large.geometry_sites[place], rtol=1e-9, atol=1e-9
        )


async def test_refused_step_does_not_end_the_session(lone: AsyncMesh) -> None:
    model, sites = await created(lone)
    async with lone.session(model) as session:
        first = await session.step(sites)
        with pytest.raises(InvalidInput) as caught:
            await session.step(sites[:-1])
        assert caught.value.reason == "COORDINATES_SHAPE"
        assert caught.value.trace_id == session.trace_id
        bad = sites.copy()
        bad[0] = np.nan
        step = await session.step(np.stack([bad, sites]))
        assert [sample.status for sample in step.samples] == ["non_finite", "ok"]
        assert not step.geometry_sites[0].any()
        np.testing.assert_array_equal(step.geometry_sites[1], first.geometry_sites)
        again = await session.step(sites)
        np.testing.assert_array_equal(again.geometry_sites, first.geometry_sites)


async def test_damaged_tensors_are_refused(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model, sites = await created(lone)
    batch = noisy(sites, 40)
    chunks = list(to_chunks(batch, to_spec(batch, "coordinates"), 16384))
    assert len(chunks) > 3
    async with raw(lone_mesh) as stubs, stubs.session() as session:
        await session.open(model.model_id)
        await session.step(1, None)
        await session.chunks([chunks[0], damaged(chunks[1]), *chunks[2:]])
        assert error_reason(await session.result()) == "TENSOR_CHECKSUM"
        # Ends early, as the next step begins.
        await session.step(2, None)
        await session.chunks(chunks[:2])
        await session.step(3, sites)
        early, good = await session.result(), await session.result()
        assert (early.step_id, good.step_id) == (2, 3)
        assert error_reason(early) == "TENSOR_TRUNCATED"
        await session.step(4, None)
        await session.chunks([chunks[0], chunks[2]])
        assert error_reason(await session.result()) == "TENSOR_OFFSET"
        await session.step(5, None)
        await session.chunks(chunks[1:2])
        assert error_reason(await session.result()) == "TENSOR_HEADER"
        await session.step(6, None)
        await session.chunks(chunks)
        whole = await session.result()
        assert whole.step_id == 6
        assert len(whole.samples) == 40
        await session.step(7, sites)
        np.testing.assert_array_equal(gradient(await session.result()), gradient(good))
        await session.step(8, None)
        await session.step(9, None)
        assert error_reason(await session.result()) == "TENSOR_TRUNCATED"
        # Ends early, as the client has no more to say.
        await session.chunks(chunks[:2])
        await session.call.done_writing()
        assert error_reason(await session.result()) == "TENSOR_TRUNCATED"
        with pytest.raises(EOFError):
            await session.receive()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((66, 3), np.int64), "COORDINATES_DTYPE"),
        (np.zeros((66, 3), np.complex128), "COORDINATES_DTYPE"),
        (np.zeros(198), "COORDINATES_SHAPE"),
        (np.zeros((3, 66)), "COORDINATES_SHAPE"),
        (np.zeros((0, 66, 3)), "COORDINATES_SHAPE"),
        (np.zeros((1, 1, 66, 3)), "COORDINATES_SHAPE"),
    ],
)
async def test_other_tensors_are_refused(
    lone: AsyncMesh, lone_mesh: EmbeddedMesh, array: np.ndarray, reason: str
) -> None:
    model, sites = await created(lone)
    async with raw(lone_mesh) as stubs, stubs.session() as session:
        await session.open(model.model_id)
        await session.step(0, array)
        assert error_reason(await session.result()) == reason
        await session.step(1, sites)
        assert not (await session.result()).HasField("error")


async def test_step_ids_must_grow(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model, sites = await created(lone)
    async with raw(lone_mesh) as stubs:
        for repeated in (5, 4):
            async with stubs.session() as session:
                opened = await session.open(model.model_id)
                await session.step(5, sites)
                assert (await session.result()).step_id == 5
                await session.step(repeated, sites)
                with pytest.raises(InvalidInput) as caught:
                    await session.receive()
                assert caught.value.field_violations[0][0] == "step.step_id"
            # The stream has ended, the session has not.
            async with stubs.session() as session:
                await session.open(session_id=opened.session_id)
                await session.step(6, sites)
                assert (await session.result()).step_id == 6


async def test_first_message_opens(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model, sites = await created(lone)
    async with raw(lone_mesh) as stubs:
        async with stubs.session() as session:
            await session.step(0, sites)
            with pytest.raises(InvalidInput):
                await session.receive()
        async with stubs.session() as session:
            await session.call.done_writing()
            with pytest.raises(InvalidInput):
                await session.receive()
        async with stubs.session() as session:
            await session.open(model.model_id)
            await session.send(open=gradients_pb2.OpenSession(model_id=model.model_id))
            with pytest.raises(InvalidInput):
                await session.receive()
        async with stubs.session() as session:
            with pytest.raises(InvalidInput) as caught:
                await session.open()
            assert caught.value.field_violations[0][0] == "open.model_id"
        async with stubs.session() as session:
            with pytest.raises(NotFound) as missing:
                await session.open(session_id="none")
            assert missing.value.reason == "SESSION_NOT_FOUND"


async def test_answers_arrive_after_the_client_has_ended(
    lone: AsyncMesh, lone_mesh: EmbeddedMesh
) -> None:
    model, sites = await created(lone)
    async with raw(lone_mesh) as stubs, stubs.session() as session:
        await session.open(model.model_id)
        for step_id in range(20):
            await session.step(step_id, sites)
        await session.call.done_writing()
        assert [(await session.result()).step_id for _ in range(20)] == list(range(20))
        with pytest.raises(EOFError):
            await session.receive()


class Proxy:
    """Stands between a client and the server, and breaks their connections when it is told to."""

    def __init__(self, target: str) -> None:
        self._target = target.removeprefix("unix:")
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._writers -= {writer, far_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def break_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def broken_mesh(
    server: EmbeddedMesh, directory: Path
) -> AsyncIterator[tuple[AsyncMesh, Proxy]]:
    """A client whose connections can be broken."""
    proxy = Proxy(server.address)
    listener = await asyncio.start_unix_server(proxy.handle, directory / "proxy.sock")
    try:
        async with AsyncMesh(f"unix:{directory}/proxy.sock", state_dir=server.state_dir) as client:
            yield client, proxy
    finally:
        listener.close()
        proxy.break_all()
        await listener.wait_closed()


async def test_lost_connection_is_resumed_with_its_scales(
    lone_mesh: EmbeddedMesh, short_dir: Path
) -> None:
    async with broken_mesh(lone_mesh, short_dir) as (mesh, proxy):
        model, sites = await crystal(mesh)
        near, far = noisy(sites), noisy(sites, sigma=0.3, seed=1)
        async with mesh.session(model, target="xray") as session:
            fresh = await session.step(near)
            await session.step(far, refresh_scales=True)
            refreshed = await session.step(near)
            assert refreshed.xray.value != fresh.xray.value
            name, connections = session.session_id, proxy.connections
            for _ in range(3):
                proxy.break_all()
                again = await session.step(near)
                assert again.xray == refreshed.xray
                np.testing.assert_array_equal(again.xray_sites, refreshed.xray_sites)
            assert session.session_id == name
            assert proxy.connections > connections


async def test_no_step_is_lost_with_the_connection(
    lone_mesh: EmbeddedMesh, short_dir: Path
) -> None:
    async with broken_mesh(lone_mesh, short_dir) as (mesh, proxy):
        model, sites = await created(mesh)
        batch = noisy(sites, 60)
        expected = (await mesh.gradients(model, batch)).geometry_sites
        async with mesh.session(model, window=8) as session:
            answers = []
            for number, sample in enumerate(batch):
                answers.append(await session.submit(sample))
                if number in (20, 40):
                    proxy.break_all()
            steps = await asyncio.gather(*answers)
        for step, own in zip(steps, expected, strict=True):
            np.testing.assert_allclose(step.geometry_sites, own, rtol=1e-9, atol=1e-9)


async def test_session_is_taken_up_by_its_name(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model, sites = await crystal(lone)
    near, far = noisy(sites), noisy(sites, sigma=0.3, seed=1)
    options = {"target": gradients_pb2.TARGET_XRAY, "xray_target": gradients_pb2.XRAY_TARGET_LS}
    async with raw(lone_mesh) as stubs:
        async with stubs.session() as session:
            opened = await session.open(model.model_id, **options)
            await session.step(0, far, refresh_scales=True)
            await session.result()
            await session.step(1, near)
            expected = await session.result()
        async with stubs.session() as session:
            again = await session.open(session_id=opened.session_id)
            assert again.session_id == opened.session_id
            assert again.xray.target == gradients_pb2.XRAY_TARGET_LS
            await session.step(2, near)
            result = await session.result()
        assert result.samples == expected.samples
        np.testing.assert_array_equal(
            gradient(result, "xray_sites"), gradient(expected, "xray_sites")
        )


async def test_step_sent_again_has_the_scales_of_its_time(
    lone: AsyncMesh, lone_mesh: EmbeddedMesh
) -> None:
    model, sites = await crystal(lone)
    near, far = noisy(sites), noisy(sites, sigma=0.3, seed=1)
    options = {"target": gradients_pb2.TARGET_XRAY, "xray_target": gradients_pb2.XRAY_TARGET_LS}
    async with raw(lone_mesh) as stubs:
        async with stubs.session() as session:
            opened = await session.open(model.model_id, **options)
            await session.step(0, near)
            await session.step(1, near)
            await session.step(2, far, refresh_scales=True)
            first, second, third = [await session.result() for _ in range(3)]
        # As if only the first answer had arrived when the connection broke.
        async with stubs.session() as session:
            await session.open(session_id=opened.session_id, answered_step_id=0)
            await session.step(1, near)
            await session.step(2, far, refresh_scales=True)
            assert (await session.result()).samples == second.samples
            assert (await session.result()).samples == third.samples
    assert first.samples == second.samples


async def test_attached_session_is_not_forgotten() -> None:
    # Opening, which a busy machine may take its time for, must take less than this.
    with start_mesh(1, BXMESH_SESSION_IDLE="3") as server:
        async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
            model, sites = await created(mesh)
            async with mesh.session(model) as session:
                await session.step(sites)
                await asyncio.sleep(4)
                async with raw(server) as stubs, stubs.session() as other:
                    await other.open(session_id=session.session_id)


async def test_closed_session_is_forgotten(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> None:
    model, sites = await created(lone)
    async with lone.session(model) as session:
        await session.step(sites)
        name = session.session_id
    with pytest.raises(BxmeshError):
        await session.step(sites)
    async with raw(lone_mesh) as stubs, stubs.session() as again:
        with pytest.raises(NotFound) as caught:
            await again.open(session_id=name)
        assert caught.value.reason == "SESSION_NOT_FOUND"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("farewell", ["close", "vanish"])
async def test_nothing_is_left_of_sessions(
    lone: AsyncMesh, lone_mesh: EmbeddedMesh, farewell: str
) -> None:
    model, sites = await created(lone)
    (worker,) = worker_pids(lone_mesh.pid)

    async def round_of_sessions() -> None:
        async with contextlib.AsyncExitStack() as stack:
            stubs = await stack.enter_async_context(raw(lone_mesh))
            for number in range(6):
                session = await stack.enter_async_context(stubs.session())
                await session.open(model.model_id)
                await session.step(number, sites)
                await session.result()
                if farewell == "close":
                    await session.send(close=gradients_pb2.CloseSession())
                    with pytest.raises(EOFError):
                        await session.receive()
            if farewell == "vanish":
                assert threads(worker) >= idle_threads + 6

    async def settled() -> bool:
        (agent,) = await lone.agents()
        at_rest = agent.metadata["sessions"] == "0" and agent.active_tasks == 0
        return at_rest and threads(worker) <= idle_threads

    idle_threads = threads(worker)
    files = 0, 0
    for _ in range(2):
        # What is opened once and kept, such as connections to Redis, is there after a round.
        await round_of_sessions()
        await until(settled)
        files = open_files(worker), open_files(lone_mesh.pid)
    for _ in range(2):
        await round_of_sessions()
    await until(settled)
    await until(lambda: open_files(worker) <= files[0])
    await until(lambda: open_files(lone_mesh.pid) <= files[1])


async def vanish_during_a_step(server: EmbeddedMesh, mesh: AsyncMesh) -> None:
    model, sites = await created(mesh, AF)
    await mesh.gradients(model)
    (worker,) = worker_pids(server.pid)
    idle = threads(worker)
    # Far more than can be computed while the test waits.
    batch = noisy(sites, 800, sigma=0.5).astype(np.float32)
    async with raw(server) as stubs, stubs.session() as session:
        await session.open(model.model_id, engine="ENGINE_CCTBX")
        await session.step(0, sites)
        await session.result()
        await session.step(1, None)
        before = cpu_seconds(worker)
        await session.chunks(to_chunks(batch, to_spec(batch, "coordinates")))
        await until(lambda: cpu_seconds(worker) > before + 0.5)
        assert threads(worker) > idle
    await until(lambda: threads(worker) <= idle, seconds=15)
    assert (await mesh.gradients(model)).ok


async def test_step_of_a_client_that_vanished_is_given_up(
    lone: AsyncMesh, lone_mesh: EmbeddedMesh
) -> None:
    await vanish_during_a_step(lone_mesh, lone)


async def test_sessions_over_tcp() -> None:
    with start_mesh(1, BXMESH_SESSION_LISTEN="127.0.0.1:0") as server:
        async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
            model, sites = await created(mesh)
            expected = (await mesh.gradients(model)).geometry_sites
            async with raw(server) as stubs, stubs.session() as session:
                await session.open(model.model_id)
                for step_id in range(5):
                    await session.step(step_id, sites)
                # The worker must tell this half-close from a client that is gone.
                await session.step(5, np.repeat(sites[np.newaxis], 50, axis=0))
                await session.call.done_writing()
                results = [await session.result() for _ in range(6)]
                with pytest.raises(EOFError):
                    await session.receive()
            np.testing.assert_array_equal(gradient(results[0]), expected)
            np.testing.assert_allclose(gradient(results[5])[49], expected, rtol=1e-9, atol=1e-9)
            await vanish_during_a_step(server, mesh)


async def test_full_workers_say_so() -> None:
    with start_mesh(2, BXMESH_SESSIONS_PER_WORKER="1") as server:
        async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
            model, sites = await created(mesh)

            async def both_there() -> bool:
                return len(await mesh.agents()) == 2

            await until(both_there)
            async with mesh.session(model) as one, mesh.session(model) as two:
                # The second goes where there is room, not where the model is warm.
                assert one.worker_id != two.worker_id
                with pytest.raises(ResourceExhausted) as caught:
                    async with mesh.session(model):
                        raise AssertionError("it opened")
                assert caught.value.reason == "TOO_MANY_SESSIONS"
                assert caught.value.retry_after
                first, second = await one.step(sites), await two.step(sites)
                np.testing.assert_array_equal(first.geometry_sites, second.geometry_sites)

            async def opens() -> bool:
                with contextlib.suppress(ResourceExhausted):
                    async with mesh.session(model) as again:
                        return (await again.step(sites)).ok
                return False

            await until(opens)
            assert (await stats(server)).dead == 0


def test_sync_sessions(lone_mesh: EmbeddedMesh) -> None:
    with Mesh(lone_mesh.address, state_dir=lone_mesh.state_dir) as mesh:
        model = mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
        assert model.atoms is not None
        sites = model.atoms.sites
        with mesh.session(model) as session:
            futures = [session.submit(sample) for sample in noisy(sites, 5)]
            assert [future.result().step_id for future in futures] == list(range(5))
            np.testing.assert_array_equal(
                session.step(sites).geometry_sites, mesh.gradients(model).geometry_sites
            )

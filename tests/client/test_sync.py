"""The mesh without asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import pytest_asyncio

from bxmesh.client import BxmeshError, InvalidInput, Mesh, NotFound

MODEL = "sha256:" + "0" * 64
SITES = np.random.default_rng(0).normal(size=(4, 3))


@pytest_asyncio.fixture
async def call(server) -> Iterator:
    """Runs a function in a thread, away from the server's event loop."""
    return asyncio.to_thread


@pytest.mark.asyncio
async def test_the_whole_surface(server, call, tmp_path):
    def use() -> None:
        with Mesh(server.address) as mesh:
            bundle = mesh.bundles.upload(b"MTZ ")
            assert mesh.bundles.get(bundle.bundle_id) == bundle
            assert mesh.bundles.download(bundle.bundle_id) == b"MTZ "
            path = mesh.bundles.download(bundle.bundle_id, tmp_path / "file")
            assert path.read_bytes() == b"MTZ "
            assert list(mesh.bundles.list()) == [bundle]
            model = mesh.create_model(b"ATOM  \n", bundle.bundle_id)
            result = mesh.gradients(model, SITES, target="combined")
            np.testing.assert_array_equal(result.geometry_sites, 2 * SITES)
            with mesh.session(model, target="geometry") as session:
                assert session.step(SITES).ok
                pending = [session.submit(SITES * scale) for scale in range(20)]
                for scale, answer in enumerate(pending):
                    expected = 2 * scale * SITES
                    np.testing.assert_array_equal(answer.result().geometry_sites, expected)
                begun = [session.begin(SITES * scale) for scale in range(20)]
                assert [answer.result().step_id for answer in begun] == list(range(21, 41))
            assert len(mesh.agents()) == 3
            assert mesh.health()["dependency:redis"] == "not_serving"
            mesh.bundles.delete(bundle.bundle_id)
            with pytest.raises(NotFound):
                mesh.bundles.get(bundle.bundle_id)

    await call(use)
    assert await server.ended("StreamGradients")


@pytest.mark.asyncio
async def test_works_inside_a_running_event_loop(server, call):
    async def cell() -> None:
        with Mesh(server.address) as mesh:
            assert mesh.gradients(MODEL, SITES).ok

    await call(asyncio.run, cell())


@pytest.mark.asyncio
async def test_error_inside_the_block_ends_the_session(server, call):
    def use() -> None:
        with Mesh(server.address) as mesh, mesh.session(MODEL):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await call(use)
    assert await server.ended("StreamGradients")


@pytest.mark.asyncio
async def test_a_mesh_that_is_not_closed_goes_with_its_last_reference(server, call):
    def use() -> None:
        mesh = Mesh(server.address)
        assert mesh.gradients(MODEL, SITES).ok

    before = _client_threads()
    await call(use)
    assert _client_threads() <= before


def test_bad_arguments_leave_no_thread(tmp_path):
    before = _client_threads()
    with pytest.raises(InvalidInput):
        Mesh("127.0.0.1:1", root_certificates=tmp_path / "none")
    assert _client_threads() <= before


def _client_threads() -> set[threading.Thread]:
    # Fixtures of whole runs have clients of their own.
    return {thread for thread in threading.enumerate() if thread.name == "bxmesh-client"}


def test_errors_are_the_same(tmp_path):
    with Mesh(f"unix:{tmp_path}/nobody", retries=0) as mesh, pytest.raises(BxmeshError):
        mesh.health()

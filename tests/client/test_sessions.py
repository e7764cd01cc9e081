"""Sessions: steps, windows, re-attaching, closing."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from bxmesh.client import (
    AsyncMesh,
    BxmeshError,
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    Unavailable,
)

pytestmark = pytest.mark.asyncio
MODEL = "sha256:" + "0" * 64
SITES = np.random.default_rng(0).normal(size=(4, 3))


async def test_steps(server, mesh):
    async with mesh.session(MODEL, target="geometry") as session:
        assert (session.session_id, session.atoms) == ("session-1", 4)
        for scale in (1.0, 2.0, 3.0):
            result = await session.step(SITES * scale)
            np.testing.assert_array_equal(result.geometry_sites, 2 * scale * SITES)
            assert result.sample.status == "ok"
    assert server.closed_sessions == 1
    assert await server.ended("StreamGradients")


async def test_submitted_steps_are_answered_in_order(mesh):
    async with mesh.session(MODEL, window=3) as session:
        pending = [await session.submit(SITES * scale) for scale in range(20)]
        results = await asyncio.gather(*pending)
    assert [result.step_id for result in results] == list(range(20))
    np.testing.assert_array_equal(results[7].geometry_sites, 14 * SITES)


async def test_window_bounds_what_is_under_way(server, mesh):
    server.silent = True
    async with mesh.session(MODEL, window=2) as session:
        first = await session.submit(SITES)
        await session.submit(SITES)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.submit(SITES), 0.05)
    with pytest.raises(Cancelled, match="closed"):
        await first


async def test_large_steps_travel_in_chunks(mesh):
    batch = np.random.default_rng(1).normal(size=(30, 5000, 3))
    async with mesh.session(MODEL) as session:
        result = await session.step(batch)
        np.testing.assert_array_equal(result.geometry_sites, 2 * batch)
        np.testing.assert_array_equal((await session.step(SITES)).geometry_sites, 2 * SITES)


async def test_callers_may_change_their_array_after_submitting(mesh):
    batch = np.ones((30, 5000, 3))
    async with mesh.session(MODEL) as session:
        pending = await session.submit(batch)
        batch[:] = 0
        assert (await pending).geometry_sites.min() == 2


async def test_refused_step_leaves_the_session_open(mesh):
    async with mesh.session(MODEL) as session:
        with pytest.raises(InvalidInput, match="4 atoms are expected") as raised:
            await session.step(SITES[:1])
        assert raised.value.trace_id == session.trace_id
        assert (await session.step(SITES)).ok


async def test_status_of_each_sample(mesh):
    async with mesh.session(MODEL) as session:
        result = await session.step(np.stack([SITES, SITES * np.inf]))
    assert [sample.status for sample in result.samples] == ["ok", "non_finite"]
    fine, bad = result.energies("geometry")
    assert fine == pytest.approx((SITES**2).sum())
    assert np.isnan(bad)


async def test_lost_stream_is_resumed_and_unanswered_steps_are_sent_again(server, mesh):
    server.break_session_after = [3, 2]
    async with mesh.session(MODEL, window=4) as session:
        pending = [await session.submit(SITES * scale) for scale in range(8)]
        results = await asyncio.gather(*pending)
    for scale, result in enumerate(results):
        np.testing.assert_array_equal(result.geometry_sites, 2 * scale * SITES)
    assert server.attached == ["", "session-1", "session-1"]
    assert server.steps[1][0] == 3
    assert server.steps[2][0] == 5
    assert await server.ended("StreamGradients")


async def test_large_step_is_sent_again_whole(server, mesh):
    server.break_session_after = [1]
    batch = np.random.default_rng(1).normal(size=(30, 5000, 3))
    async with mesh.session(MODEL) as session:
        await session.step(SITES)
        result = await session.step(batch)
    np.testing.assert_array_equal(result.geometry_sites, 2 * batch)


async def test_opening_is_repeated_while_unavailable(server, mesh):
    server.unavailable["StreamGradients"] = 2
    async with mesh.session(MODEL) as session:
        assert (await session.step(SITES)).ok
    assert server.calls["StreamGradients"] == 3


async def test_opening_gives_up(server):
    async with AsyncMesh(server.address, retries=2) as mesh:
        server.unavailable["StreamGradients"] = 100
        with pytest.raises(Unavailable):
            async with mesh.session(MODEL):
                raise AssertionError("it cannot open")
    assert server.calls["StreamGradients"] == 3


async def test_step_that_is_not_answered_in_time(server, mesh):
    server.silent = True
    async with mesh.session(MODEL, timeout=0.1) as session:
        with pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
            await session.step(SITES)
    assert await server.ended("StreamGradients")


async def test_error_inside_the_block_ends_the_stream(server, mesh):
    with pytest.raises(ZeroDivisionError):
        async with mesh.session(MODEL):
            raise ZeroDivisionError
    assert await server.ended("StreamGradients")


async def test_cancelled_caller_ends_the_stream(server, mesh):
    server.silent = True
    opened = asyncio.Event()

    async def run() -> None:
        async with mesh.session(MODEL) as session:
            opened.set()
            await session.step(SITES)

    task = asyncio.create_task(run())
    await opened.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await server.ended("StreamGradients")


async def test_closed_session_says_so(mesh):
    async with mesh.session(MODEL) as session:
        await session.step(SITES)
    with pytest.raises(BxmeshError, match="closed"):
        await session.step(SITES)
    with pytest.raises(InvalidInput, match="once"):
        await session.__aenter__()


async def test_session_is_one_trace(server, mesh):
    async with mesh.session(MODEL) as session:
        assert session.trace_id in server.metadata["StreamGradients"]["traceparent"]

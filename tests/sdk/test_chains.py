"""Chains from Python."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from pydantic import BaseModel
from redis.asyncio import Redis

from bxmesh.agent.v1 import chain_run_pb2 as pb
from bxmesh.client import (
    Agent,
    AsyncMesh,
    Chain,
    ChainFailed,
    ChainStep,
    FailedPrecondition,
    InvalidInput,
    Mesh,
    NotFound,
    RetryPolicy,
    TaskContext,
    task,
)
from bxmesh.client.chains import ChainChange
from bxmesh.server.embedded import EmbeddedMesh
from tests.functions.mesh import World
from tests.functions.mesh import world as run_world
from tests.sdk.agents import name as unique
from tests.sdk.agents import soon
from tests.sdk.test_tracing import receiver
from tests.tracing.otlp import OtlpReceiver, otlp

__all__ = ["otlp", "receiver"]


@pytest.fixture
async def f(mesh: AsyncMesh) -> str:
    """The beginning of the names of functions that no other test has."""
    f = unique("test.f").replace("-", "_")
    await store(mesh, f)
    return f


async def store(mesh: AsyncMesh, f: str) -> None:
    for what, code in (
        ("add", "def main(a, b=1):\n    return {'sum': a + b}\n"),
        ("echo", "def main(**fields):\n    return fields\n"),
        ("fail", "def main(**fields):\n    raise ValueError('as asked')\n"),
        ("spin", "def main(**fields):\n    while True:\n        pass\n"),
    ):
        await mesh.functions.create(f"{f}.{what}", code)


def line(f: str, count: int) -> Chain:
    """Steps one after another, each of which adds one."""
    steps = [ChainStep("s0", function=f"{f}.add", inputs={"a": "input.n"})]
    for i in range(1, count):
        before = f"s{i - 1}"
        steps.append(
            ChainStep(
                f"s{i}",
                function=f"{f}.add",
                after=before,
                inputs={"a": f"steps.{before}.output.sum"},
            )
        )
    return Chain(steps)


class Input(BaseModel):
    n: int


async def test_a_chain_runs_to_its_output(mesh: AsyncMesh, f: str) -> None:
    chain = Chain(
        [
            ChainStep("first", function=f"{f}.add", inputs={"a": "input.n"}),
            ChainStep(
                "second",
                function=f"{f}.add@latest",
                after=["first"],
                inputs={"a": "steps.first.output.sum", "b": 10},
            ),
        ],
        outputs={"total": "steps.second.output.sum", "constant": [1, "ü", None]},
        input_schema=Input,
    )
    assert await mesh.chains.run(chain, Input(n=1)) == {"constant": [1, "ü", None], "total": 12}
    started = await mesh.chains.start(chain, {"n": 2})
    assert (started.state, started.done, started.owner) == ("pending", False, "admin")
    with pytest.raises(FailedPrecondition, match="wait for its end"):
        _ = started.value
    run = await soon(mesh.chains.wait(started.run_id))
    assert (run.value["total"], run.input, run.error) == (13, {"n": 2}, None)
    assert run == await mesh.chains.get(run.run_id)
    first, second = run.steps
    assert (first.state, first.attempts, first.input) == ("completed", 1, {"a": 2})
    assert second.input == {"a": 3, "b": 10}
    assert first.duration is not None
    assert run.duration is not None
    assert 0 < first.duration < run.duration < 30
    assert run.chain.to_message() == chain.to_message()
    for wrong, place in (({"n": "x"}, "input.n"), ({}, "input")):
        with pytest.raises(InvalidInput) as refused:
            await mesh.chains.start(chain, wrong)
        assert refused.value.field_violations[0][0] == place


async def test_a_chain_that_fails_says_where(mesh: AsyncMesh, f: str) -> None:
    chain = Chain([ChainStep("bad", function=f"{f}.fail", retry=RetryPolicy(2, 0.001))])
    with pytest.raises(ChainFailed) as raised:
        await mesh.chains.run(chain)
    error = raised.value
    assert (error.reason, error.code) == ("FUNCTION_FAILED", grpc.StatusCode.ABORTED)
    assert "bad failed" in error.message
    assert "as asked" in error.message
    assert error.step is not None
    assert (error.step.step_id, error.step.attempts, error.step.state) == ("bad", 2, "failed")
    assert error.step.error is not None
    assert error.step.error.metadata["line"] == "2"
    assert (error.run.done, error.trace_id) == (True, error.run.trace_id)
    slow = Chain([ChainStep("slow", function=f"{f}.spin", timeout=20.0)], timeout=0.3)
    with pytest.raises(ChainFailed) as raised:
        await soon(mesh.chains.run(slow))
    assert (raised.value.reason, raised.value.step) == ("CHAIN_TIMED_OUT", None)
    assert raised.value.run.steps[0].state == "cancelled"


async def test_a_run_is_watched_and_cancelled(mesh: AsyncMesh, f: str) -> None:
    chain = Chain(
        [
            ChainStep("slow", function=f"{f}.spin"),
            ChainStep("next", function=f"{f}.echo", after="slow"),
        ]
    )
    once = unique("request")
    run, again = [await mesh.chains.start(chain, request_id=once) for _ in range(2)]
    assert run.run_id == again.run_id
    seen: list[ChainChange] = []
    async with aclosing(mesh.chains.watch(run.run_id)) as changes:
        async for change in changes:
            seen.append(change)
            if any(is_running(one) for one in seen):
                break
    assert (await mesh.chains.cancel(run.run_id)).state == "cancelled"
    rest = [c async for c in mesh.chains.watch(run.run_id, after_revision=seen[-1].revision)]
    assert {c.step.step_id: c.step.state for c in rest if c.step} == {
        "slow": "cancelled",
        "next": "skipped",
    }
    last = rest[-1].run
    assert last is not None
    with pytest.raises(ChainFailed, match="was cancelled") as raised:
        _ = last.value
    assert raised.value.reason == "RUN_CANCELLED"
    assert (await mesh.chains.cancel(run.run_id)) == last
    with pytest.raises(NotFound):
        await mesh.chains.get("nothing")


def is_running(change: ChainChange) -> bool:
    steps = change.run.steps if change.run else [change.step] if change.step else []
    return any(step.state == "running" for step in steps)


async def test_runs_are_listed_in_pages(mesh: AsyncMesh, f: str) -> None:
    runs = [await mesh.chains.start(line(f, 1), {"n": n}) for n in range(3)]
    for run in runs:
        await soon(mesh.chains.wait(run.run_id))
    found = [run async for run in mesh.chains.list(page_size=2)]
    assert [run.run_id for run in found[:3]] == [run.run_id for run in reversed(runs)]
    assert (found[0].state, found[0].steps, found[0].output) == ("completed", (), None)
    running = [run.run_id async for run in mesh.chains.list(states=["running", "pending"])]
    assert not {run.run_id for run in runs} & set(running)
    assert [run async for run in mesh.chains.list(definition_id="no-such")] == []
    with pytest.raises(NotFound):
        await mesh.chains.start("no-such")


class Doubler(Agent):
    @task("chain.step")
    async def step(self, context: TaskContext) -> dict[str, int]:
        return {"n": context.parameters["n"] * 2}


async def test_agents_do_steps(mesh: AsyncMesh, f: str) -> None:
    async with Doubler(unique("doubler")).running(mesh) as agent:
        chain = Chain([ChainStep("double", agent=agent.agent_id, timeout=20)])
        run = await soon(mesh.chains.wait((await mesh.chains.start(chain, {"n": 4})).run_id))
    assert (run.value, run.steps[0].agent_id) == ({"n": 8}, agent.agent_id)


class Breaking:
    """The service, whose watches break after one change each, for some time."""

    def __init__(self, stub: Any, breaks: int) -> None:
        self._stub = stub
        self.left = breaks
        self.afters: list[int] = []

    def WatchChain(self, request: pb.WatchChainRequest, **options: Any) -> Any:
        self.afters.append(request.after_revision)
        return _Broken(self._stub.WatchChain(request, **options), self)


class _Broken:
    def __init__(self, call: Any, breaking: Breaking) -> None:
        self.cancel = call.cancel
        self._call = call
        self._breaking = breaking

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for response in self._call:
            yield response
            if self._breaking.left:
                self._breaking.left -= 1
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "broken"
                )


async def test_a_watch_that_breaks_loses_nothing(
    mesh: AsyncMesh, f: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both of the first begin together.
    steps = [ChainStep(name, function=f"{f}.echo") for name in ("a", "b")]
    end = ChainStep("end", function=f"{f}.echo", after=["a", "b"], inputs={"n": 1})
    run = await mesh.chains.start(Chain([*steps, end]))
    breaking = Breaking(mesh.chains._stub, 5)
    monkeypatch.setattr(mesh.chains, "_stub", breaking)
    async with asyncio.timeout(30):
        changes = [change async for change in mesh.chains.watch(run.run_id)]
    assert len(breaking.afters) >= 3
    assert breaking.afters == sorted(breaking.afters)
    revisions = [change.revision for change in changes if change.step]
    assert len(set(revisions)) == len(revisions)
    states = {step.step_id: step.state for step in run.steps}
    states |= {change.step.step_id: change.step.state for change in changes if change.step}
    assert states == dict.fromkeys(["a", "b", "end"], "completed")
    assert changes[-1].run is not None
    assert changes[-1].run.state == "completed"


def test_without_asyncio(shared_server: EmbeddedMesh, f: str) -> None:
    with Mesh(shared_server.address, state_dir=shared_server.state_dir) as mesh:
        assert mesh.chains.run(line(f, 3), {"n": 1}) == {"sum": 4}
        run = mesh.chains.start(line(f, 2), {"n": 1})
        assert [change.run for change in mesh.chains.watch(run.run_id)][-1] is not None
        assert mesh.chains.wait(run.run_id).state == "completed"
        assert mesh.chains.cancel(run.run_id).state == "completed"
        assert run.run_id in [one.run_id for one in mesh.chains.list()]
        assert mesh.chains.get(run.run_id).output == {"sum": 3}


@pytest.fixture
async def traced_world(
    receiver: OtlpReceiver, redis: Redis, shared_valkey: str
) -> AsyncIterator[World]:
    """A server in this process, which exports its spans."""
    async with run_world(shared_valkey) as running:
        yield running


async def test_a_chain_is_one_trace(traced_world: World, receiver: OtlpReceiver) -> None:
    key = traced_world.admin.metadata[0][1].removeprefix("Bearer ")
    f = "test.traced"
    async with AsyncMesh(traced_world.server.address, api_key=key) as mesh:
        await store(mesh, f)
        with trace.get_tracer("test").start_as_current_span("all of it") as root:
            run = await mesh.chains.start(line(f, 2), {"n": 1})
        await soon(mesh.chains.wait(run.run_id))
    assert run.trace_id == f"{root.get_span_context().trace_id:032x}"
    client_and_server = [
        "bxmesh.agent.v1.ChainService/StartChain",
        *["bxmesh.agent.v1.FunctionService/ExecuteFunction"] * 2,
    ] * 2
    wanted = ["all of it", *client_and_server, "send chains", "process chains"]
    await soon(asyncio.to_thread(receiver.wait_for, *wanted))
    spans = receiver.spans(run.trace_id)
    assert sorted(span.name for span in spans) == sorted(wanted)
    (processed,) = [span for span in spans if span.name == "process chains"]
    executed = [s for s in spans if s.name.endswith("/ExecuteFunction") and s.kind == "CLIENT"]
    assert {span.parent_id for span in executed} == {processed.span_id}
    assert all(processed.start <= span.start <= processed.end for span in executed)

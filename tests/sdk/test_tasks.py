"""Tasks: given to agents, followed, cancelled, done again."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import BaseModel

from bxmesh.agent.v1.task_pb2 import TaskProgress
from bxmesh.client import (
    Agent,
    AsyncMesh,
    FailedPrecondition,
    InvalidInput,
    Mesh,
    NotFound,
    RetryPolicy,
    Supervisor,
    TaskContext,
    TaskFailed,
    task,
)
from bxmesh.client.agents import Capability, TaskCancelled, TaskTimedOut, WorkProgress
from bxmesh.server.embedded import EmbeddedMesh
from tests.processes import until
from tests.sdk.agents import name, soon


class Numbers(BaseModel):
    numbers: list[float]


class Total(BaseModel):
    total: float


def worker(kind: str) -> type[Any]:
    """A class of agents whose tasks no other test has."""

    class Adder(Agent):
        concurrency = 4

        def __init__(self, agent_id: str = "", **options: Any) -> None:
            super().__init__(agent_id or name("adder"), **options)
            self.begun: asyncio.Queue[TaskContext] = asyncio.Queue()
            self.ended: asyncio.Queue[str] = asyncio.Queue()
            self.go = asyncio.Event()

        @task(f"{kind}.add", model=Numbers)
        async def add(self, task: TaskContext, parameters: Numbers) -> Total:
            self.begun.put_nowait(task)
            await task.progress(50, "half of it")
            return Total(total=sum(parameters.numbers))

        @task(f"{kind}.echo")
        async def echo(self, task: TaskContext) -> Any:
            return task.parameters

        @task(f"{kind}.wait")
        async def wait(self, task: TaskContext) -> str:
            self.begun.put_nowait(task)
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.ended.put_nowait("cancelled")
                raise
            self.ended.put_nowait("done")
            return self.agent_id

        @task(f"{kind}.fail")
        async def fail(self, task: TaskContext) -> None:
            self.begun.put_nowait(task)
            if task.parameters == "always" or task.attempt == 1:
                raise ArithmeticError("it does not add up")

        @task(f"{kind}.delegate")
        async def delegate(self, task: TaskContext) -> Any:
            child = await task.assign(f"{kind}.add", Numbers(numbers=[1, 2]))
            return (await self.mesh.wait_for_task(child.task_id)).result

        @task(f"{kind}.nonsense")
        async def nonsense(self, task: TaskContext) -> Any:
            return object()

    return Adder


@pytest.fixture
def kind() -> str:
    return name("kind").replace("-", "_")


async def test_a_task_from_assignment_to_result(mesh: AsyncMesh, kind: str) -> None:
    async with worker(kind)().running(mesh) as adder:
        assigned = await mesh.assign_task(
            f"{kind}.add",
            Numbers(numbers=[1, 2, 3]),
            description="a small sum",
            labels={"colour": "blue"},
            priority="high",
        )
        assert assigned.task_type == f"{kind}.add"
        assert not assigned.done
        assert assigned.required_capabilities == (f"{kind}.add",)
        async with aclosing(mesh.watch_task(assigned.task_id)) as changes, asyncio.timeout(30):
            seen = [one async for one in changes]
        last = seen[-1]
        assert [one.revision for one in seen] == sorted({one.revision for one in seen})
        assert last.state == "completed"
        assert last.read_result(Total) == Total(total=6)
        assert last.read_parameters(Numbers).numbers == [1, 2, 3]
        assert (last.agent_id, last.attempts) == (adder.agent_id, 1)
        assert last.labels == {"colour": "blue"}
        assert last.description == "a small sum"
        assert last.start_time is not None
        assert last.end_time is not None
        assert await mesh.task(assigned.task_id) == last
        context = await adder.begun.get()
        assert (context.id, context.attempt, context.type) == (last.task_id, 1, f"{kind}.add")
        found = [one async for one in mesh.tasks(task_type=f"{kind}.add", states=["completed"])]
        assert found == [last]
        stats = await mesh.task_stats(f"{kind}.add")
        assert stats.by_state["completed"] == 1
        assert stats.completion_rate == 1


@pytest.mark.parametrize("value", [None, {"a": [1, "b"]}, "text", TaskProgress(percent=7)])
async def test_what_goes_in_comes_out(mesh: AsyncMesh, kind: str, value: Any) -> None:
    async with worker(kind)().running(mesh):
        assigned = await mesh.assign_task(f"{kind}.echo", value)
        assert (await soon(mesh.wait_for_task(assigned.task_id))).result == value


async def test_nobody_can_do_it(mesh: AsyncMesh, kind: str) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        await mesh.assign_task(f"{kind}.add", {})
    assert f"{kind}.add" in raised.value.message
    with pytest.raises(NotFound):
        await mesh.task("no-such-task")
    waiting = await Supervisor(mesh).assign(f"{kind}.add", {"numbers": [1]}, result=Total)
    assert waiting.task.state == "pending"
    async with worker(kind)().running(mesh):
        assert (await soon(waiting)).total == 1


async def test_a_task_that_fails_is_tried_again(mesh: AsyncMesh, kind: str) -> None:
    supervisor = Supervisor(mesh)
    at_once = RetryPolicy(max_attempts=2, initial_backoff=0.0)
    async with worker(kind)().running(mesh) as adder:
        work = await supervisor.assign(f"{kind}.fail", "once", retry=at_once)
        assert await soon(work) is None
        assert work.task.attempts == 2
        work = await supervisor.assign(f"{kind}.fail", "always", retry=at_once)
        with pytest.raises(TaskFailed) as raised:
            await soon(work)
        error = raised.value
        assert (error.reason, error.code.name) == ("ARITHMETIC_ERROR", "INTERNAL")
        assert "does not add up" in error.message
        assert (error.task.state, error.task.attempts) == ("failed", 2)
        hopeless = RetryPolicy(
            max_attempts=5, initial_backoff=0.0, non_retryable=(ArithmeticError,)
        )
        work = await supervisor.assign(f"{kind}.fail", "always", retry=hopeless)
        with pytest.raises(TaskFailed):
            await soon(work)
        assert work.task.attempts == 1
        assert adder.begun.qsize() == 5


async def test_parameters_and_results_that_do_not_fit(mesh: AsyncMesh, kind: str) -> None:
    once = RetryPolicy(max_attempts=1)
    supervisor = Supervisor(mesh)
    async with worker(kind)().running(mesh):
        with pytest.raises(InvalidInput) as refused:
            await mesh.assign_task(f"{kind}.add", {"numbers": "many"})
        assert refused.value.reason == "SCHEMA_MISMATCH"
    # A server may remember what an agent said it takes for a moment after it has gone.
    kind += "_too"
    async with worker(kind)(capabilities=[Capability(f"{kind}.add")]).running(mesh) as adder:
        for task_type, reason in ((f"{kind}.add", "PAYLOAD_MISMATCH"), (f"{kind}.nonsense", "")):
            work = await supervisor.assign(task_type, {"numbers": "many"}, retry=once)
            with pytest.raises(TaskFailed) as raised:
                await soon(work)
            assert raised.value.reason == (reason or "INVALID_ARGUMENT")
        unknown = await supervisor.assign("no.handler", agent_id=adder.agent_id, retry=once)
        with pytest.raises(TaskFailed) as raised:
            await soon(unknown)
        assert raised.value.reason == "UNHANDLED"


async def test_cancelling_reaches_the_agent(mesh: AsyncMesh, kind: str) -> None:
    async with worker(kind)().running(mesh) as adder:
        work = await Supervisor(mesh).assign(f"{kind}.wait")
        await soon(adder.begun.get())
        await work.cancel("changed my mind")
        assert await soon(adder.ended.get()) == "cancelled"
        with pytest.raises(TaskCancelled):
            await soon(work)
        await until(lambda: adder.get_stats().in_flight == 0)
        # The agent takes as many as before.
        works = [await Supervisor(mesh).assign(f"{kind}.wait") for _ in range(4)]
        for _ in works:
            await soon(adder.begun.get())
        adder.go.set()
        assert await soon(Supervisor(mesh).gather(works)) == [adder.agent_id] * 4


async def test_time_runs_out(mesh: AsyncMesh, kind: str) -> None:
    async with worker(kind)().running(mesh) as adder:
        work = await Supervisor(mesh).assign(f"{kind}.wait", timeout=1.0)
        with pytest.raises(TaskTimedOut):
            await soon(work)
        assert await soon(adder.ended.get()) == "cancelled"


async def test_another_agent_takes_over(mesh: AsyncMesh, kind: str) -> None:
    first, second = worker(kind)(drain_seconds=0.0), worker(kind)()
    async with first.running(mesh):
        work = await Supervisor(mesh).assign(f"{kind}.wait")
        await soon(first.begun.get())
        second.go.set()
        taking_over = second.running(mesh)
        await taking_over.__aenter__()
    try:
        assert await soon(work) == second.agent_id
        assert work.task.attempts == 2
    finally:
        await taking_over.__aexit__(None, None, None)


async def test_delegation(mesh: AsyncMesh, kind: str) -> None:
    supervisor = Supervisor(mesh)
    async with worker(kind)().running(mesh), worker(kind)().running(mesh):
        work = await supervisor.assign(f"{kind}.delegate", result=Total)
        assert (await soon(work)).total == 3
        (child,) = [one async for one in mesh.tasks(parent_task_id=work.id)]
        assert (child.depth, child.parent_task_id) == (1, work.id)
        assert (await mesh.task(work.id)).child_task_ids == (child.task_id,)


async def test_many_tasks_with_progress(mesh: AsyncMesh, kind: str) -> None:
    told: list[tuple[int, float]] = []

    def on_progress(progress: WorkProgress) -> None:
        told.append((progress.done, progress.fraction))

    async with worker(kind)().running(mesh) as one, worker(kind)().running(mesh) as other:
        results = await soon(
            Supervisor(mesh).map(
                f"{kind}.add",
                [Numbers(numbers=[n, 1]) for n in range(40)],
                result=Total,
                concurrency=8,
                on_progress=on_progress,
            ),
            60,
        )
        assert [result.total for result in results] == [n + 1 for n in range(40)]
        assert told[-1] == (40, 1.0)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert one.get_stats().handled + other.get_stats().handled == 40
        assert min(one.get_stats().handled, other.get_stats().handled) > 0


async def test_failures_are_collected_or_raised(mesh: AsyncMesh, kind: str) -> None:
    supervisor, once = Supervisor(mesh), RetryPolicy(max_attempts=1)
    inputs: list[Any] = [{"numbers": [1]}, {"numbers": "no"}, {"numbers": [3]}]
    async with worker(kind)(capabilities=[Capability(f"{kind}.add")]).running(mesh) as adder:
        results = await soon(
            supervisor.map(
                f"{kind}.add", iter(inputs), result=Total, failures="collect", retry=once
            )
        )
        assert results[0] == Total(total=1)
        assert results[2] == Total(total=3)
        failure = results[1]
        assert isinstance(failure, TaskFailed)
        assert failure.reason == "PAYLOAD_MISMATCH"
        waiting = [await supervisor.assign(f"{kind}.wait") for _ in range(2)]
        failing = await supervisor.assign(f"{kind}.add", inputs[1], retry=once)
        with pytest.raises(TaskFailed):
            await soon(supervisor.gather([*waiting, failing]))
        # The others were cancelled.
        for _ in waiting:
            assert await soon(adder.ended.get()) == "cancelled"
        with pytest.raises(InvalidInput, match="1 is the least"):
            await supervisor.map(f"{kind}.add", inputs, concurrency=0)
        assert await supervisor.map(f"{kind}.add", []) == []


async def test_a_supervisor_that_is_cancelled_cancels_its_tasks(mesh: AsyncMesh, kind: str) -> None:
    async with worker(kind)().running(mesh) as adder:
        mapping = asyncio.create_task(Supervisor(mesh).map(f"{kind}.wait", range(2)))
        for _ in range(2):
            await soon(adder.begun.get())
        mapping.cancel()
        for _ in range(2):
            assert await soon(adder.ended.get()) == "cancelled"
        with pytest.raises(asyncio.CancelledError):
            await mapping


async def test_a_supervisor_outlives_a_restart(
    lone: AsyncMesh, lone_server: EmbeddedMesh, kind: str
) -> None:
    async with worker(kind)().running(lone) as adder:
        mapping = asyncio.create_task(Supervisor(lone).map(f"{kind}.wait", range(6), concurrency=6))
        for _ in range(4):
            await soon(adder.begun.get())
        await asyncio.to_thread(lone_server.kill)
        adder.go.set()
        await asyncio.to_thread(lone_server.start)
        assert await soon(mapping, 60) == [adder.agent_id] * 6


async def test_without_asyncio(mesh: AsyncMesh, shared_server: EmbeddedMesh, kind: str) -> None:
    async with worker(kind)().running(mesh):

        def use() -> None:
            with Mesh(shared_server.address, state_dir=shared_server.state_dir) as plain:
                assigned = plain.assign_task(f"{kind}.add", {"numbers": [1, 2]})
                changes = list(plain.watch_task(assigned.task_id))
                assert changes[-1].result == {"total": 3.0}
                assert [one.task_id for one in plain.tasks(task_type=f"{kind}.add")] == [
                    assigned.task_id
                ]

        await soon(asyncio.to_thread(use))

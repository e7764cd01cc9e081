"""Durable executions: they survive their server and their sandbox, are tried again, and end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.agent.v1 import queue_pb2
from bxmesh.client.errors import from_rpc_error, from_status
from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy
from bxmesh.server.embedded import EmbeddedMesh
from tests.functions.mesh import (
    CANCELLED,
    COMPLETED,
    FAILED,
    LIMITED,
    PENDING,
    Caller,
    World,
    objects,
    refused,
)
from tests.functions.mesh import world as run_world
from tests.processes import children, command, until

ENDED = (COMPLETED, FAILED, CANCELLED, LIMITED)
RUNNING = pb.EXECUTION_STATE_RUNNING
LEASE = 2.0
# How long anything may take that must come to an end.
END_SECONDS = 60.0
DOUBLE = "def main(n):\n    return n * 2\n"
SLOW = "import time\ndef main(n, seconds):\n    time.sleep(seconds)\n    return n * 2\n"
SPIN = "def main():\n    while True:\n        pass\n"
COUNT = (
    "import time\ndef main(n, until):\n    while time.time() < until:\n"
    "        for i in range(100_000):\n            pass\n    return n\n"
)
FAIL = "def main():\n    raise ValueError('always')\n"
# Fails until a time, so that it is known how often.
LATE = (
    "import time\ndef main(until):\n    if time.time() < until:\n"
    "        raise ValueError('too early')\n    return 'done'\n"
)


@pytest.fixture
async def world(redis: Redis, shared_valkey: str) -> AsyncIterator[World]:
    """A running server whose work is soon another's when it is silent."""
    async with run_world(shared_valkey, work_lease=LEASE) as running:
        yield running


def retries(attempts: int, *final: str) -> RetryPolicy:
    """A policy that does not wait for long."""
    policy = RetryPolicy(max_attempts=attempts, non_retryable_reasons=final)
    policy.initial_backoff.FromMilliseconds(20)
    policy.max_backoff.FromMilliseconds(50)
    return policy


def seconds(value: float) -> pb.FunctionLimits:
    """A limit of time."""
    limits = pb.FunctionLimits()
    limits.timeout.FromMilliseconds(int(value * 1000))
    return limits


async def add(caller: Caller, name: str, code: str, **fields: Any) -> None:
    """Stores a function."""
    imports = {"allowed_imports": ["time"]} if "import time" in code else {}
    await caller.create(name, code, is_async="async def main" in code, **{**imports, **fields})


async def look(caller: Caller, execution_id: str) -> Any:
    """An execution as it stands."""
    answer = await caller.stub.GetExecution(
        pb.GetExecutionRequest(execution_id=execution_id), metadata=caller.metadata
    )
    return answer.execution


async def end_of(caller: Caller, execution_id: str) -> Any:
    """How an execution ends."""
    return await state_of(caller, execution_id, *ENDED)


async def state_of(caller: Caller, execution_id: str, *states: int) -> Any:
    """An execution as soon as it is in one of some states."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        execution = await look(caller, execution_id)
        if execution.state in states:
            return execution
        assert execution.state not in ENDED, execution
        await asyncio.sleep(0.05)
    raise AssertionError(f"it did not come to that: {execution}")


async def cancel(caller: Caller, execution_id: str) -> Any:
    """Cancels an execution."""
    answer = await caller.stub.CancelExecution(
        pb.CancelExecutionRequest(execution_id=execution_id), metadata=caller.metadata
    )
    return answer.execution


async def dead_letters(caller: Caller) -> list[Any]:
    """What was given up."""
    answer = await caller.agents.ListDeadLetters(
        queue_pb2.ListDeadLettersRequest(), metadata=caller.metadata
    )
    return list(answer.dead_letters)


def sandboxes(pid: int = 0) -> list[int]:
    """The sandbox's processes of a server, ours when it is not said."""
    return [child for child in children(pid or os.getpid()) if "monty" in command(child)]


def reason_of(execution: Any) -> str:
    """The reason in an execution's error."""
    return from_status(execution.error).reason


async def test_one_completes(admin: Caller) -> None:
    await add(admin, "test.double", DOUBLE)
    execution = await admin.execute("test.double", {"n": 21}, durable=True)
    assert (execution.state, execution.output.number_value) == (COMPLETED, 42)
    assert (execution.attempts, execution.owner) == (1, "admin")
    assert execution.HasField("end_time")
    assert await look(admin, execution.execution_id) == execution


async def test_what_it_prints_is_kept(admin: Caller) -> None:
    await add(admin, "test.prints", "def main():\n    print('heard')\n    return 1\n")
    execution = await admin.execute("test.prints", durable=True)
    assert execution.printed == "heard\n"
    assert (await look(admin, execution.execution_id)).printed == "heard\n"


async def test_a_detached_one_goes_on_by_itself(admin: Caller) -> None:
    await add(admin, "test.slow", SLOW)
    execution = await admin.execute(
        "test.slow", {"n": 4, "seconds": 0.3}, durable=True, detach=True
    )
    assert execution.state == PENDING
    assert not execution.HasField("end_time")
    ended = await end_of(admin, execution.execution_id)
    assert (ended.state, ended.output.number_value) == (COMPLETED, 8)


async def test_only_durable_ones_are_detached(admin: Caller) -> None:
    await add(admin, "test.double", DOUBLE)
    error = await refused(admin.execute("test.double", {"n": 1}, detach=True))
    assert error.field_violations[0][0] == "detach"


async def test_who_goes_away_leaves_it_running(admin: Caller) -> None:
    await add(admin, "test.slow", SLOW)
    waiting = asyncio.create_task(
        admin.execute("test.slow", {"n": 5, "seconds": 0.5}, durable=True, request_id="mine")
    )
    await asyncio.sleep(0.25)
    waiting.cancel()
    again = await admin.execute(
        "test.slow", {"n": 5, "seconds": 0.5}, durable=True, request_id="mine"
    )
    assert (again.state, again.output.number_value, again.attempts) == (COMPLETED, 10, 1)
    page = await admin.stub.ListExecutions(pb.ListExecutionsRequest(), metadata=admin.metadata)
    assert len(page.executions) == 1


async def test_a_repeated_request_is_one_execution(admin: Caller) -> None:
    await add(admin, "test.double", DOUBLE)
    executions = await asyncio.gather(
        *(
            admin.execute(
                "test.double", {"n": 2}, durable=True, request_id="same", detach=index > 2
            )
            for index in range(6)
        )
    )
    assert len({execution.execution_id for execution in executions}) == 1
    assert all(execution.state == COMPLETED for execution in executions[:3])


async def test_many_all_complete_once(admin: Caller) -> None:
    await add(admin, "test.double", DOUBLE)
    executions = await asyncio.gather(
        *(admin.execute("test.double", {"n": n}, durable=True) for n in range(100))
    )
    assert [execution.output.number_value for execution in executions] == [
        2 * n for n in range(100)
    ]
    assert {execution.attempts for execution in executions} == {1}
    stats = await admin.stub.GetFunctionStats(
        pb.GetFunctionStatsRequest(name="test.double"), metadata=admin.metadata
    )
    assert (stats.executions, stats.completed) == (100, 100)


async def test_events_are_streamed(admin: Caller) -> None:
    await add(
        admin,
        "test.steps",
        "import mesh\nasync def main(n):\n    for i in range(n):\n        print('step', i)\n"
        "        await mesh.progress({'done': i})\n    return n\n",
        host_functions=["mesh.progress"],
    )
    events = await admin.stream("test.steps", {"n": 3}, durable=True)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", *["printed", "progress"] * 3, "ended"]
    assert [event.progress.json.json for event in events if event.HasField("progress")] == [
        f'{{"done": {i}}}' for i in range(3)
    ]
    ended = events[-1].ended
    assert (ended.state, ended.output.number_value) == (COMPLETED, 3)
    assert ended.printed == "step 0\nstep 1\nstep 2\n"


async def test_a_stream_tells_of_an_end_that_is_none_of_success(admin: Caller) -> None:
    await add(admin, "test.fail", FAIL)
    events = await admin.stream("test.fail", durable=True, retry_policy=retries(2))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", "started", "ended"]
    assert (events[-1].ended.state, events[-1].ended.attempts) == (FAILED, 2)


# Trying again


async def test_failures_are_tried_again_until_they_are_dead_letters(admin: Caller) -> None:
    await add(admin, "test.fail", FAIL)
    execution = await admin.execute("test.fail", durable=True, retry_policy=retries(3))
    assert (execution.state, execution.attempts) == (FAILED, 3)
    assert reason_of(execution) == "FUNCTION_FAILED"
    assert "ValueError: always" in execution.error.message
    assert execution.HasField("end_time")
    assert await look(admin, execution.execution_id) == execution
    (letter,) = await dead_letters(admin)
    assert letter.attempts == 3
    assert from_status(letter.error).reason == "FUNCTION_FAILED"


async def test_the_server_says_how_often_when_nobody_else_does(
    redis: Redis, shared_valkey: str
) -> None:
    async with run_world(shared_valkey, max_attempts=2) as world:
        await add(world.admin, "test.fail", FAIL)
        policy = retries(0)
        execution = await world.admin.execute("test.fail", durable=True, retry_policy=policy)
        assert (execution.state, execution.attempts) == (FAILED, 2)


async def test_one_that_works_later_completes(admin: Caller) -> None:
    await add(admin, "test.late", LATE)
    policy = retries(100)
    policy.max_backoff.FromMilliseconds(100)
    policy.initial_backoff.FromMilliseconds(100)
    execution = await admin.execute(
        "test.late", {"until": time.time() + 0.5}, durable=True, retry_policy=policy
    )
    assert (execution.state, execution.output.string_value) == (COMPLETED, "done")
    assert execution.attempts > 1
    assert not execution.HasField("error")
    assert not await dead_letters(admin)


async def test_between_tries_it_waits(admin: Caller) -> None:
    await add(admin, "test.fail", FAIL)
    policy = RetryPolicy(max_attempts=2)
    policy.initial_backoff.FromSeconds(3600)
    policy.max_backoff.FromSeconds(3600)
    execution = await admin.execute("test.fail", durable=True, detach=True, retry_policy=policy)
    deadline = time.monotonic() + END_SECONDS
    while not (await look(admin, execution.execution_id)).HasField("error"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    waiting = await look(admin, execution.execution_id)
    assert (waiting.state, waiting.attempts) == (PENDING, 1)
    assert not waiting.HasField("end_time")
    assert (await cancel(admin, execution.execution_id)).state == CANCELLED


async def test_some_reasons_are_final(admin: Caller) -> None:
    await add(admin, "test.fail", FAIL)
    policy = retries(5, "SOMETHING_ELSE", "FUNCTION_FAILED")
    execution = await admin.execute("test.fail", durable=True, retry_policy=policy)
    assert (execution.state, execution.attempts) == (FAILED, 1)
    assert reason_of(execution) == "FUNCTION_FAILED"
    policy = retries(2, "SOMETHING_ELSE")
    execution = await admin.execute("test.fail", durable=True, retry_policy=policy)
    assert execution.attempts == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (SPIN, "TIME_LIMIT"),
        ("def main():\n    return 'x' * 10**10\n", "MEMORY_LIMIT"),
        ("def main():\n    return main()\n", "RECURSION_LIMIT"),
        ("def main():\n    while True:\n        print('x' * 1000)\n", "OUTPUT_LIMIT"),
        ("def main():\n    return ['x' * 1000] * 10_000\n", "OUTPUT_LIMIT"),
    ],
)
async def test_what_wants_too_much_is_not_tried_again(
    admin: Caller, code: str, reason: str
) -> None:
    await add(admin, "test.bomb", code)
    execution = await admin.execute(
        "test.bomb", durable=True, retry_policy=retries(5), limits=seconds(0.3)
    )
    assert (execution.state, execution.attempts) == (LIMITED, 1)
    assert reason_of(execution) == reason
    assert await look(admin, execution.execution_id) == execution
    assert not await dead_letters(admin)


async def test_results_that_do_not_fit_are_failures(admin: Caller) -> None:
    await add(admin, "test.set", "def main():\n    return {1, 2}\n")
    execution = await admin.execute("test.set", durable=True, retry_policy=retries(2))
    assert (execution.state, execution.attempts) == (FAILED, 2)
    assert reason_of(execution) == "OUTPUT_INVALID"


async def test_inputs_are_checked_before(admin: Caller) -> None:
    await add(admin, "test.double", DOUBLE, input_schema=objects(["n"], n={"type": "integer"}))
    error = await refused(admin.execute("test.double", {"n": "x"}, durable=True))
    assert error.reason == "SCHEMA_MISMATCH"
    page = await admin.stub.ListExecutions(pb.ListExecutionsRequest(), metadata=admin.metadata)
    assert not page.executions


async def test_a_function_that_is_gone_meanwhile_is_said(admin: Caller) -> None:
    await add(admin, "test.slow", SLOW)
    await add(admin, "test.double", DOUBLE)
    # More than a server takes.
    for _ in range(100):
        await admin.execute("test.slow", {"n": 1, "seconds": 1}, durable=True, detach=True)
    gone = await admin.execute(
        "test.double", {"n": 1}, durable=True, detach=True, retry_policy=retries(2)
    )
    await admin.stub.DeleteFunction(
        pb.DeleteFunctionRequest(name="test.double"), metadata=admin.metadata
    )
    ended = await end_of(admin, gone.execution_id)
    assert ended.state == FAILED
    assert reason_of(ended) == "FUNCTION_NOT_FOUND"
    assert ended.function_name == "test.double"
    assert ended.owner == "admin"


# Cancelling


async def test_a_running_one_is_cancelled(admin: Caller) -> None:
    await add(admin, "test.spin", SPIN)
    await add(admin, "test.double", DOUBLE)
    execution = await admin.execute("test.spin", durable=True, detach=True)
    await state_of(admin, execution.execution_id, RUNNING)
    cancelled = await cancel(admin, execution.execution_id)
    assert cancelled.state == CANCELLED
    assert reason_of(cancelled) == "EXECUTION_CANCELLED"
    assert await cancel(admin, execution.execution_id) == cancelled
    # All sandboxes are free again.
    async with asyncio.timeout(END_SECONDS / 3):
        executions = await asyncio.gather(
            *(admin.execute("test.double", {"n": n}, durable=True) for n in range(4))
        )
    assert {execution.state for execution in executions} == {COMPLETED}
    assert await look(admin, execution.execution_id) == cancelled
    assert not await dead_letters(admin)


async def test_a_pending_one_is_cancelled_and_never_runs(admin: Caller) -> None:
    await add(admin, "test.spin", SPIN)
    await add(admin, "test.double", DOUBLE)
    running = [
        (await admin.execute("test.spin", durable=True, detach=True)).execution_id for _ in range(2)
    ]
    for execution_id in running:
        await state_of(admin, execution_id, RUNNING)
    pending = await admin.execute("test.double", {"n": 1}, durable=True, detach=True)
    assert (await cancel(admin, pending.execution_id)).state == CANCELLED
    for execution_id in running:
        assert (await cancel(admin, execution_id)).state == CANCELLED
    async with asyncio.timeout(END_SECONDS / 3):
        done = await admin.execute("test.double", {"n": 1}, durable=True)
    assert done.state == COMPLETED
    still = await look(admin, pending.execution_id)
    assert still.state == CANCELLED
    assert not still.HasField("start_time")


async def test_whoever_waits_hears_of_the_cancellation(admin: Caller) -> None:
    await add(admin, "test.spin", SPIN)
    waiting = asyncio.create_task(admin.execute("test.spin", durable=True, request_id="mine"))
    streaming = asyncio.create_task(admin.stream("test.spin", durable=True))
    page: Any = None

    async def both_run() -> bool:
        nonlocal page
        page = await admin.stub.ListExecutions(
            pb.ListExecutionsRequest(states=[RUNNING]), metadata=admin.metadata
        )
        return len(page.executions) == 2

    await until(both_run)
    for execution in page.executions:
        await cancel(admin, execution.execution_id)
    async with asyncio.timeout(END_SECONDS / 3):
        assert (await waiting).state == CANCELLED
        assert (await streaming)[-1].ended.state == CANCELLED


# Surviving


async def test_they_survive_a_restart(redis: Redis, shared_valkey: str, short_dir: Path) -> None:
    async with run_world(shared_valkey, short_dir, work_lease=LEASE) as world:
        await add(world.admin, "test.slow", SLOW)
        started = [
            await world.admin.execute(
                "test.slow", {"n": n, "seconds": 1.5}, durable=True, detach=True
            )
            for n in range(6)
        ]
        await state_of(world.admin, started[0].execution_id, RUNNING)
    async with run_world(shared_valkey, short_dir, work_lease=LEASE) as world:
        for n, execution in enumerate(started):
            ended = await end_of(world.admin, execution.execution_id)
            assert (ended.state, ended.output.number_value) == (COMPLETED, 2 * n)
            assert ended.create_time == execution.create_time
        assert not await dead_letters(world.admin)


async def test_a_killed_sandbox_loses_no_durable_execution(admin: Caller) -> None:
    await add(admin, "test.slow", COUNT)
    # Long enough to be killed on the way, however fast the machine is.
    end = time.time() + 4.0
    running = [
        asyncio.create_task(
            admin.execute(
                "test.slow", {"n": index, "until": end}, durable=True, retry_policy=retries(20)
            )
        )
        for index in range(4)
    ]

    async def tried_again() -> bool:
        for pid in sandboxes():
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.3)
        request = pb.ListExecutionsRequest(function_name="test.slow")
        page = await admin.stub.ListExecutions(request, metadata=admin.metadata)
        return any(execution.attempts > 1 for execution in page.executions)

    await until(tried_again)
    executions = await asyncio.gather(*running)
    for index, execution in enumerate(executions):
        assert (execution.state, execution.output.number_value) == (COMPLETED, index)
    assert max(execution.attempts for execution in executions) > 1
    assert not await dead_letters(admin)


async def test_a_killed_sandbox_is_said_to_those_that_are_not_durable(admin: Caller) -> None:
    await add(admin, "test.spin", SPIN)
    await add(admin, "test.double", DOUBLE)
    running = [asyncio.create_task(admin.execute("test.spin")) for _ in range(2)]

    async def all_run() -> bool:
        page = await admin.stub.ListExecutions(
            pb.ListExecutionsRequest(states=[RUNNING]), metadata=admin.metadata
        )
        return len(page.executions) == 2

    await until(all_run)
    for pid in sandboxes():
        os.kill(pid, signal.SIGKILL)
    for task in running:
        error = await refused(task)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SANDBOX_LOST")
    for execution in await asyncio.gather(
        *(admin.execute("test.double", {"n": n}) for n in range(8))
    ):
        assert execution.state == COMPLETED
    page = await admin.stub.ListExecutions(
        pb.ListExecutionsRequest(function_name="test.spin"), metadata=admin.metadata
    )
    assert {execution.state for execution in page.executions} == {FAILED}
    assert len(sandboxes()) <= 2


async def test_idle_sandboxes_that_are_killed_are_not_noticed(admin: Caller) -> None:
    await add(admin, "test.double", DOUBLE)
    for _ in range(3):
        for pid in sandboxes():
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.2)
        execution = await admin.execute("test.double", {"n": 4}, durable=True)
        assert (execution.state, execution.output.number_value) == (COMPLETED, 8)
        lost = 0
        for _ in range(4):
            try:
                assert (await admin.execute("test.double", {"n": 4})).state == COMPLETED
            except grpc.aio.AioRpcError as error:
                assert from_rpc_error(error).reason == "SANDBOX_LOST"
                lost += 1
        assert lost <= 2


async def test_another_server_finishes_what_a_killed_one_had(
    redis: Redis, shared_valkey: str, short_dir: Path
) -> None:
    """Both know the mesh's key; Redis and the database are one."""
    database = f"sqlite:///{short_dir / 'mesh.db'}"
    first, second = short_dir / "a", short_dir / "b"
    environment = {
        "BXMESH_REDIS_URL": shared_valkey,
        "BXMESH_DATABASE_URL": database,
        "BXMESH_FUNCTION_WORKERS": "2",
        "BXMESH_WORK_LEASE": str(LEASE),
    }
    async with run_world(
        shared_valkey, second, database_url=database, work_lease=LEASE, function_workers=2
    ) as world:
        first.mkdir(mode=0o700)
        for name in ("mesh.key", "admin.key"):
            (first / name).write_bytes((second / name).read_bytes())
            (first / name).chmod(0o600)
        await add(world.admin, "test.slow", SLOW)
        services = ("--services", "registry,agent,functions,security")
        server = EmbeddedMesh(first, workers=0, env=environment, arguments=services)
        await asyncio.to_thread(server.start)
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                caller = Caller(channel, world.admin.metadata)
                started = [
                    await caller.execute(
                        "test.slow", {"n": n, "seconds": 1}, durable=True, detach=True
                    )
                    for n in range(10)
                ]
                pids = sandboxes(server.pid)
                assert pids
                waiting = asyncio.create_task(
                    caller.execute("test.slow", {"n": 1, "seconds": 3}, durable=True)
                )
                await asyncio.sleep(0.7)
                await asyncio.to_thread(server.kill)
                error = await refused(waiting)
                assert error.code is grpc.StatusCode.UNAVAILABLE
        finally:
            await asyncio.to_thread(server.stop)
        for n, execution in enumerate(started):
            ended = await end_of(world.admin, execution.execution_id)
            assert (ended.state, ended.output.number_value) == (COMPLETED, 2 * n)
        # Sandboxes do not outlive their server.
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        assert not await dead_letters(world.admin)

"""Functions stored and executed over real gRPC."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.client.errors import from_status
from tests.functions.mesh import (
    CANCELLED,
    COMPLETED,
    FAILED,
    LIMITED,
    Caller,
    World,
    objects,
    refused,
    schema,
)

DOUBLE = "def main(n):\n    return {'twice': n * 2}\n"


async def test_a_function_is_stored_and_executed(admin: Caller) -> None:
    stored = await admin.create(
        "math.double",
        DOUBLE,
        input_schema=objects(["n"], n={"type": "integer"}),
        output_schema=objects(["twice"], twice={"type": "integer"}),
    )
    assert (stored.version, list(stored.aliases)) == ("1.0.0", ["latest"])
    assert stored.owner == "admin"
    execution = await admin.execute("math.double", {"n": 21})
    assert execution.state == COMPLETED, execution.error
    assert execution.output.struct_value["twice"] == 42
    assert execution.function_version == "1.0.0"
    assert execution.HasField("start_time")
    assert execution.cpu_time.ToMicroseconds() > 0
    assert execution.peak_memory_bytes > 1 << 20


async def test_what_it_prints_is_kept(admin: Caller) -> None:
    execution = await admin.run(
        "def main():\n    print('one')\n    print('two', 2)\n    return None\n"
    )
    assert (execution.state, execution.printed) == (COMPLETED, "one\ntwo 2\n")
    answer = await admin.stub.GetExecution(
        pb.GetExecutionRequest(execution_id=execution.execution_id), metadata=admin.metadata
    )
    assert answer.execution == execution


async def test_a_function_that_fails_is_no_failed_call(admin: Caller) -> None:
    execution = await admin.run("import json\n\ndef main():\n    return json.loads('{')\n")
    assert execution.state == FAILED
    assert "JSONDecodeError" in execution.error.message
    assert "(line 4)" in execution.error.message
    assert (await admin.run("def main():\n    return 1\n", "test.next")).state == COMPLETED


async def test_coroutines_run(admin: Caller) -> None:
    execution = await admin.run("async def main(a):\n    return [a, a]\n", a="x")
    assert [value.string_value for value in execution.output.list_value.values] == ["x", "x"]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("float('nan')", "OUTPUT_INVALID"),
        ("{1, 2}", "OUTPUT_INVALID"),
        ("b'bytes'", "OUTPUT_INVALID"),
        ("{1: 2}", "OUTPUT_INVALID"),
        ("2**80", "OUTPUT_INVALID"),
        ("'x'", "OUTPUT_MISMATCH"),
        ("{'more': 1, 'n': 1}", "OUTPUT_MISMATCH"),
    ],
)
async def test_outputs_are_checked(admin: Caller, result: str, reason: str) -> None:
    await admin.create(
        "test.output",
        f"def main():\n    return {result}\n",
        output_schema=objects(["n"], n={"type": "integer"}),
    )
    execution = await admin.execute("test.output")
    assert execution.state == FAILED
    assert error_reason(execution) == reason


async def test_inputs_are_checked_before(admin: Caller) -> None:
    await admin.create(
        "math.double", DOUBLE, input_schema=objects(["n"], n={"type": "integer", "minimum": 1})
    )
    for arguments, place in (({"n": 0}, "input.n"), ({}, "input"), ({"n": 1, "m": 2}, "input")):
        error = await refused(admin.execute("math.double", arguments))
        assert error.reason == "SCHEMA_MISMATCH"
        assert error.field_violations[0][0] == place


async def test_limits_end_a_call_and_the_next_one_works(admin: Caller) -> None:
    await admin.create("test.spin", "def main():\n    while True:\n        pass\n")
    limits = pb.FunctionLimits()
    limits.timeout.FromMilliseconds(200)
    execution = await admin.execute("test.spin", limits=limits)
    assert execution.state == LIMITED
    assert error_reason(execution) == "TIME_LIMIT"
    execution = await admin.run("def main():\n    return 'x' * 10**9\n", "test.memory")
    assert (execution.state, error_reason(execution)) == (LIMITED, "MEMORY_LIMIT")
    execution = await admin.run("def main():\n    return main()\n", "test.deep")
    assert (execution.state, error_reason(execution)) == (LIMITED, "RECURSION_LIMIT")
    execution = await admin.run(
        "def main():\n    while True:\n        print('x' * 1000)\n", "test.flood"
    )
    assert (execution.state, error_reason(execution)) == (LIMITED, "OUTPUT_LIMIT")
    assert len(execution.printed) <= 1 << 20
    execution = await admin.run("def main():\n    return ['y' * 1000] * 2000\n", "test.large")
    assert (execution.state, error_reason(execution)) == (LIMITED, "OUTPUT_LIMIT")
    assert (await admin.run("def main():\n    return 1\n", "test.next")).state == COMPLETED


async def test_events_come_in_order(admin: Caller) -> None:
    await admin.create(
        "test.steps",
        "import mesh\n\nasync def main(n):\n    for i in range(n):\n        print('step', i)\n"
        "        await mesh.progress({'done': i})\n    return n\n",
        is_async=True,
        host_functions=["mesh.progress"],
    )
    events = await admin.stream("test.steps", {"n": 3})
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", *["printed", "progress"] * 3, "ended"]
    assert events[2].progress.json.json == '{"done": 0}'
    assert events[-1].ended.state == COMPLETED
    assert events[-1].ended.printed == "step 0\nstep 1\nstep 2\n"


async def test_a_running_execution_can_be_cancelled(admin: Caller) -> None:
    await admin.create("test.spin", "def main():\n    while True:\n        pass\n")
    running = asyncio.create_task(admin.execute("test.spin"))
    execution_id = await first_running(admin)
    answer = await admin.stub.CancelExecution(
        pb.CancelExecutionRequest(execution_id=execution_id), metadata=admin.metadata
    )
    assert answer.execution.state == CANCELLED
    assert (await running).state == CANCELLED
    again = await admin.stub.CancelExecution(
        pb.CancelExecutionRequest(execution_id=execution_id), metadata=admin.metadata
    )
    assert again.execution == answer.execution


async def test_who_goes_away_cancels_the_execution(admin: Caller) -> None:
    await admin.create("test.spin", "def main():\n    while True:\n        pass\n")
    running = asyncio.create_task(admin.execute("test.spin"))
    execution_id = await first_running(admin)
    running.cancel()
    for _ in range(100):
        answer = await admin.stub.GetExecution(
            pb.GetExecutionRequest(execution_id=execution_id), metadata=admin.metadata
        )
        if answer.execution.state == CANCELLED:
            break
        await asyncio.sleep(0.05)
    assert answer.execution.state == CANCELLED


async def test_a_repeated_request_gets_the_first_answer(admin: Caller) -> None:
    await admin.create(
        "test.once",
        "import random\n\ndef main():\n    return random.random()\n",
        allowed_imports=["random"],
    )
    first, second = await asyncio.gather(
        *(admin.execute("test.once", request_id="same") for _ in range(2))
    )
    assert first.execution_id == second.execution_id
    assert first.output == second.output
    assert (await admin.execute("test.once", request_id="other")).output != first.output


async def test_the_history_pages_and_filters(admin: Caller) -> None:
    for index in range(5):
        await admin.run(f"def main():\n    return {index}\n", f"test.f{index % 2}")
    request = pb.ListExecutionsRequest(page_size=2)
    seen: list[str] = []
    while True:
        page = await admin.stub.ListExecutions(request, metadata=admin.metadata)
        seen += [execution.execution_id for execution in page.executions]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert len(seen) == 5
    assert seen == sorted(seen, reverse=True)
    page = await admin.stub.ListExecutions(
        pb.ListExecutionsRequest(function_name="test.f1"), metadata=admin.metadata
    )
    assert len(page.executions) == 2
    page = await admin.stub.ListExecutions(
        pb.ListExecutionsRequest(states=[FAILED]), metadata=admin.metadata
    )
    assert not page.executions


async def test_figures_count_what_ended(admin: Caller) -> None:
    await admin.create("test.maybe", "def main(n):\n    return 1 // n\n")
    for n in (1, 1, 1, 0):
        await admin.execute("test.maybe", {"n": n})
    stats = await admin.stub.GetFunctionStats(
        pb.GetFunctionStatsRequest(name="test.maybe"), metadata=admin.metadata
    )
    assert (stats.executions, stats.completed, stats.limit_exceeded) == (4, 3, 0)
    assert 0 < stats.duration_p50.ToMicroseconds() <= stats.duration_p99.ToMicroseconds()
    assert abs(stats.last_time.ToSeconds() - time.time()) < 60


async def test_others_see_neither_functions_nor_executions(world: World, admin: Caller) -> None:
    alice = await world.caller("alice", team="blue")
    bob = await world.caller("bob", team="blue")
    carol = await world.caller("carol", team="red")
    mine = await alice.run("def main():\n    return 'secret'\n", "alice.own")
    for other in (bob, carol):
        assert (await refused(other.execute("alice.own"))).reason == "FUNCTION_NOT_FOUND"
        error = await refused(
            other.stub.GetExecution(
                pb.GetExecutionRequest(execution_id=mine.execution_id), metadata=other.metadata
            )
        )
        assert error.reason == "EXECUTION_NOT_FOUND"
        page = await other.stub.ListExecutions(pb.ListExecutionsRequest(), metadata=other.metadata)
        assert not page.executions
        page = await other.stub.ListFunctions(pb.ListFunctionsRequest(), metadata=other.metadata)
        assert not page.functions
        error = await refused(other.create("alice.own", DOUBLE))
        assert error.reason == "NOT_THE_OWNER"
    await alice.create("alice.team", DOUBLE, visibility=2)
    assert (await bob.execute("alice.team", {"n": 1})).state == COMPLETED
    assert (await refused(carol.execute("alice.team", {"n": 1}))).reason == "FUNCTION_NOT_FOUND"
    assert (await admin.execute("alice.own")).state == COMPLETED


async def test_permissions_are_asked_for(world: World) -> None:
    reader = await world.caller("reader", "function_read")
    error = await refused(reader.execute("any.thing"))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED


async def test_many_wait_for_few_workers(admin: Caller) -> None:
    await admin.create(
        "math.double",
        DOUBLE,
        input_schema=schema(type="object", properties={"n": {}}, required=["n"]),
    )
    executions = await asyncio.gather(*(admin.execute("math.double", {"n": n}) for n in range(100)))
    assert [e.output.struct_value["twice"] for e in executions] == [2 * n for n in range(100)]


async def first_running(caller: Caller) -> str:
    """The name of an execution that is under way."""
    for _ in range(100):
        page = await caller.stub.ListExecutions(
            pb.ListExecutionsRequest(states=[pb.EXECUTION_STATE_RUNNING]), metadata=caller.metadata
        )
        if page.executions:
            name: str = page.executions[0].execution_id
            return name
        await asyncio.sleep(0.05)
    raise AssertionError("nothing runs")


def error_reason(execution: pb.Execution) -> str:
    """The reason in an execution's error."""
    return from_status(execution.error).reason


async def test_host_modules_may_be_imported_anywhere(admin: Caller) -> None:
    execution = await admin.run_with(
        "async def main():\n    import mesh\n    return await mesh.discover('no.body')\n",
        "mesh.discover",
    )
    assert execution.state == COMPLETED, execution.error


async def test_what_the_sandbox_lacks_is_said_of_the_code(admin: Caller) -> None:
    for code in ("class A(int):\n    pass\n", "def f():\n    yield 1\n", "x = 1\ndel x\n"):
        error = await refused(admin.create("test.lacking", f"{code}def main():\n    return 1\n"))
        assert (error.reason, error.field_violations[0][0]) == ("CODE_INVALID", "function.code")
        assert "The sandbox knows no" in error.message


async def test_a_lost_sandbox_is_said_and_the_same_request_may_be_repeated(
    admin: Caller,
) -> None:
    await admin.create("test.spin", "def main(n):\n    while n:\n        pass\n    return 'done'\n")
    running = asyncio.create_task(admin.execute("test.spin", {"n": 1}, request_id="same"))
    await first_running(admin)
    for worker in sandbox_workers():
        os.kill(worker, signal.SIGKILL)
    error = await refused(running)
    assert (error.reason, error.code) == ("SANDBOX_LOST", grpc.StatusCode.UNAVAILABLE)
    again = await admin.execute("test.spin", {"n": 0}, request_id="same")
    assert (again.state, again.output.string_value) == (COMPLETED, "done")


def sandbox_workers() -> list[int]:
    """The processes of the sandbox that this process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, parent = path.read_text().split()[1:4:2]
        except OSError:
            continue
        if "monty" in name and int(parent) == os.getpid():
            found.append(int(path.parent.name))
    return found

"""Stored functions from Python."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import grpc
import pytest
from pydantic import BaseModel, Field

from bxmesh.client import (
    AsyncMesh,
    Execution,
    ExecutionEvent,
    FailedPrecondition,
    FunctionFailed,
    FunctionLimits,
    InvalidInput,
    Mesh,
    NotFound,
    RetryPolicy,
)
from bxmesh.client.functions.source import source_of
from bxmesh.server.embedded import EmbeddedMesh
from tests.sdk.agents import name as unique
from tests.sdk.agents import soon

SPIN = "def main():\n    while True:\n        pass\n"
STEPS = """\
import mesh

async def main(n):
    for i in range(n):
        print('step', i)
        await mesh.progress({'done': i})
    return n
"""


@pytest.fixture
def name() -> str:
    """A function's name that no other test has."""
    return unique("test.f").replace("-", "_")


class Atom(BaseModel):
    element: str
    occupancy: Annotated[float, Field(ge=0, le=1)] = 1.0


def scaled(values: list[float], factor: float = 2.0) -> list[float]:
    return [value * factor for value in values]


def occupied(
    atoms: list[Atom],
    *,
    kind: Literal["all", "heavy"] = "all",
) -> dict[str, int]:
    # Comments stay.
    chosen = [a for a in atoms if kind == "all" or a["element"] != "H"]
    return {"atoms": len(chosen)}


async def test_a_python_function_becomes_a_stored_one(mesh: AsyncMesh, name: str) -> None:
    stored = await mesh.functions.create(
        name, scaled, description="Scales.", example={"values": [1]}, labels={"for": "tests"}
    )
    assert (stored.version, stored.entry_point, stored.existed) == ("1.0.0", "scaled", False)
    assert stored.code.startswith("def scaled(values: list[float], factor: float = 2.0)")
    assert stored.input_schema is not None
    assert stored.input_schema["required"] == ["values"]
    assert stored.output_schema == {"items": {"type": "number"}, "type": "array"}
    assert (stored.owner, stored.visibility, stored.engine) == ("admin", "owner", "sandbox")
    assert (stored.example, stored.labels) == ({"values": [1]}, {"for": "tests"})
    assert await mesh.functions.call(name, values=[1, 2.5]) == [2, 5]
    with pytest.raises(InvalidInput) as refused:
        await mesh.functions.call(name, values="many")
    assert refused.value.reason == "SCHEMA_MISMATCH"
    assert refused.value.field_violations[0][0] == "input.values"
    again = await mesh.functions.create(
        name, scaled, description="Scales.", example={"values": [1]}, labels={"for": "tests"}
    )
    assert again.existed
    assert await mesh.functions.get(name, stored.digest) == stored
    # What does not decide what it does is as it was given last.
    assert (await mesh.functions.create(name, scaled, description="Multiplies.")).existed
    found = await mesh.functions.get(name, stored.digest)
    assert (found.description, found.labels) == ("Multiplies.", {})
    assert (found.version, found.create_time) == (stored.version, stored.create_time)


async def test_annotations_of_elsewhere_become_schemas_alone(mesh: AsyncMesh, name: str) -> None:
    stored = await mesh.functions.create(name, occupied)
    assert stored.code.startswith("from typing import Any\n\n\ndef occupied(\n    atoms: Any,\n")
    assert "# Comments stay." in stored.code
    atoms = [Atom(element="H"), Atom(element="C", occupancy=0.5)]
    assert (await mesh.functions.execute(name, {"atoms": atoms})).value == {"atoms": 2}
    assert await mesh.functions.call(name, atoms=atoms, kind="heavy") == {"atoms": 1}
    for wrong in ({"atoms": [{"element": "C", "occupancy": 2}]}, {"atoms": [], "kind": "light"}):
        with pytest.raises(InvalidInput):
            await mesh.functions.execute(name, wrong)


def area(radius: float) -> float:
    return math.pi * radius**2


@cache
def decorated() -> int:
    return 1


def by_place(a: int, /) -> int:
    return a


def of_connections(mesh: AsyncMesh) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (area, "uses math from outside of itself"),
        (decorated, "write one, or give the source text"),
        (by_place, "called by keywords"),
        (of_connections, "no JSON Schema"),
        (lambda: 1, "give the source text"),
        (len, "give the source text"),
        (Path("/no/such/file.py"), "cannot be read"),
    ],
)
def test_what_cannot_be_stored_says_what_to_do(function: Any, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        source_of(function)
    assert says in refused.value.message


def test_a_source_that_is_not_there() -> None:
    space: dict[str, Callable[..., Any]] = {}
    exec("def typed(): return 1", space)
    with pytest.raises(InvalidInput, match="define it in a file, or give the source text"):
        source_of(space["typed"])


async def test_text_and_files(mesh: AsyncMesh, name: str, tmp_path: Path) -> None:
    path = tmp_path / "function.py"
    path.write_text("async def main(text):\n    return text + 'ü'\n", encoding="utf-8")
    assert (await mesh.functions.create(name, path)).is_async
    assert await mesh.functions.call(name, text="ä") == "äü"
    with pytest.raises(InvalidInput) as refused:
        await mesh.functions.validate(name, "import os\n\ndef main():\n    import socket\n")
    assert [field for field, _ in refused.value.field_violations] == ["function.code"] * 2
    checked = await mesh.functions.validate(
        name,
        "def go(element, occupancy=1):\n    return element\n",
        entry_point="go",
        input_schema=Atom,
    )
    assert (checked.version, checked.entry_point) == ("", "go")
    assert checked.input_schema is not None
    assert checked.input_schema["properties"]["occupancy"]["maximum"] == 1


async def test_versions_and_aliases(mesh: AsyncMesh, name: str) -> None:
    functions = mesh.functions
    for number in (1, 2):
        await functions.create(name, f"def main():\n    return {number}\n", aliases=["newest"])
    await functions.alias(name, "stable", "1.0.0")
    assert (await functions.execute(name, version="stable")).value == 1
    assert await functions.call(name) == 2
    found = [function async for function in functions.versions(name, page_size=1)]
    assert [(one.version, one.aliases, one.code) for one in found] == [
        ("1.0.1", ("latest", "newest"), ""),
        ("1.0.0", ("stable",), ""),
    ]
    assert name in [one.name async for one in functions.list(page_size=1)]
    assert [one.name async for one in functions.list(labels={"no": "such"})] == []
    with pytest.raises(FailedPrecondition) as refused:
        await functions.create(name, "def main():\n    return 3\n", version="1.0.0")
    assert refused.value.reason == "VERSION_EXISTS"
    assert (await functions.alias(name, "stable")).version == "1.0.0"
    await functions.delete(name, "1.0.1")
    assert await functions.call(name) == 1
    await functions.delete(name)
    with pytest.raises(NotFound):
        await functions.get(name)


async def test_a_failure_says_where(mesh: AsyncMesh, name: str) -> None:
    await mesh.functions.create(name, "def main(n):\n    print('dividing')\n    return 1 // n\n")
    execution = await mesh.functions.execute(name, {"n": 0})
    assert (execution.state, execution.done, execution.output) == ("failed", True, None)
    with pytest.raises(FunctionFailed) as raised:
        _ = execution.value
    error = raised.value
    assert (error.reason, error.line, error.printed) == ("FUNCTION_FAILED", 3, "dividing\n")
    assert error.code is grpc.StatusCode.ABORTED
    assert name in error.message
    assert "ZeroDivisionError" in error.message
    with pytest.raises(FunctionFailed):
        await mesh.functions.call(name, n=0)
    with pytest.raises(InvalidInput, match="beyond 2\\^53"):
        await mesh.functions.call(name, n=2**60)
    with pytest.raises(InvalidInput, match=r"input\.n\[1\] is nan"):
        await mesh.functions.call(name, n=[1, float("nan")])
    with pytest.raises(InvalidInput, match="must be an object"):
        await mesh.functions.execute(name, [1])


async def test_limits(mesh: AsyncMesh, name: str) -> None:
    limits = FunctionLimits(timeout=10.0, memory=32 << 20, recursion=50, output=1000)
    stored = await mesh.functions.create(name, SPIN, limits=limits)
    assert stored.limits == limits
    execution = await mesh.functions.execute(name, limits=FunctionLimits(timeout=0.2))
    assert execution.state == "limit_exceeded"
    with pytest.raises(FunctionFailed) as raised:
        _ = execution.value
    assert (raised.value.reason, raised.value.line) == ("TIME_LIMIT", None)
    assert execution.duration is not None
    assert 0.1 < execution.duration < 5


async def test_events_come_as_they_happen(mesh: AsyncMesh, name: str) -> None:
    await mesh.functions.create(name, STEPS, host_functions=["mesh.progress"])
    for durable in (False, True):
        stream = mesh.functions.stream(name, {"n": 2}, durable=durable)
        async with aclosing(stream) as events:
            found = [event async for event in events]
        assert [event.kind for event in found] == [
            "started", "printed", "progress", "printed", "progress", "ended",
        ]  # fmt: skip
        assert [found[1].printed, found[2].progress] == ["step 0\n", {"done": 0}]
        assert found[-1].execution is not None
        assert found[-1].execution.value == 2
        assert found[-1].execution.printed == "step 0\nstep 1\n"


async def stepping(n: int) -> int:
    for i in range(n):
        await mesh.progress({"done": i})  # type: ignore[name-defined]  # noqa: F821
    return n


async def test_a_python_function_calls_the_host(mesh: AsyncMesh, name: str) -> None:
    stored = await mesh.functions.create(name, stepping, host_functions=["mesh.progress"])
    assert stored.code.startswith("import mesh\n\n\nasync def stepping(n: int) -> int:\n")
    events = [event async for event in mesh.functions.stream(name, {"n": 1})]
    assert [event.progress for event in events if event.kind == "progress"] == [{"done": 0}]


async def test_who_leaves_a_stream_cancels_the_execution(mesh: AsyncMesh, name: str) -> None:
    await mesh.functions.create(name, SPIN)
    async with aclosing(mesh.functions.stream(name)) as events:
        started: ExecutionEvent = await anext(events)
    assert started.execution is not None
    ended = await soon(mesh.functions.wait_for_execution(started.execution.execution_id))
    assert ended.state == "cancelled"


async def test_executions_that_go_on_without_their_caller(mesh: AsyncMesh, name: str) -> None:
    functions = mesh.functions
    await functions.create(name, "def main(n):\n    return 1 // n\n")
    once = unique("request")
    detached = [
        await functions.execute(name, {"n": 1}, durable=True, detach=True, request_id=once)
        for _ in range(2)
    ]
    assert detached[0].execution_id == detached[1].execution_id
    done = await soon(functions.wait_for_execution(detached[0].execution_id))
    assert (done.value, done.attempts) == (1, 1)
    again = RetryPolicy(max_attempts=2, initial_backoff=0.01)
    failed = await soon(functions.execute(name, {"n": 0}, durable=True, retry=again))
    assert (failed.state, failed.attempts) == ("failed", 2)
    with pytest.raises(InvalidInput, match="only durable"):
        await functions.execute(name, {"n": 1}, detach=True)


async def test_history_and_figures(mesh: AsyncMesh, name: str) -> None:
    functions = mesh.functions
    await functions.create(name, "def main(n):\n    return 1 // n\n")
    ran = [await functions.execute(name, {"n": n}) for n in (1, 0, 1)]
    found = [one async for one in functions.executions(name, page_size=2)]
    assert [one.execution_id for one in found] == [one.execution_id for one in reversed(ran)]
    failed = [one async for one in functions.executions(name, states=["failed"])]
    assert [one.execution_id for one in failed] == [ran[1].execution_id]
    assert await functions.execution(ran[0].execution_id) == ran[0]
    figures = await functions.stats(name)
    assert (figures.executions, figures.completed, figures.limit_exceeded) == (3, 2, 0)
    assert 0 < figures.duration_p50 <= figures.duration_p99 < 10
    assert figures.last_time == max(one.end_time for one in ran if one.end_time)
    with pytest.raises(NotFound):
        await functions.execution("nothing")


async def test_a_running_execution_is_cancelled(mesh: AsyncMesh, name: str) -> None:
    functions = mesh.functions
    await functions.create(name, SPIN)
    running = asyncio.create_task(functions.execute(name))
    found: list[Execution] = []
    while not found:
        found = [one async for one in functions.executions(name, states=["running"])]
    with pytest.raises(FailedPrecondition, match="wait for its end"):
        _ = found[0].value
    assert (await functions.cancel(found[0].execution_id)).state == "cancelled"
    with pytest.raises(FunctionFailed, match="was cancelled") as raised:
        _ = (await soon(running)).value
    assert raised.value.reason == "EXECUTION_CANCELLED"


def test_without_asyncio(shared_server: EmbeddedMesh, name: str) -> None:
    with Mesh(shared_server.address, state_dir=shared_server.state_dir) as mesh:
        mesh.functions.create(name, scaled)
        assert mesh.functions.call(name, values=[1]) == [2]
        assert [one.version for one in mesh.functions.versions(name)] == ["1.0.0"]
        kinds = [event.kind for event in mesh.functions.stream(name, {"values": []})]
        assert kinds == ["started", "ended"]
        assert mesh.functions.stats(name).completed == 2
        mesh.functions.delete(name)


def test_the_client_stays_light() -> None:
    code = "import sys, bxmesh.client; print([m for m in sys.modules if 'bxmesh.server' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""What functions call of the mesh, and for whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from bxmesh.agent.v1 import message_pb2, task_pb2
from bxmesh.client import Agent, AsyncMesh, Message, TaskContext, on, task
from bxmesh.client.errors import from_status
from bxmesh.client.functions import FunctionFailed
from tests.functions.mesh import COMPLETED, FAILED, Caller, World, refused

CALLS = {
    "discover": "found = await mesh.discover('test.double')\n    return [a['agent_id'] for a in found]",
    "assign": "return await mesh.assign('test.double', {'n': 4})",
    "request": "return await mesh.request('helper', 'test.ask', {'n': 5})",
}


class Helper(Agent):
    """Doubles, as a task and as an answer."""

    @task("test.double")
    async def double(self, context: TaskContext) -> dict[str, int]:
        return {"n": context.parameters["n"] * 2}

    @on("test.ask")
    async def ask(self, message: Message) -> None:
        await message.reply("test.answer", {"n": message.payload["n"] * 2})


@pytest.fixture
async def helper(world: World, admin: Caller) -> AsyncIterator[Helper]:
    """An agent that is there to be called."""
    key = admin.metadata[0][1].removeprefix("Bearer ")
    async with (
        AsyncMesh(world.server.address, api_key=key) as mesh,
        Helper("helper").running(mesh) as agent,
    ):
        yield agent


async def store(caller: Caller, name: str, **fields: Any) -> None:
    await caller.create(
        f"test.{name}",
        f"import mesh\n\nasync def main():\n    {CALLS[name]}\n",
        is_async=True,
        host_functions=[f"mesh.{name}"],
        **fields,
    )


async def test_functions_call_agents(helper: Helper, admin: Caller) -> None:
    for name, answer in (("assign", {"n": 8.0}), ("request", {"n": 10.0})):
        await store(admin, name)
        execution = await admin.execute(f"test.{name}")
        assert execution.state == COMPLETED, execution.error
        assert dict(execution.output.struct_value) == answer
    await store(admin, "discover")
    execution = await admin.execute("test.discover")
    assert [v.string_value for v in execution.output.list_value.values] == ["helper"]


@pytest.mark.parametrize("durable", [False, True])
async def test_what_the_caller_may_not_its_functions_may_not(
    world: World, helper: Helper, admin: Caller, durable: bool
) -> None:
    alice = await world.caller("alice", "function_execute", "function_read")
    for name in CALLS:
        await store(admin, name, visibility=3)
        assert (await admin.execute(f"test.{name}")).state == COMPLETED
        execution = await alice.execute(f"test.{name}", durable=durable)
        assert execution.state == FAILED
        assert "PERMISSION_MISSING" in execution.error.message


async def test_refusals_can_be_caught(admin: Caller) -> None:
    execution = await admin.run_with(
        "import mesh\n\nasync def main():\n    try:\n        await mesh.assign('no.body', {})\n"
        "    except RuntimeError as error:\n        return str(error)\n",
        "mesh.assign",
    )
    assert execution.output.string_value.startswith("CAPABILITY_MISSING: No live agent offers")


async def test_what_is_not_granted_is_not_there(admin: Caller) -> None:
    error = await refused(
        admin.create(
            "test.more",
            "import mesh\n\nasync def main():\n    return await mesh.assign('a.b', {})\n",
            is_async=True,
            host_functions=["mesh.discover"],
        )
    )
    assert error.reason == "TYPES_INVALID"
    error = await refused(admin.create("test.more", "import mesh\n\ndef main():\n    return 1\n"))
    assert error.reason == "IMPORT_NOT_ALLOWED"


async def test_both_must_be_allowed(world: World, helper: Helper, admin: Caller) -> None:
    """What an agent does for others needs the permissions of both."""
    await store(admin, "discover", visibility=3)
    await world.caller("weak", "task_read")
    await world.caller("blind", "function_execute")
    error = await refused(admin.execute("test.discover", on_behalf_of="weak"))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert "weak lacks function_execute" in error.message
    for durable in (False, True):
        execution = await admin.execute("test.discover", on_behalf_of="blind", durable=durable)
        assert from_status(execution.error).reason == "FUNCTION_FAILED"
        assert "PERMISSION_MISSING" in execution.error.message
    unknown = await refused(admin.execute("test.discover", on_behalf_of="nobody"))
    # Who there is they are not told.
    assert (unknown.code, unknown.reason) == (error.code, error.reason)
    assert unknown.message == error.message.replace("weak", "nobody")
    await admin.create("test.private", "def main():\n    return 1\n")
    error = await refused(admin.execute("test.private", on_behalf_of="blind"))
    assert error.reason == "FUNCTION_NOT_FOUND"


class Echo(Agent):
    """Does its task with a function that assigns the same task."""

    def __init__(self, durable: bool) -> None:
        super().__init__("echo")
        self.durable = durable
        self.depths: list[int] = []
        self.reason = ""

    @task("test.again")
    async def again(self, context: TaskContext) -> None:
        self.depths.append(context.task.depth)
        try:
            execution = await self.mesh.functions.execute(
                "test.again", parent_task_id=context.id, durable=self.durable
            )
            assert execution.value is None
        except FunctionFailed as error:
            self.reason = self.reason or str(error)
            raise


@pytest.mark.parametrize("durable", [False, True])
async def test_what_functions_assign_does_not_come_back_to_its_agent(
    world: World, admin: Caller, durable: bool
) -> None:
    await admin.create(
        "test.again",
        "import mesh\n\nasync def main():\n    await mesh.assign('test.again')\n",
        is_async=True,
        host_functions=["mesh.assign"],
    )
    key = admin.metadata[0][1].removeprefix("Bearer ")
    echo = Echo(durable)
    async with AsyncMesh(world.server.address, api_key=key) as mesh, echo.running(mesh):
        execution = await admin.execute("test.again")
    assert execution.state == FAILED
    assert set(echo.depths) == {0}
    assert "TASK_CYCLE" in echo.reason


async def test_a_task_tells_for_whom_it_is_done(
    world: World, helper: Helper, admin: Caller
) -> None:
    """Nobody gives an agent more rights than it has itself by naming another."""
    may = ("task_assign", "task_read")
    strong = await world.caller("strong", *may, "function_execute")
    weak = await world.caller("weak", *may)

    async def assigned(caller: Caller, for_whom: str, parent: str = "") -> task_pb2.Task:
        spec = task_pb2.TaskSpec(
            task_type="test.double",
            required_capabilities=["test.double"],
            parent_task_id=parent,
            parameters=message_pb2.Payload(json=message_pb2.JsonPayload(json='{"n": 1}')),
        )
        answer = await caller.agents.AssignTask(
            task_pb2.AssignTaskRequest(spec=spec, on_behalf_of=for_whom),
            metadata=caller.metadata,
        )
        task: task_pb2.Task = answer.task
        return task

    assert (await assigned(weak, "")).on_behalf_of == "weak"
    assert (await assigned(strong, "weak")).on_behalf_of == "weak"
    assert (await assigned(weak, "strong")).on_behalf_of == "weak"
    assert (await assigned(admin, "strong")).on_behalf_of == "strong"

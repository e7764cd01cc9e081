"""Definitions of agents over real gRPC, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from redis.asyncio import Redis

from bxmesh.agent.v1 import function_pb2
from bxmesh.registry.v1 import agent_definition_pb2 as pb
from bxmesh.registry.v1 import agent_pb2, chain_pb2
from tests.functions.mesh import Caller, World, refused, schema
from tests.functions.mesh import world as run_world

DRAFT, ACTIVE, DRAINING, INACTIVE = (
    pb.DEFINITION_STATE_DRAFT,
    pb.DEFINITION_STATE_ACTIVE,
    pb.DEFINITION_STATE_DRAINING,
    pb.DEFINITION_STATE_INACTIVE,
)


@pytest.fixture
async def world(redis: Redis, shared_valkey: str, database_url: str) -> AsyncIterator[World]:
    async with run_world(shared_valkey, database_url=database_url) as running:
        yield running


@pytest.fixture
async def definitions(world: World) -> Definitions:
    return Definitions(world.admin)


class Definitions:
    """The definitions as one identity sees them."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.metadata = caller.metadata
        self.stub = caller.registry

    async def create(self, name: str = "helper", **fields: Any) -> pb.AgentDefinition:
        answer = await self.stub.CreateAgentDefinition(
            pb.CreateAgentDefinitionRequest(definition=definition(name, **fields)),
            metadata=self.metadata,
        )
        made: pb.AgentDefinition = answer.definition
        return made

    async def update(
        self, name: str = "helper", *, mask: tuple[str, ...] = (), revision: int = 0, **fields: Any
    ) -> pb.AgentDefinition:
        answer = await self.stub.UpdateAgentDefinition(
            pb.UpdateAgentDefinitionRequest(
                definition=pb.AgentDefinition(definition_id=name, **fields),
                update_mask=FieldMask(paths=mask) if mask else None,
                expected_revision=revision,
            ),
            metadata=self.metadata,
        )
        made: pb.AgentDefinition = answer.definition
        return made

    async def state(
        self, state: pb.DefinitionState.ValueType, name: str = "helper", version: int = 0
    ) -> pb.AgentDefinition:
        answer = await self.stub.SetAgentDefinitionState(
            pb.SetAgentDefinitionStateRequest(definition_id=name, state=state, version=version),
            metadata=self.metadata,
        )
        made: pb.AgentDefinition = answer.definition
        return made

    async def get(self, name: str = "helper", version: int = 0) -> pb.AgentDefinition:
        answer = await self.stub.GetAgentDefinition(
            pb.GetAgentDefinitionRequest(definition_id=name, version=version),
            metadata=self.metadata,
        )
        made: pb.AgentDefinition = answer.definition
        return made

    async def delete(self, name: str = "helper", revision: int = 0) -> None:
        await self.stub.DeleteAgentDefinition(
            pb.DeleteAgentDefinitionRequest(definition_id=name, expected_revision=revision),
            metadata=self.metadata,
        )

    async def names(self, **fields: Any) -> list[str]:
        answer = await self.stub.ListAgentDefinitions(
            pb.ListAgentDefinitionsRequest(**fields), metadata=self.metadata
        )
        return [each.definition_id for each in answer.definitions]

    def watch(self, after: int = 0) -> Any:
        return self.stub.WatchAgentDefinitions(
            pb.WatchAgentDefinitionsRequest(after_revision=after), metadata=self.metadata
        )


def definition(name: str, **fields: Any) -> pb.AgentDefinition:
    fields.setdefault("model", pb.ModelSettings(model="test:model"))
    return pb.AgentDefinition(definition_id=name, **fields)


def rule(function: str) -> pb.MessageRule:
    return pb.MessageRule(message_type="ask*", call=pb.ToolReference(function=function))


async def test_a_definition_is_a_draft_at_first(definitions: Definitions) -> None:
    made = await definitions.create(description="helps", labels={"team": "blue"})
    assert (made.state, made.version, made.active_version) == (DRAFT, 1, 0)
    assert (made.owner, made.revision) == ("admin", 1)
    assert await definitions.get() == made
    error = await refused(definitions.create())
    assert (error.reason, error.code) == ("DEFINITION_EXISTS", grpc.StatusCode.ALREADY_EXISTS)


async def test_updates_make_versions_and_old_ones_stay(definitions: Definitions) -> None:
    first = await definitions.create(description="one", system_prompt="Be brief.")
    second = await definitions.update(description="two", mask=("description",))
    assert (second.version, second.description, second.system_prompt) == (2, "two", "Be brief.")
    assert second.revision > first.revision
    third = await definitions.update(model=pb.ModelSettings(model="test:other"))
    assert (third.version, third.description, third.system_prompt) == (3, "", "")
    assert (await definitions.get(version=1)).description == "one"
    answer = await definitions.stub.ListAgentDefinitionVersions(
        pb.ListAgentDefinitionVersionsRequest(definition_id="helper", page_size=2),
        metadata=definitions.metadata,
    )
    assert [each.version for each in answer.definitions] == [3, 2]
    assert answer.next_page_token


async def test_masks_reach_into_messages_and_replace_lists(definitions: Definitions) -> None:
    await definitions.create(
        model=pb.ModelSettings(model="test:model", max_tokens=10),
        capabilities=[agent_pb2.Capability(name="a.b"), agent_pb2.Capability(name="c.d")],
    )
    changed = await definitions.update(
        model=pb.ModelSettings(temperature=0.5),
        capabilities=[agent_pb2.Capability(name="e.f")],
        mask=("model.temperature", "capabilities"),
    )
    assert (changed.model.model, changed.model.max_tokens) == ("test:model", 10)
    assert changed.model.temperature == 0.5
    assert [each.name for each in changed.capabilities] == ["e.f"]


@pytest.mark.parametrize("path", ["nothing", "owner", "revision", "model.nothing", "definition_id"])
async def test_bad_masks_are_named(definitions: Definitions, path: str) -> None:
    await definitions.create()
    error = await refused(definitions.update(mask=("description", path)))
    assert error.reason == "MASK_INVALID"
    assert error.field_violations[0][0] == "update_mask.paths[1]"


async def test_who_comes_second_is_told(definitions: Definitions) -> None:
    made = await definitions.create()
    await definitions.update(description="mine", mask=("description",))
    error = await refused(definitions.update(description="late", revision=made.revision))
    assert (error.reason, error.code) == ("REVISION_MISMATCH", grpc.StatusCode.ABORTED)
    assert (await refused(definitions.delete(revision=made.revision))).reason == "REVISION_MISMATCH"


async def test_updates_at_once_lose_nothing(definitions: Definitions) -> None:
    await definitions.create()

    async def one(index: int) -> str:
        try:
            await definitions.update(labels={str(index): "x"}, mask=("labels",))
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    answers = await asyncio.gather(*(one(index) for index in range(8)))
    assert set(answers) <= {"OK", "ABORTED"}
    assert (await definitions.get()).version == 1 + answers.count("OK")


async def test_a_version_runs_until_another_is_activated(definitions: Definitions) -> None:
    await definitions.create(description="one")
    active = await definitions.state(ACTIVE)
    assert (active.state, active.active_version) == (ACTIVE, 1)
    await definitions.update(description="two", mask=("description",))
    assert (await definitions.get()).active_version == 1
    assert (await definitions.state(ACTIVE)).active_version == 2
    back = await definitions.state(ACTIVE, version=1)
    assert (back.active_version, back.description) == (1, "one")
    assert await definitions.names(state=ACTIVE) == ["helper"]


async def test_draining_ends_when_no_agent_is_left(definitions: Definitions) -> None:
    await definitions.create()
    await definitions.state(ACTIVE)
    lease = await definitions.stub.RegisterAgent(
        agent_pb2.RegisterAgentRequest(
            agent_id="one", agent_type="definition", definition_id="helper"
        ),
        metadata=definitions.metadata,
    )
    await definitions.state(DRAINING)
    assert (await definitions.get()).state == DRAINING
    assert (await refused(definitions.delete())).reason == "DEFINITION_ACTIVE"
    await definitions.stub.DeregisterAgent(
        agent_pb2.DeregisterAgentRequest(agent_id="one", lease_id=lease.lease_id),
        metadata=definitions.metadata,
    )
    assert (await definitions.get()).state == INACTIVE
    await definitions.delete()
    assert (await refused(definitions.get())).reason == "DEFINITION_NOT_FOUND"


async def test_what_runs_cannot_be_deleted_nor_what_it_calls(definitions: Definitions) -> None:
    await definitions.caller.create("test.f", "def main():\n    return 1\n")
    await definitions.caller.create("test.f", "def main():\n    return 2\n")
    await definitions.create(rules=[rule("test.f@1.0.0")], model=None)
    await definitions.state(ACTIVE)
    assert (await refused(definitions.delete())).reason == "DEFINITION_ACTIVE"
    assert (await refused(delete_function(definitions, "test.f"))).reason == "FUNCTION_IN_USE"
    assert (await refused(delete_function(definitions, "test.f", "1.0.0"))).reason == (
        "FUNCTION_IN_USE"
    )
    await delete_function(definitions, "test.f", "1.0.1")
    await definitions.state(INACTIVE)
    await delete_function(definitions, "test.f")
    error = await refused(definitions.state(ACTIVE))
    assert (error.reason, error.field_violations[0][0]) == (
        "TOOL_UNKNOWN",
        "definition.rules[0].call.function",
    )


async def delete_function(definitions: Definitions, name: str, version: str = "") -> None:
    await definitions.caller.stub.DeleteFunction(
        function_pb2.DeleteFunctionRequest(name=name, version=version),
        metadata=definitions.metadata,
    )


CYCLE = chain_pb2.Chain(
    steps=[
        chain_pb2.ChainStep(step_id="a", capability="x.y", after=["b"]),
        chain_pb2.ChainStep(step_id="b", capability="x.y", after=["a"]),
    ]
)
TWO = chain_pb2.Chain(
    steps=[
        chain_pb2.ChainStep(step_id="a", capability="x.y"),
        chain_pb2.ChainStep(step_id="b", capability="x.y", after=["a"]),
    ]
)


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"tools": [pb.ToolReference(function="no.such")]}, "tools[0].function", "TOOL_UNKNOWN"),
        (
            {"tools": [pb.ToolReference(function="No!")]},
            "tools[0].function",
            "FUNCTION_REFERENCE_INVALID",
        ),
        ({"rules": [rule("no.such")], "model": None}, "rules[0].call.function", "TOOL_UNKNOWN"),
        ({"rules": [rule("no.such")]}, "rules", "BEHAVIOUR_AMBIGUOUS"),
        ({"input_schema": schema(type="nonsense")}, "input_schema", "SCHEMA_INVALID"),
        ({"model": pb.ModelSettings(model="gpt")}, "model.model", "MODEL_INVALID"),
        (
            {"model": pb.ModelSettings(model="a:b", base_url="ftp://x")},
            "model.base_url",
            "MODEL_INVALID",
        ),
        (
            {"model": pb.ModelSettings(model="a:b", base_url="https://key@host/")},
            "model.base_url",
            "MODEL_INVALID",
        ),
        ({"chain": CYCLE, "model": None, "max_chain_depth": 9}, "chain.steps", "CHAIN_CYCLIC"),
        ({"chain": TWO, "model": None, "max_chain_depth": 1}, "chain.steps", "CHAIN_TOO_DEEP"),
        ({"chain": TWO, "model": None}, "chain.steps", "CHAIN_TOO_DEEP"),
    ],
)
async def test_what_is_wrong_is_named(
    definitions: Definitions, fields: dict[str, Any], field: str, reason: str
) -> None:
    error = await refused(definitions.create(**fields))
    assert error.reason == reason
    assert error.field_violations[0][0] == f"definition.{field}"


async def test_what_does_nothing_is_not_activated(definitions: Definitions) -> None:
    await definitions.create(model=None)
    error = await refused(definitions.state(ACTIVE))
    assert error.reason == "DEFINITION_EMPTY"


async def test_a_watch_tells_what_runs_and_then_every_change(definitions: Definitions) -> None:
    await definitions.create("a")
    await definitions.state(ACTIVE, "a")
    await definitions.create("b")
    watch = definitions.watch()
    first = await watch.read()
    assert (first.definition.definition_id, first.complete) == ("a", True)
    await definitions.update("a", description="new", mask=("description",))
    change = await watch.read()
    # The version that runs, not the newest.
    assert (change.definition.version, change.definition.active_version) == (1, 1)
    await definitions.state(ACTIVE, "a")
    change = await watch.read()
    assert (change.definition.version, change.definition.description) == (2, "new")
    seen = change.revision
    watch.cancel()
    await definitions.state(INACTIVE, "a")
    await definitions.delete("a")
    again = definitions.watch(seen)
    last = await again.read()
    assert (last.definition.definition_id, last.deleted) == ("a", True)
    again.cancel()
    await definitions.create("a")
    assert (await definitions.get("a")).version == 1


async def test_an_empty_watch_says_so(definitions: Definitions) -> None:
    watch = definitions.watch()
    first = await watch.read()
    assert (first.complete, first.HasField("definition")) == (True, False)
    watch.cancel()


async def test_others_change_nothing(world: World, definitions: Definitions) -> None:
    await definitions.create()
    writer = await world.caller("writer", "registry_read", "registry_write")
    reader = await world.caller("reader", "registry_read")
    for call in (
        Definitions(writer).update(description="x"),
        Definitions(writer).state(ACTIVE),
        Definitions(writer).delete(),
    ):
        assert (await refused(call)).reason == "NOT_THE_OWNER"
    assert (await refused(Definitions(reader).create("mine"))).reason == "PERMISSION_MISSING"
    assert (await Definitions(reader).get()).definition_id == "helper"
    await Definitions(writer).create("mine")


async def test_lists_filter_and_page(definitions: Definitions) -> None:
    for index in range(5):
        await definitions.create(
            f"d{index}",
            capabilities=[agent_pb2.Capability(name=f"test.c{index % 2}")],
            labels={"half": str(index // 3)},
        )
    assert await definitions.names(capability="test.c1") == ["d1", "d3"]
    assert await definitions.names(labels={"half": "1"}) == ["d3", "d4"]
    request = pb.ListAgentDefinitionsRequest(page_size=2)
    seen = []
    while True:
        page = await definitions.stub.ListAgentDefinitions(request, metadata=definitions.metadata)
        seen += [each.definition_id for each in page.definitions]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [f"d{index}" for index in range(5)]

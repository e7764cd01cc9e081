"""`mesh.definitions`: agents as data."""

from __future__ import annotations

import asyncio
import re
import textwrap
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from bxmesh.client import (
    AsyncMesh,
    BxmeshError,
    DefinitionLimits,
    FailedPrecondition,
    InvalidInput,
    Mesh,
    ModelSettings,
    NotFound,
    Rule,
    Tool,
)
from bxmesh.client.chains import Chain, ChainStep
from bxmesh.client.definitions import DefinitionEvent
from bxmesh.client.definitions.files import from_text, to_text
from bxmesh.server.embedded import EmbeddedMesh
from tests.host.conftest import become
from tests.sdk.agents import name, soon

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "dynamic-agents.md"
ECHO = Rule("echo", Tool(capability="test.echo"), "echoed", {"a.b": "c"})


async def test_a_definition_is_what_was_said_of_it(mesh: AsyncMesh) -> None:
    model = ModelSettings("openai:some", "http://127.0.0.1:1/v1", 0.5, 100, 0.9, {"seed": 1})
    limits = DefinitionLimits(30.0, 4, 5, 6000)
    created = await mesh.definitions.create(
        unique := name("whole"),
        display_name="Whole",
        description="Has it all.",
        model=model,
        system_prompt="Be brief.",
        input_schema={"type": "object", "required": ["q"]},
        output_schema={"type": "object"},
        tools=[Tool(capability="test.echo")],
        capabilities=["test.whole"],
        limits=limits,
        max_chain_depth=2,
        replicas=3,
        labels={"for": "tests"},
    )
    assert (created.definition_id, created.version, created.state) == (unique, 1, "draft")
    assert (created.model, created.limits, created.behaviour) == (model, limits, "model")
    assert created.input_schema == {"type": "object", "required": ["q"]}
    assert created.tools == (Tool(capability="test.echo"),)
    assert (created.capabilities, created.replicas) == (("test.whole",), 3)
    assert (created.labels, created.owner) == ({"for": "tests"}, "admin")
    assert await mesh.definitions.get(unique) == created
    listed = [one async for one in mesh.definitions.list(capability="test.whole", page_size=1)]
    assert listed == [created]
    with pytest.raises(FailedPrecondition, match="There is a definition") as taken:
        await mesh.definitions.create(unique)
    assert taken.value.reason == "DEFINITION_EXISTS"


async def test_versions_are_made_activated_and_deleted(mesh: AsyncMesh) -> None:
    definitions, unique = mesh.definitions, name("versions")
    first = await definitions.create(unique, rules=[ECHO], description="one", replicas=2)
    assert first.rules == (ECHO,)
    second = await definitions.update(unique, description="two", replicas=0)
    assert (second.version, second.description, second.rules) == (2, "two", (ECHO,))
    assert second.replicas == 1
    running = await definitions.activate(unique, 1)
    assert (running.state, running.active_version, running.description) == ("active", 1, "one")
    assert (await definitions.get(unique)).version == 2
    with pytest.raises(FailedPrecondition, match="active"):
        await definitions.delete(unique)
    assert (await definitions.activate(unique)).active_version == 2
    versions = [one.version async for one in definitions.versions(unique, page_size=1)]
    assert versions == [2, 1]
    assert (await definitions.get(unique, 1)).description == "one"
    with pytest.raises(FailedPrecondition) as stale:
        await definitions.update(unique, expected_revision=1, description="three")
    assert stale.value.reason == "REVISION_MISMATCH"
    assert (await definitions.drain(unique)).state == "draining"
    # Nobody runs it, so there is nothing to finish.
    assert (await definitions.get(unique)).state == "inactive"
    await definitions.delete(unique)
    with pytest.raises(NotFound):
        await definitions.get(unique)


async def test_the_json_form_is_a_definition_too(mesh: AsyncMesh) -> None:
    unique = name("json")
    content: dict[str, Any] = {
        "definitionId": unique,
        "display_name": "As in a file",
        "rules": [{"message_type": "echo", "call": {"capability": "test.echo"}}],
        "limits": {"timeout": 2.5},
        "input_schema": {"type": "object"},
        "capabilities": ["test.a", {"name": "test.b", "inputSchema": {"type": "string"}}],
    }
    created = await mesh.definitions.create(content)
    assert created.rules == (Rule("echo", Tool(capability="test.echo")),)
    assert created.limits.timeout == 2.5
    assert created.input_schema == {"type": "object"}
    assert created.capabilities == ("test.a", "test.b")
    changed = await mesh.definitions.update({"definitionId": unique, "displayName": "Changed"})
    assert (changed.display_name, changed.rules) == ("Changed", created.rules)
    emptied = await mesh.definitions.update(unique, limits=None, rules=())
    assert (emptied.limits, emptied.behaviour) == (DefinitionLimits(), "none")
    with pytest.raises(FailedPrecondition) as empty:
        await mesh.definitions.activate(unique)
    assert empty.value.reason == "DEFINITION_EMPTY"


async def test_those_in_the_documentation(mesh: AsyncMesh) -> None:
    code = "def main(distances):\n    return len(distances)\n"
    await mesh.functions.create("contacts.close", code, aliases=["stable"])
    blocks = re.split(r"\n(?=\S)", DOCUMENTATION.read_text())
    texts = [block.partition("    definition_id:") for block in blocks]
    found = [textwrap.dedent(f"{head}{text}") for _, head, text in texts if head]
    behaviours = []
    for text in found:
        definition = await mesh.definitions.create(from_text(text))
        behaviours.append(definition.behaviour)
        assert from_text(to_text(definition.message)).keys() == from_text(text).keys()
        await mesh.definitions.delete(definition.definition_id)
    assert behaviours == ["rules", "chain", "model"]


async def test_errors_name_the_field(mesh: AsyncMesh) -> None:
    chain = Chain([ChainStep("a", capability="x", after=("b",))])
    for options, field, reason in (
        ({"tools": [Tool(function="test.none")]}, "definition.tools[0].function", "TOOL_UNKNOWN"),
        ({"model": ModelSettings("gpt")}, "definition.model.model", "MODEL_INVALID"),
        ({"output_schema": {"type": "nothing"}}, "definition.output_schema", "SCHEMA_INVALID"),
        (
            {"model": ModelSettings("a:b"), "rules": [ECHO]},
            "definition.rules",
            "BEHAVIOUR_AMBIGUOUS",
        ),
        ({"replicas": 1001}, "definition.replicas", "INVALID_ARGUMENT"),
        ({"chain": chain, "max_chain_depth": 1}, "definition.chain", ""),
    ):
        with pytest.raises(InvalidInput) as refused:
            await mesh.definitions.create(name("bad"), **options)
        (violation, *_) = refused.value.field_violations
        assert violation[0].startswith(field), (options, refused.value)
        assert reason in ("", refused.value.reason)
    for content, field in (
        ({"stairs": []}, "definition.stairs"),
        ({"replicas": "many"}, "definition.replicas"),
        ({"chain": {"stairs": []}}, "chain"),
        ({"limits": {"timeout": "soon"}}, "definition.limits"),
    ):
        with pytest.raises(InvalidInput) as unreadable:
            await mesh.definitions.create({"definition_id": "a", **content})
        assert unreadable.value.field_violations[0][0] == field
    with pytest.raises(InvalidInput, match="one of the two"):
        Tool()
    with pytest.raises(InvalidInput, match="what is to be changed"):
        await mesh.definitions.update("a")


async def test_changes_are_followed(mesh: AsyncMesh) -> None:
    definitions, unique = mesh.definitions, name("followed")
    seen: asyncio.Queue[DefinitionEvent] = asyncio.Queue()

    async def follow() -> None:
        async with aclosing(definitions.watch()) as changes:
            async for event in changes:
                if event.complete or event.definition_id == unique:
                    seen.put_nowait(event)

    following = asyncio.create_task(follow())
    while not (await soon(seen.get())).complete:
        pass
    await definitions.create(unique, rules=[ECHO])
    event = await soon(seen.get())
    assert event.definition is not None
    assert event.definition.state == "draft"
    await definitions.activate(unique)
    event = await soon(seen.get())
    assert event.definition is not None
    assert event.definition.state == "active"
    await definitions.stop(unique)
    await soon(seen.get())
    await definitions.delete(unique)
    event = await soon(seen.get())
    assert (event.deleted, event.definition) == (True, None)
    following.cancel()


async def test_only_the_owner_changes_a_definition(mesh: AsyncMesh) -> None:
    unique = name("owned")
    await mesh.definitions.create(unique, rules=[ECHO])
    who = await become(mesh, name("other"), "registry_read", "registry_write")
    async with who as other:
        assert (await other.definitions.get(unique)).owner == "admin"
        with pytest.raises(BxmeshError, match="another's"):
            await other.definitions.update(unique, description="mine")


def test_without_asyncio(served: EmbeddedMesh) -> None:
    unique = name("blocking")
    with Mesh(served.address, state_dir=served.state_dir) as mesh:
        mesh.definitions.create(unique, rules=[ECHO])
        assert mesh.definitions.activate(unique).state == "active"
        assert unique in [one.definition_id for one in mesh.definitions.list(state="active")]
        mesh.definitions.stop(unique)
        mesh.definitions.delete(unique)

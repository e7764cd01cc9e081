"""What a definition must pass before it is stored, and before it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.message import Message

from bxmesh.registry.v1 import agent_definition_pb2 as pb
from bxmesh.registry.v1 import chain_pb2
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.server.chains.graph import ChainGraph
from bxmesh.server.chains.references import FunctionReference
from bxmesh.server.chains.schema_fit import check_fit
from bxmesh.server.definitions.functions import Functions, json_schema
from bxmesh.server.definitions.store import DefinitionStore
from bxmesh.server.errors import MeshError, failed_precondition, invalid_argument
from bxmesh.server.json_schemas import SchemaError, require_usable
from bxmesh.server.security.identities import Identity

__all__ = [
    "MOST_DEPTH",
    "check_chain",
    "check_definition",
    "functions_of",
    "require_runnable",
    "users_of",
]

MOST_DEPTH = 32
"""How many steps may come one after another."""
# What is read in lists, and by all who follow, must fit into a message with room to spare.
_MOST_BYTES = 1 << 20


async def check_definition(
    definition: pb.AgentDefinition, functions: Functions, identity: Identity
) -> None:
    """Raises MeshError INVALID_ARGUMENT that names the field: of a tool that there is not or that the
    caller does not see (TOOL_UNKNOWN), a schema that cannot be used (SCHEMA_INVALID), a chain that
    cannot run, and two behaviours at once (BEHAVIOUR_AMBIGUOUS)."""
    _check_size(definition, "definition")
    has_model = bool(definition.model.model)
    behaviours = [
        name
        for name, there in (
            ("model", has_model),
            ("rules", bool(definition.rules)),
            ("chain", definition.HasField("chain")),
        )
        if there
    ]
    if len(behaviours) > 1:
        raise invalid_argument(
            f"definition.{behaviours[1]}",
            f"it has a {behaviours[0]} too: one of model, rules and chain decides what it does",
            reason="BEHAVIOUR_AMBIGUOUS",
        )
    _check_model(definition.model)
    await asyncio.to_thread(_check_schemas, definition)
    names = [capability.name for capability in definition.capabilities]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise invalid_argument(
                f"definition.capabilities[{index}].name", f"{name} is there twice"
            )
    for field, tool in _tools(definition):
        if tool.HasField("function"):
            await _function(tool.function, f"definition.{field}.function", functions, identity)
    if definition.HasField("chain"):
        await check_chain(
            definition.chain,
            functions,
            identity,
            max_depth=definition.max_chain_depth,
            field="definition.chain",
        )


async def check_chain(
    chain: chain_pb2.Chain,
    functions: Functions,
    identity: Identity,
    *,
    max_depth: int = MOST_DEPTH,
    field: str = "chain",
) -> ChainGraph:
    """Returns a chain that can run; raises MeshError INVALID_ARGUMENT that names what is wrong."""
    _check_size(chain, field)
    for name in ("input_schema", "output_schema"):
        await asyncio.to_thread(_check_schema, f"{field}.{name}", getattr(chain, name))
    graph = await asyncio.to_thread(ChainGraph.of, chain, max_depth=max_depth, field=field)
    takes: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for step in graph.steps.values():
        if step.function is None:
            continue
        function = await _function(
            step.message.function, f"{step.field}.function", functions, identity
        )
        takes[step.step_id] = json_schema(function.input_schema)
        answers[step.step_id] = json_schema(function.output_schema)
    await asyncio.to_thread(
        check_fit,
        graph,
        takes,
        answers,
        input_schema=json_schema(chain.input_schema),
        output_schema=json_schema(chain.output_schema),
        field=field,
    )
    return graph


def require_runnable(definition: pb.AgentDefinition) -> None:
    """Raises MeshError FAILED_PRECONDITION for a definition that would do nothing."""
    if not (definition.model.model or definition.rules or definition.HasField("chain")):
        raise failed_precondition(
            f"{definition.definition_id} has neither model, rules nor chain, so it would do nothing.",
            reason="DEFINITION_EMPTY",
            subject=definition.definition_id,
        )


def functions_of(definition: pb.AgentDefinition) -> Iterator[FunctionReference]:
    """Yields the stored functions that a definition uses."""
    for field, tool in _tools(definition):
        if tool.HasField("function"):
            yield FunctionReference.parse(tool.function, field)
    for step in definition.chain.steps:
        if step.HasField("function"):
            yield FunctionReference.parse(step.function, "chain")


async def users_of(
    store: DefinitionStore, name: str, owners: Collection[str]
) -> AsyncIterator[tuple[str, str]]:
    """Yields the running definitions of some owners that use a function, each with the version that it
    asks for."""
    seen, until = 0, await store.revision()
    while found := await store.running(seen, until, owners):
        for definition in found:
            seen = definition.revision
            for reference in functions_of(definition):
                if reference.name == name:
                    yield definition.definition_id, reference.version


def _tools(definition: pb.AgentDefinition) -> Iterator[tuple[str, pb.ToolReference]]:
    for index, tool in enumerate(definition.tools):
        yield f"tools[{index}]", tool
    for index, rule in enumerate(definition.rules):
        yield f"rules[{index}].call", rule.call


async def _function(text: str, field: str, functions: Functions, identity: Identity) -> Any:
    reference = FunctionReference.parse(text, field)
    try:
        return await functions.seen(reference.name, reference.version, identity)
    except MeshError as error:
        if error.reason != "FUNCTION_NOT_FOUND":
            raise
        raise invalid_argument(
            field, f"there is no function {text}", reason="TOOL_UNKNOWN", tool=text
        ) from None


def _check_size(message: Message, field: str) -> None:
    size = message.ByteSize()
    if size > _MOST_BYTES:
        raise invalid_argument(
            field, f"has {size} bytes; at most {_MOST_BYTES} may be", reason="TOO_LARGE"
        )


def _check_model(model: pb.ModelSettings) -> None:
    if model.model and ":" not in model.model:
        raise invalid_argument(
            "definition.model.model",
            f'{model.model!r} names no provider; write it like "openai:gpt-5"',
            reason="MODEL_INVALID",
        )
    if model.base_url:
        parts = urlsplit(model.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise invalid_argument(
                "definition.model.base_url", "must be an http or https URL", reason="MODEL_INVALID"
            )
        if parts.username or parts.password or parts.query:
            raise invalid_argument(
                "definition.model.base_url",
                "must hold no secret: keys come from the environment of the host",
                reason="MODEL_INVALID",
            )


def _check_schemas(definition: pb.AgentDefinition) -> None:
    for field in ("input_schema", "output_schema"):
        _check_schema(f"definition.{field}", getattr(definition, field))
        for index, capability in enumerate(definition.capabilities):
            _check_schema(f"definition.capabilities[{index}].{field}", getattr(capability, field))


def _check_schema(field: str, schema: Schema) -> None:
    if schema.WhichOneof("kind") != "json_schema":
        return
    try:
        require_usable(schema)
    except SchemaError as error:
        raise invalid_argument(field, str(error), reason="SCHEMA_INVALID") from None

"""Whether parameters fit what an agent says it takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence

from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from bxmesh.agent.v1 import message_pb2
from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.server.errors import MeshError, invalid_argument
from bxmesh.server.json_schemas import SchemaError, find_misfit

_FIELD = "spec.parameters"


async def accepting(
    parameters: message_pb2.Payload, agents: Sequence[Agent], capabilities: Collection[str]
) -> list[Agent]:
    """Returns the agents whose schemas the parameters fit; raises MeshError INVALID_ARGUMENT
    (SCHEMA_MISMATCH) when there are agents, and they fit none's."""
    fitting: list[Agent] = []
    problem: MeshError | None = None
    known: dict[bytes, MeshError | None] = {}
    for agent in agents:
        found = None
        for capability in agent.capabilities:
            if capability.name in capabilities and capability.HasField("input_schema"):
                key = capability.input_schema.SerializeToString(deterministic=True)
                if key not in known:
                    known[key] = await _check(parameters, capability.input_schema)
                found = found or known[key]
        if found is None:
            fitting.append(agent)
        problem = problem or found
    if problem is not None and not fitting:
        raise problem
    return fitting


async def _check(parameters: message_pb2.Payload, schema: Schema) -> MeshError | None:
    match schema.WhichOneof("kind"):
        case "protobuf_type":
            return _check_protobuf(parameters, schema.protobuf_type)
        case "json_schema":
            if parameters.WhichOneof("content") != "json":
                return _mismatch(_FIELD, "must be JSON that fits the capability's schema")
            # In a thread, as neither the parameters nor the schema are ours.
            return await asyncio.to_thread(_check_json, parameters.json.json, schema)
    return None


def _check_protobuf(parameters: message_pb2.Payload, name: str) -> MeshError | None:
    if parameters.WhichOneof("content") != "protobuf":
        return _mismatch(_FIELD, f"must be a {name}")
    found = parameters.protobuf.TypeName()
    if found != name:
        return _mismatch(f"{_FIELD}.protobuf", f"must be a {name}, not a {found or 'nothing'}")
    try:
        kind = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
    except KeyError:
        # A type of the agent's own: it looks for itself.
        return None
    try:
        kind.FromString(parameters.protobuf.value)
    except DecodeError:
        return _mismatch(f"{_FIELD}.protobuf.value", f"is no {name}")
    return None


def _check_json(text: str, schema: Schema) -> MeshError | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _mismatch(f"{_FIELD}.json.json", "is no JSON")
    try:
        misfit = find_misfit(value, schema, len(text))
    except SchemaError as error:
        return _mismatch(_FIELD, f"cannot be checked: the capability's schema fails ({error})")
    return misfit and _mismatch(f"{_FIELD}{misfit.path}", misfit.problem)


def _mismatch(field: str, description: str) -> MeshError:
    return invalid_argument(field, description[:200], reason="SCHEMA_MISMATCH", path=field)

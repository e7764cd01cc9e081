"""Whether parameters fit what an agent says it takes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

import jsonschema
from google.protobuf import descriptor_pool, json_format
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry

from bxmesh.agent.v1 import message_pb2
from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.server.errors import MeshError, invalid_argument

_FIELD = "spec.parameters"
# Keywords that are looked at: so many, and so many more for each byte. A reference costs more.
_STEPS = 3_000
_MOST_STEPS = 300_000
_REFERENCES = ("$ref", "$dynamicRef")
_STEPS_OF_REFERENCE = 5
_MOST_UNIQUE = 1_000
_MOST_SCHEMAS = 256


class _TooMuchError(Exception):
    """A schema asks for more work than it gets."""


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
                    known[key] = await _check(parameters, capability.input_schema, key)
                found = found or known[key]
        if found is None:
            fitting.append(agent)
        problem = problem or found
    if problem is not None and not fitting:
        raise problem
    return fitting


async def _check(parameters: message_pb2.Payload, schema: Schema, key: bytes) -> MeshError | None:
    match schema.WhichOneof("kind"):
        case "protobuf_type":
            return _check_protobuf(parameters, schema.protobuf_type)
        case "json_schema":
            if parameters.WhichOneof("content") != "json":
                return _mismatch(_FIELD, "must be JSON that fits the capability's schema")
            # In a thread, as neither the parameters nor the schema are ours.
            return await asyncio.to_thread(_check_json, parameters.json.json, key)
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


def _check_json(text: str, key: bytes) -> MeshError | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _mismatch(f"{_FIELD}.json.json", "is no JSON")
    try:
        validator = _validator(key)
        _steps.left = min(_MOST_STEPS, _STEPS + len(text))
        problem = next(validator.iter_errors(value), None)
    except Exception as error:
        # Whoever wrote the schema may have made any mistake; references elsewhere are one.
        return _mismatch(
            _FIELD, f"cannot be checked: the capability's schema fails ({type(error).__name__})"
        )
    if problem is None:
        return None
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem.absolute_path
    )
    return _mismatch(f"{_FIELD}{path}", problem.message)


class _Steps(threading.local):
    left = 0


_steps = _Steps()


@lru_cache(_MOST_SCHEMAS)
def _validator(key: bytes) -> Validator:
    schema = json_format.MessageToDict(Schema.FromString(key).json_schema)
    _Bounded.check_schema(schema)
    validator: Validator = _Bounded(schema, registry=Registry())
    return validator


def _bounded(name: str, keyword: Any) -> Any:
    """A keyword that does no more than its share, and leaves regular expressions, which can take
    for ever, to the agent."""
    with_patterns = name in ("additionalProperties", "unevaluatedProperties")
    cost = _STEPS_OF_REFERENCE if name in _REFERENCES else 1

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        _steps.left -= cost
        if _steps.left < 0:
            raise _TooMuchError
        if with_patterns and "patternProperties" in schema:
            return
        if name == "uniqueItems" and isinstance(instance, list) and len(instance) > _MOST_UNIQUE:
            return
        yield from keyword(validator, value, instance, schema) or ()

    return check


def _unchecked(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    return iter(())


_extend: Any = extend
_Bounded: Any = _extend(
    jsonschema.Draft202012Validator,
    {
        name: _unchecked if name in ("pattern", "patternProperties") else _bounded(name, keyword)
        for name, keyword in jsonschema.Draft202012Validator.VALIDATORS.items()
    },
)


def _mismatch(field: str, description: str) -> MeshError:
    return invalid_argument(field, description[:200], reason="SCHEMA_MISMATCH", path=field)

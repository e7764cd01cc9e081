"""What callers may try that mean harm: nobody else may notice, and they are told what is wrong."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from bxmesh.registry.v1 import agent_definition_pb2
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.server.json_schemas import SchemaError, find_misfit
from tests.functions.mesh import COMPLETED, Caller, refused, schema, struct

SECONDS = 20.0
NOTHING = "def main(**fields):\n    return 1\n"
LOOPS: dict[str, dict[str, Any]] = {
    "ref": {"$ref": "#"},
    "all of ref": {"allOf": [{"$ref": "#"}]},
    "dynamic ref": {"$dynamicAnchor": "x", "not": {"$dynamicRef": "#x"}},
    "unevaluated properties": {"unevaluatedProperties": False, "$ref": "#"},
    "unevaluated items": {"unevaluatedItems": False, "allOf": [{"$ref": "#"}]},
}


@pytest.mark.parametrize("content", LOOPS.values(), ids=LOOPS)
async def test_a_schema_that_means_itself_ends(content: dict[str, Any]) -> None:
    for value in ({"a": 1}, [1]):
        async with asyncio.timeout(SECONDS):
            with pytest.raises(SchemaError):
                await asyncio.to_thread(find_misfit, value, schema(**content), 100)


async def test_references_that_double_end() -> None:
    definitions: dict[str, Any] = {
        f"d{n}": {
            "$dynamicAnchor": f"x{n}",
            "$ref": f"#/$defs/d{n + 1}",
            "$dynamicRef": f"#x{n + 1}",
        }
        for n in range(60)
    }
    definitions["d60"] = {"$dynamicAnchor": "x60"}
    bomb = schema(unevaluatedProperties=False, **{"$ref": "#/$defs/d0", "$defs": definitions})
    async with asyncio.timeout(SECONDS):
        with pytest.raises(SchemaError):
            await asyncio.to_thread(find_misfit, {"a": 1}, bomb, 100)


async def test_no_pattern_takes_for_ever(admin: Caller) -> None:
    await admin.create(
        "test.pattern",
        NOTHING,
        input_schema=schema(
            type="object",
            unevaluatedProperties=False,
            allOf=[{"patternProperties": {"(a+)+$": {}}}],
        ),
    )
    async with asyncio.timeout(SECONDS):
        execution = await admin.execute("test.pattern", {"a" * 40 + "!": 1})
    assert execution.state == COMPLETED


@pytest.mark.parametrize("number", [math.nan, math.inf])
async def test_a_schema_with_a_number_that_is_none_is_refused(admin: Caller, number: float) -> None:
    content = Struct()
    content.CopyFrom(struct(type="object"))
    content.fields["const"].number_value = number
    bad = Schema(json_schema=content)
    error = await refused(admin.create("test.it", NOTHING, input_schema=bad))
    assert error.reason == "SCHEMA_INVALID"
    definition = agent_definition_pb2.AgentDefinition(definition_id="it", output_schema=bad)
    error = await refused(
        admin.registry.CreateAgentDefinition(
            agent_definition_pb2.CreateAgentDefinitionRequest(definition=definition),
            metadata=admin.metadata,
        )
    )
    assert error.reason == "SCHEMA_INVALID"


async def test_what_does_not_fit_is_told_in_few_words(admin: Caller) -> None:
    await admin.create(
        "test.it",
        NOTHING,
        input_schema=schema(type="object", additionalProperties={"type": "string"}),
    )
    error = await refused(admin.execute("test.it", {"x" * 100_000: list(range(10_000))}))
    assert error.reason == "SCHEMA_MISMATCH"
    assert len(error.message) < 1_000

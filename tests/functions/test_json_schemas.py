"""JSON Schemas that anybody may have written."""

from __future__ import annotations

from typing import Any

import pytest

from bxmesh.server.json_schemas import SchemaError, find_misfit, require_usable
from tests.functions.mesh import schema

DRAFT = "https://json-schema.org/draft/2020-12/schema"
DOUBLING: dict[str, Any] = {
    "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 10} for n in range(9)} | {"9": {}},
    "$ref": "#/$defs/0",
}


def test_what_fits_and_what_does_not() -> None:
    made = schema(
        type="object",
        properties={"n": {"type": "integer"}, "$schema": {"type": "string"}},
        patternProperties={"^x_": {"type": "boolean"}},
        additionalProperties=False,
    )
    require_usable(made)
    assert find_misfit({"n": 1, "x_a": True}, made, 20) is None
    for value, path in (({"n": "1"}, ".n"), ({"x_a": 1}, ".x_a"), ({"y": 1}, "")):
        misfit = find_misfit(value, made, 20)
        assert misfit is not None
        assert misfit.path == path


@pytest.mark.parametrize(
    "said", [{}, {"$schema": DRAFT}, {"$schema": "http://json-schema.org/draft-07/schema#"}]
)
def test_no_schema_takes_for_ever_whatever_it_says_it_is(said: dict[str, str]) -> None:
    with pytest.raises(SchemaError, match="TooMuch"):
        find_misfit({}, schema(**said, **DOUBLING), 2)


def test_looking_at_a_schema_is_bounded() -> None:
    branches = [{"type": "integer", "minimum": n} for n in range(20_000)]
    with pytest.raises(SchemaError, match="too large"):
        require_usable(schema(type="object", properties={"x": {"anyOf": branches}}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"type": 7}, "type"),
        ({"properties": {"a": {"type": "nonsense"}}}, "properties.a.type"),
        ({"$ref": "https://example.com/schema.json"}, "another document"),
        ({"pattern": "(?=a)"}, "RE2 does not know"),
    ],
)
def test_what_is_wrong_is_said(content: dict[str, Any], says: str) -> None:
    with pytest.raises(SchemaError) as raised:
        require_usable(schema(**content))
    assert says in str(raised.value)

"""Schemas of what steps answer and take: only misfits that are certain are refused."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bxmesh.registry.v1.chain_pb2 import Chain, ChainStep
from bxmesh.server.chains.disjoint import Schema, misfit
from bxmesh.server.chains.graph import ChainGraph
from bxmesh.server.chains.schema_fit import check_fit
from bxmesh.server.errors import MeshError

NUMBER, STRING = {"type": "number"}, {"type": "string"}


def fields(*required: str, closed: bool = False, **properties: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": [*required]}
    return schema | ({"additionalProperties": False} if closed else {})


def found(produced: Any, taken: Any) -> tuple[str, str, str] | None:
    problem = misfit(Schema.of(produced), Schema.of(taken))
    return problem and (".".join(problem.path), problem.produced, problem.taken)


@pytest.mark.parametrize(
    ("produced", "taken", "expected"),
    [
        (NUMBER, STRING, ("", "number", "string")),
        ({"type": "integer"}, NUMBER, None),
        (NUMBER, {"type": "integer"}, None),
        ({"type": ["string", "null"]}, NUMBER, ("", "string or null", "number")),
        ({"type": ["string", "null"]}, {"type": ["null", "number"]}, None),
        ({}, STRING, None),
        (None, STRING, None),
        (NUMBER, None, None),
        (NUMBER, False, ("", "number", "nothing")),
        ({"enum": ["a", "b"]}, {"enum": ["c"]}, ("", '"a" or "b"', '"c"')),
        ({"enum": ["a", 1.0]}, {"const": 1}, None),
        ({"enum": [True]}, {"const": 1}, ("", "true", "1")),
        ({"enum": ["a"]}, NUMBER, ("", '"a"', "number")),
        ({"const": [1]}, {"const": [1.0]}, None),
        (fields(), fields("x", x=NUMBER), None),
        (fields(closed=True), fields("x", x=NUMBER), ("x", "nothing", "number")),
        (fields("x"), fields(closed=True), ("x", "anything", "nothing")),
        (fields("x"), fields(closed=True) | {"patternProperties": {"x": {}}}, None),
        (fields(x=STRING), fields("x", x=NUMBER), ("x", "string", "number")),
        (fields("x", x=STRING), fields(x=NUMBER), ("x", "string", "number")),
        (fields(x=STRING), fields(x=NUMBER), None),
        (
            fields("a", a=fields("b", b=STRING)),
            fields("a", a=fields("b", b=NUMBER)),
            ("a.b", "string", "number"),
        ),
        (fields("x", x=STRING), {"type": ["object", "null"]}, None),
        ({"anyOf": [STRING, NUMBER]}, NUMBER, None),
        ({"anyOf": [STRING, {"type": "null"}]}, NUMBER, ("", "string", "number")),
        (NUMBER, {"oneOf": [STRING, {"const": "x"}]}, ("", "number", "string")),
        ({"allOf": [{}, STRING]}, NUMBER, ("", "string", "number")),
        (
            {"$defs": {"s/t": STRING}, "$ref": "#/$defs/s~1t"},
            NUMBER,
            ("", "string", "number"),
        ),
        ({"$ref": "#/$defs/missing"}, NUMBER, None),
        ({"$ref": "elsewhere.json"}, NUMBER, None),
        ({"$ref": "#"}, NUMBER, None),
        ({"type": "array", "items": STRING}, {"type": "array", "items": NUMBER}, None),
        (
            {"type": "array", "items": STRING, "minItems": 1},
            {"type": "array", "items": NUMBER},
            ("[]", "string", "number"),
        ),
        ({"type": "nonsense"}, NUMBER, None),
        ({"type": 5, "required": 3, "properties": [], "enum": {}, "allOf": "x"}, NUMBER, None),
        ([], NUMBER, None),
    ],
)
def test_what_cannot_be(produced: Any, taken: Any, expected: tuple[str, str, str] | None) -> None:
    assert found(produced, taken) == expected


def test_hostile_schemas_fit_soon() -> None:
    ring = {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}
    assert found(ring, ring) is None
    bomb = {"anyOf": [{"$ref": "#"}] * 50}
    assert found(bomb, bomb) is None
    tree: Any = NUMBER
    for _ in range(30):
        tree = {"anyOf": [tree, tree]}
    assert found(tree, STRING) is None
    assert found({"enum": [str(n) for n in range(50_000)]}, {"enum": ["x"]}) is not None


def chain(*steps: ChainStep, output: dict[str, str] | None = None) -> ChainGraph:
    return ChainGraph.of(Chain(steps=steps, output_mapping=output), max_depth=10)


def refused(graph: ChainGraph, takes: Any, answers: Any, **more: Any) -> tuple[str, str]:
    with pytest.raises(MeshError) as caught:
        check_fit(graph, takes, answers, **more)
    assert caught.value.reason == "SCHEMAS_DO_NOT_FIT"
    [violation] = caught.value.field_violations
    return violation


def test_outputs_as_a_whole() -> None:
    graph = chain(ChainStep(step_id="a", agent="x"), ChainStep(step_id="b", agent="x", after=["a"]))
    check_fit(graph, {}, {})
    check_fit(graph, {"b": NUMBER}, {"a": NUMBER}, input_schema=STRING, output_schema=STRING)
    assert refused(graph, {"b": NUMBER}, {"a": STRING}) == (
        "chain.steps[1]",
        'step "b" takes number, but gets string from step "a"',
    )
    assert refused(graph, {"a": NUMBER}, {}, input_schema=STRING) == (
        "chain.steps[0]",
        'step "a" takes number, but gets string from the chain\'s input',
    )
    assert refused(graph, {}, {"b": NUMBER}, output_schema=STRING) == (
        "chain.output_schema",
        'the chain\'s output takes string, but gets number from step "b"',
    )


def test_mappings() -> None:
    first = ChainStep(step_id="a", agent="x")
    graph = chain(
        first,
        ChainStep(
            step_id="b",
            agent="x",
            after=["a"],
            input_mapping={"p.q": "steps.a.output.rows['n']", "p.r": "input.z + 1"},
        ),
        output={"all": "steps.b.output"},
    )
    rows = {"$ref": "#/$defs/rows", "$defs": {"rows": fields("rows", rows=fields(n=NUMBER))}}
    check_fit(graph, {"b": fields("p", p=fields("q", q=NUMBER, r=STRING))}, {"a": rows})
    place = 'chain.steps[1].input_mapping["p.q"]'
    assert refused(graph, {"b": fields(p=fields(q=STRING))}, {"a": rows}) == (
        place,
        'step "b" takes string at "p.q", but gets number from its mapping',
    )
    assert refused(graph, {"b": fields(p=fields(closed=True))}, {})[0] == place
    assert refused(graph, {"b": fields("missing", missing=STRING)}, {}) == (
        "chain.steps[1].input_mapping",
        'step "b" takes string at "missing", but gets nothing from its mapping',
    )
    closed = fields(rows=fields(closed=True))
    assert "gets nothing" in refused(graph, {}, {"a": closed})[1]
    assert refused(graph, {}, {"b": NUMBER}, output_schema=fields(all=STRING))[0] == (
        'chain.output_mapping["all"]'
    )


schemas = st.recursive(
    st.sampled_from([{}, NUMBER, STRING, {"type": "integer"}, {"type": ["null", "boolean"]}, True])
    | st.lists(st.sampled_from([1, 2.0, "a", True, None, [], {}]), min_size=1).map(
        lambda values: {"enum": values}
    ),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each})
        | st.lists(inner, min_size=1, max_size=2).map(lambda each: {"allOf": each})
        | inner.map(lambda each: {"type": "array", "items": each, "minItems": 1})
        | st.builds(
            lambda closed, required, properties: {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": not closed,
            },
            st.booleans(),
            st.lists(st.sampled_from("xy"), unique=True),
            st.dictionaries(st.sampled_from("xy"), inner),
        )
    ),
    max_leaves=6,
)
plain = st.sampled_from([1, 2, 1.5, "a", "b", True, None])
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(schemas, schemas, st.lists(values, min_size=10, max_size=30))
def test_what_both_accept_is_never_a_misfit(produced: Any, taken: Any, values: list[Any]) -> None:
    if found(produced, taken) is not None:
        ours, theirs = map(jsonschema.Draft202012Validator, (produced, taken))
        assert not [each for each in values if ours.is_valid(each) and theirs.is_valid(each)]

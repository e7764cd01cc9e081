from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bxmesh.server.errors import MeshError
from tests.conversations.voicing import STRUCTURED, Deciding, Fields, reach, said

CELL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "group": {"enum": ["P1", "P21", "p21"]},
        "atoms": {"type": "integer"},
        "resolution": {"type": "number"},
        "twinned": {"type": "boolean"},
        "note": {"type": "string"},
        "cell": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
        "tags": {"type": "array", "items": {"type": "string"}},
        "inner": {"$ref": "#/$defs/inner"},
    },
    "required": ["group"],
    "additionalProperties": False,
    "$defs": {"inner": {"type": "object", "properties": {"x": {"type": "number"}}}},
}


async def merged(*answers: Any, schema: dict[str, Any] = CELL, **more: Any) -> Any:
    outcome = await reach(*answers, method=STRUCTURED, schema=schema, **more)
    jsonschema.validate(outcome.answer, schema)
    return outcome


async def test_field_by_field() -> None:
    outcome = await merged(
        {"group": "P1", "atoms": 10, "resolution": 1.0, "twinned": True, "note": "Fine."},
        {"group": "P1", "atoms": 13, "resolution": 1.5, "twinned": False, "note": "fine"},
        {"group": "P21", "atoms": 12, "resolution": 1.6, "twinned": False, "note": "bad"},
        {"group": "p21", "atoms": 90, "resolution": 9.0, "twinned": False, "note": "fine"},
    )
    assert outcome.answer == {
        "group": "P1",
        "atoms": 12,
        "resolution": 1.55,
        "twinned": False,
        "note": "fine",
    }
    assert outcome.tie_break == ""


async def test_arrays_of_one_length_are_taken_item_by_item_others_whole() -> None:
    outcome = await merged(
        {"group": "P1", "cell": [10, 20, 30], "tags": ["a", "b"]},
        {"group": "P1", "cell": [11, 20, 31], "tags": ["b", "a"]},
        {"group": "P1", "cell": [12, 90, 32], "tags": ["a", "b"]},
    )
    assert outcome.answer == {"group": "P1", "cell": [11, 20, 31], "tags": ["a", "b"]}


async def test_objects_within_objects_and_references() -> None:
    outcome = await merged(*({"group": "P1", "inner": {"x": x}} for x in (1, 5, 9)))
    assert outcome.answer["inner"] == {"x": 5}


async def test_what_need_not_be_there_is_there_when_half_have_it() -> None:
    with_note = {"group": "P1", "note": "n"}
    without = {"group": "P1"}
    outcome = await merged(with_note, without)
    assert outcome.answer == with_note
    assert outcome.confidence == pytest.approx((1 + 1 / 2) / 2 * 0.5)
    outcome = await merged(with_note, without, without)
    assert outcome.answer == without
    assert outcome.confidence == pytest.approx((1 + 2 / 3) / 2 * 0.5)


async def test_confidence_is_from_the_shares_of_the_fields() -> None:
    outcome = await merged(
        {"group": "P1", "twinned": True},
        {"group": "P1", "twinned": True},
        {"group": "P21", "twinned": True},
    )
    assert outcome.confidence == pytest.approx((2 / 3 + 1) / 2 * 0.5)
    assert [group.share for group in outcome.groups] == pytest.approx([2 / 3, 1 / 3])
    outcome = await merged(
        *({"group": "P1", "twinned": True},) * 2,
        earlier=[said({"group": "P1", "twinned": False}, None)],
    )
    assert outcome.confidence == pytest.approx((0.5 + 0.5) / 2)


@pytest.mark.parametrize(
    ("sure", "judge", "expected"),
    [
        ((0.2, 0.9), 0, ("P21", "confidence")),
        ((0.5, 0.5), 1, ("P21", "judge")),
        ((0.5, 0.5), 7, ("P1", "first_stable")),
    ],
)
async def test_ties_of_fields(
    sure: tuple[float, float], judge: int, expected: tuple[str, str]
) -> None:
    deciding = Deciding(lambda texts: judge)
    outcome = await merged(
        Fields(value={"group": "P1", "atoms": 5}, confidence=sure[0]),
        Fields(value={"group": "P21", "atoms": 5}, confidence=sure[1]),
        judge=deciding,
        question="What is it?",
    )
    assert (outcome.answer["group"], outcome.tie_break) == expected
    if expected[1] != "confidence":
        assert deciding.asked == [("What is it?\n\nWhich is right for group?", ["P1", "P21"])]


async def test_the_last_means_that_any_field_needed_is_said() -> None:
    answers = [("P1", "x", 0.9), ("P1", "y", 0.1), ("P21", "x", 0.5), ("P21", "y", 0.5)]
    outcome = await merged(
        *(
            Fields(value={"group": group, "note": note}, confidence=sure)
            for group, note, sure in answers
        ),
        judge=Deciding(lambda texts: texts.index("P21")),
    )
    assert outcome.answer == {"group": "P21", "note": "x"}
    assert outcome.tie_break == "judge"


async def test_texts_of_json_are_answers_too() -> None:
    outcome = await merged(
        '{"group": "P1"}',
        'Here it is:\n```json\n{"group": "P1"}\n```\nDone.',
        '```{"group": "P21"}```',
        "P1",
        '{"group": "C2"}',
        "[" * 100_000,
        '{"group": NaN}',
        quorum=3,
    )
    assert outcome.answer == {"group": "P1"}
    assert outcome.abstentions["p3"] == "its answer is no JSON"
    assert "does not fit the schema" in outcome.abstentions["p4"]
    assert set(outcome.abstentions) == {"p3", "p4", "p5", "p6"}


async def test_a_median_that_does_not_fit_gives_way_to_a_number_that_was_given() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "number", "multipleOf": 2}}}
    outcome = await merged(
        *({"n": n, "s": text} for n, text in [(2, "b"), (2, "c"), (4, "a"), (4, "a")]),
        schema=schema,
    )
    assert outcome.answer == {"n": 2, "s": "a"}


async def test_what_does_not_fit_together_gives_way_to_the_answer_that_agrees_most() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "boolean"},
            "b": {"type": "boolean"},
            "c": {"type": "integer"},
        },
        "required": ["a", "b", "c"],
        "anyOf": [{"properties": {"a": {"const": False}}}, {"properties": {"b": {"const": False}}}],
    }
    outcome = await merged(
        {"a": True, "b": False, "c": 1},
        {"a": False, "b": True, "c": 5},
        {"a": True, "b": False, "c": 9},
        {"a": False, "b": True, "c": 5},
        Fields(value={"a": True, "b": False, "c": 5}, confidence=0.9),
        Fields(value={"a": False, "b": True, "c": 5}, confidence=0.1),
        Fields(value={"a": False, "b": True, "c": 5}, confidence=0.1),
        schema=schema,
    )
    assert outcome.answer == {"a": False, "b": True, "c": 5}


async def test_a_value_need_not_be_an_object() -> None:
    assert (await merged(1, 2, 9, schema={"type": "number"})).answer == 2
    same = [Fields(value="x"), Fields(text='"x"'), Fields(value="y")]
    assert (await merged(*same, schema={"type": "string"})).answer == "x"
    assert (await merged([1, 2], [1, 2], [3], schema={"type": "array"})).answer == [1, 2]
    assert (await merged({}, {}, schema={"type": "object"})).answer == {}


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {"type": 7},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/$defs/none"},
    ],
    ids=str,
)
async def test_a_schema_that_cannot_be_used_is_said(schema: dict[str, Any] | None) -> None:
    more = {} if schema is None else {"schema": schema}
    with pytest.raises(MeshError) as raised:
        await reach({"a": 1}, {"a": 1}, method=STRUCTURED, **more)
    assert raised.value.field_violations[0][0] == "consensus.answer_schema"


async def test_schemas_that_refer_to_themselves_end() -> None:
    schema = {
        "type": "object",
        "properties": {
            "next": {"$ref": "#"},
            "loop": {"$ref": "#/$defs/a"},
            "x": {"type": "number"},
        },
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "number"}},
    }
    value: dict[str, Any] = {"x": 1}
    for _ in range(12):
        value = {"next": value, "loop": 2}
    assert (await merged(value, value, {"x": 3}, schema=schema)).answer == value


async def test_many_fields_are_bounded() -> None:
    judge = Deciding(lambda texts: 0)
    some = [{f"f{index}": voice for index in range(300)} for voice in ("x", "y")]
    outcome = await merged(*some, schema={"type": "object"}, judge=judge)
    assert len(outcome.answer) == 300
    assert len(judge.asked) == 16
    few, many = (
        [{f"f{index}": number for index in range(count)} for number in (1, 5, 9)]
        for count in (1_000, 30_000)
    )
    assert (await merged(*few, schema={"type": "object"})).answer == few[1]
    # As wholes all three are tied.
    assert (await merged(*many, schema={"type": "object"})).answer == many[0]


@pytest.mark.parametrize(("levels", "expected"), [(7, 5), (8, 1), (20, 1)])
async def test_what_is_deep_is_taken_whole(levels: int, expected: int) -> None:
    answers: list[Any] = [1, 5, 9]
    wanted: Any = expected
    for _ in range(levels):
        answers = [{"x": answer} for answer in answers]
        wanted = {"x": wanted}
    assert (await merged(*answers, schema={"type": "object"})).answer == wanted


_VALUES = st.fixed_dictionaries(
    {"group": st.sampled_from(["P1", "P21", "p21"])},
    optional={
        "atoms": st.integers(-(2**53), 2**53),
        "resolution": st.floats(allow_nan=False, allow_infinity=False),
        "twinned": st.booleans(),
        "note": st.text(st.characters(codec="utf-8"), max_size=5),
        "cell": st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3),
        "tags": st.lists(st.sampled_from("ab"), max_size=2),
        "inner": st.fixed_dictionaries({}, optional={"x": st.integers(0, 9), "y": st.text("ab")}),
    },
)


@settings(max_examples=80, deadline=None)
@given(st.lists(_VALUES, min_size=1, max_size=7), st.randoms())
async def test_it_fits_the_schema_whatever_was_given(values: list[Any], random: Any) -> None:
    outcome = await merged(*values)
    assert 0 <= outcome.confidence <= 1
    assert sum(group.share for group in outcome.groups) == pytest.approx(1)
    if len({str(value) for value in values}) == 1:
        assert outcome.confidence == pytest.approx(0.5)
    outcome.to_message(1)

"""Expressions: what they mean, what is refused, and that hostile ones come to an end."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bxmesh.server.chains.cel import Path
from bxmesh.server.chains.expressions import Expression, Scope
from bxmesh.server.errors import MeshError

INPUT = {
    "n": 4.0,
    "i": 3,
    "s": "abc",
    "l": [1.0, 2.5, 3.0],
    "o": {"a-b": 1, "ok": True},
    "none": None,
}
OUTPUTS = {"a": {"count": 2, "rows": [{"x": 1.5}, {"x": 2.5}]}, "b-c": [1], "x.y": {"q": "z"}}
# Far more than any of them takes; without bounds they would take for ever, or all memory.
pytestmark = pytest.mark.timeout(100)


def value(source: str, input: Any = INPUT) -> Any:
    return Expression.compile(source, "f").evaluate(Scope(input, OUTPUTS))


def invalid(source: str) -> str:
    with pytest.raises(MeshError) as caught:
        Expression.compile(source, "chain.steps[2].condition")
    error = caught.value
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "EXPRESSION_INVALID")
    [(field, description)] = error.field_violations
    assert field == "chain.steps[2].condition"
    assert len(description) < 200
    return description


def failing(source: str, input: Any = INPUT) -> str:
    with pytest.raises(MeshError) as caught:
        value(source, input)
    error = caught.value
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "EXPRESSION_FAILED")
    assert error.message.startswith("f: the expression fails: ")
    assert len(error.message) < 200
    return error.message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("input.n > 3", True),
        ("input.n == 4 && input.i == 3.0", True),
        ("steps.a.output.count == 2", True),
        ('steps["b-c"].output[0]', 1.0),
        ("steps.x.y.output.q", "z"),
        ('steps["x.y"].output.q', "z"),
        ("has(input.s) && !has(input.t)", True),
        ("has(steps.a.output) && !has(steps.nothing.output)", True),
        ("input.o['a-b']", 1.0),
        ("'a-b' in input.o && 2.5 in input.l && 3 in input.l", True),
        ("input.n + 1", 5.0),
        ("input.i / 2", 1.5),
        ("input.i % 2 == 1", True),
        ("7 / 2 == 3 && -7 / 2 == -3 && -7 % 3 == -1", True),
        ("0.1 + 0.2 > 0.3", True),
        ("-9223372036854775808", -(2**63)),
        ("0x1F + 1", 32),
        ("1e3 + .5", 1000.5),
        ("- -input.n", 4.0),
        ("true ? 1 : 1 / 0", 1),
        ("input.missing || true", True),
        ("input.missing && false", False),
        ("[1, 'a'].exists(x, x > '')", True),
        ("[1, 2].all(x, x < 3)", True),
        ("[1, 2].exists_one(x, x == 2.0)", True),
        ("input.l.filter(x, x > 2)", [2.5, 3.0]),
        ("steps.a.output.rows.map(r, r.x * 2)", [3.0, 5.0]),
        ("input.l.map(x, x > 2, [x])", [[2.5], [3.0]]),
        ("[[1, 2], [3]].map(x, x.map(x, x * 2))", [[2, 4], [6]]),
        ("input.o.map(k, k)", ["a-b", "ok"]),
        ("{'a': [1,], 'b': {}, }", {"a": [1], "b": {}}),
        ("[1, [2]] == [1.0, [2.0]] && {'a': 1} == {'a': 1.0}", True),
        ("true == 1 || 'a' == 1 || null == false", False),
        ("size(input.s) + input.l.size()", 6),
        ("input.s.startsWith('ab') && input.s.endsWith('c') && input.s.contains('b')", True),
        ("input.s.matches('^a.c$') && matches('xay', 'a')", True),
        ("string(4.0) + string(2.5) + string(true) + string(1)", "42.5true1"),
        ("int('12') + int(2.9) + int(-2.9)", 12),
        ("double('1.5e1')", 15.0),
        ("bool('true')", True),
        (r"'\u00e4\n\x41\101\'' + r'\d' + " + r'"\""', "ä\nAA'\\d\""),
        ("input.none", None),
        ("input.in == null || true // a comment", True),
    ],
)
def test_values(source: str, expected: Any) -> None:
    found = value(source)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "ends too early"),
        ("1 +", "ends too early"),
        ("1 1", "unexpected '1' in line 1, column 3"),
        ("a b", "unexpected 'b'"),
        ("foo", "no 'foo'"),
        ("input.l.map(x, y)", "no 'y'"),
        ("input.l.map(x, x) + x", "no 'x'"),
        ("input.l.map(input, 1)", "name of a variable"),
        ("input.l.map(1, 1)", "name of a variable"),
        ("steps", "steps.a.output"),
        ("steps.a", "steps.a.output"),
        ("steps.a-b.output", "steps.a.output"),
        ("steps['a' + 'b'].output", "steps.a.output"),
        ("steps[input.s].output", "steps.a.output"),
        ("steps.exists(s, true)", "steps.a.output"),
        ("input.foo()", "unknown function 'foo'"),
        ("eval('1')", "unknown function 'eval'"),
        ("size()", "takes 1"),
        ("has(input)", "has(input.a)"),
        ("9223372036854775808", "64 bit"),
        (r"'\ud800'", "no character"),
        (r"'\q'", "unknown escape"),
        ("1u", "unexpected 'u'"),
        ("input.__class__()", "unknown function"),
        ("'" + "x" * 4095 + "'", "longer than 4096"),
    ],
)
def test_what_is_refused_when_it_is_read(source: str, says: str) -> None:
    assert says in invalid(source)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("input.missing", "no key 'missing'"),
        ("input.missing || false", "no key 'missing'"),
        ("input.__class__", "no key '__class__'"),
        ("steps.nothing.output", "step 'nothing' has no output"),
        ("input.l[3]", "not in a list of 3"),
        ("input.l[-1]", "not in a list"),
        ("input.l[0.5]", "not in a list"),
        ("input.l[1e400]", "not in a list"),
        ("input.l[true]", "indexed by bool"),
        ("'a' + 1", "string + int"),
        ("true + true", "bool + bool"),
        ("1 / 0", "no result"),
        ("input.n % 0", "no result"),
        ("9223372036854775807 + 1", "64 bits"),
        ("int(1e30)", "64 bits"),
        ("-(-9223372036854775807 - 1)", "64 bits"),
        ("1 < 'a'", "int < string"),
        ("null < null", "null < null"),
        ("1 ? 2 : 3", "a bool is needed"),
        ("!1", "a bool is needed"),
        ("{1: 2}", "int as key"),
        ("{'a': 1, 'a': 2}", "twice"),
        ("has(input.n.x)", "double has no fields"),
        ("input.n.all(x, true)", "neither list nor map"),
        ("double('1e999')", "JSON does not have"),
        ("1e308 * 10", "JSON does not have"),
        ("int('1_0')", "cannot become int"),
        ("double('nan')", "cannot become double"),
        ("'a'.matches('(')", "no pattern"),
        ("'a'.matches('(?=a)')", "no pattern"),
    ],
)
def test_what_has_no_value(source: str, says: str) -> None:
    assert says in failing(source)


def doubling(levels: int, grow: str) -> str:
    body = f"x{levels}"
    for level in range(levels, 0, -1):
        body = f"[{grow.format(f'x{level - 1}')}].map(x{level}, {body})"
    return f"[input.s].map(x0, {body})"


HOSTILE_SOURCES = {
    "parentheses": "(" * 2048 + "1" + ")" * 2048,
    "lists": "[" * 2048 + "]" * 2048,
    "open lists": "[" * 4096,
    "open maps": "{" * 4096,
    "indexes": "input" + "[input" * 500 + "]" * 500,
    "negations": "!" * 4000 + "true",
    "signs": "-" * 4000 + "1",
    "sums": "+".join("1" * 2000),
    "fields": "input" + ".a" * 2000,
    "conditions": "true?1:" * 580 + "1",
    "half conditions": "true?" * 800,
    "open quote": '"' + "\\a" * 2000,
    "open quote of backslashes": "'" + "\\" * 4001,
    "many quotes": "'" * 4095,
    "what crashes parsers that look ahead": ("!!(!!!!!!(!!!!(((((!!(!!(!!!!((" * 133)[:4096],
    "punctuation": ".()[]{}?:,&&||" * 290,
    "digits": "9" * 4096,
    "digits of a double": "1e" + "9" * 4000 + "u",
    "comments": "//" * 2048,
    "parts": "[" + "1," * 2040 + "]",
    "null characters": "\0" * 4096,
    "calls": "size(" * 800 + "1" + ")" * 800,
    "macros": "[1].map(a," * 300 + "a" + ")" * 300,
}
BIG = {
    "l": [float(n) for n in range(1000)],
    "big": [1.0] * 100_000,
    "text": "a" * 1_000_000,
    "s": "x" * 100,
    "deep": [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]],
}
HOSTILE_EVALUATIONS = {
    "nested all": "input.l.all(a, input.l.all(b, input.l.all(c, true)))",
    "nested map": "input.l.map(a, input.l.map(b, input.l.map(c, c)))",
    "sums of lists": "input.l.map(a, input.big + input.big)",
    "copies of a list": "input.l.map(a, input.big)",
    "copies of a text": "input.l.map(a, input.text)",
    "doubled text": doubling(20, "{0} + {0}"),
    "shared parts": doubling(20, "[{0}, {0}]"),
    "shared parts under a map": doubling(14, "{{'a': {0}, 'b': {0}, 'c': {0}}}"),
    "sums of texts": "input.l.map(a, input.text + string(a))",
    "comparisons of texts": "input.l.all(a, input.text + 'b' == input.text + 'b')",
    "order of texts": "input.l.all(a, input.l.all(b, input.text <= input.text))",
    "comparisons of lists": "input.l.all(a, input.big == input.big)",
    "look-ups": "input.l.all(a, !(-1 in input.big))",
    "searches": "input.l.all(a, !input.text.contains('ab'))",
    "beginnings": "input.l.all(a, input.text.startsWith(input.text))",
    "repetitions of repetitions": "input.text.matches('(x{0,30}){0,30}a{0,900}b')",
    "patterns": "input.l.all(a, !'a'.matches('(a{1,30}){1,30}' + string(a)))",
    "long pattern": "'a'.matches(input.text)",
    "large pattern": "'a'.matches('(((a{100}){100}){100}){100}')",
    "products": "input.l.map(a, 9223372036854775807 * 9223372036854775807)",
    "sorting by force": "input.l.filter(a, input.l.filter(b, b < a).size() == -1)",
    "absorbed errors": "input.l.exists(a, input.l.exists(b, input.l.exists(c, c.d)))",
    "absorbed budget": "input.l.all(a, input.l.all(b, input.l.all(c, true))) || true",
    "a deep result": "[" * 20 + "input.deep" + "]" * 20,
}


@pytest.mark.parametrize("source", HOSTILE_SOURCES.values(), ids=HOSTILE_SOURCES)
def test_hostile_sources_are_refused_soon(source: str) -> None:
    invalid(source)


@pytest.mark.parametrize("source", HOSTILE_EVALUATIONS.values(), ids=HOSTILE_EVALUATIONS)
def test_hostile_evaluations_end_soon(source: str) -> None:
    failing(source, BIG)


def test_patterns_take_time_linear_in_the_text() -> None:
    assert value("input.text.matches('^(a*)*(a*)*(a|a|a)*b$')", BIG) is False


def test_values_that_are_too_deep_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert "too deep" in failing("input", deep)


def test_the_input_is_not_shared_with_the_result() -> None:
    found = value("input.o")
    found["ok"] = False
    assert INPUT["o"] == {"a-b": 1, "ok": True}


def test_conditions_give_bools() -> None:
    assert Expression.compile("input.n > 3", "f").holds(Scope(INPUT, {})) is True
    with pytest.raises(MeshError, match="must give a bool"):
        Expression.compile("input.n", "f").holds(Scope(INPUT, {}))


@pytest.mark.parametrize(
    ("source", "steps", "path"),
    [
        ("input", set(), Path(None, ())),
        ("input.a['b-c'].d", set(), Path(None, ("a", "b-c", "d"))),
        ("steps.a.output", {"a"}, Path("a", ())),
        ("(steps['a-b'].output).x", {"a-b"}, Path("a-b", ("x",))),
        ("steps.a.b.output.output", {"a.b"}, Path("a.b", ("output",))),
        ("steps['a.output'].output.steps", {"a.output"}, Path("a.output", ("steps",))),
        ("false && steps.a.output[steps.b.output]", {"a", "b"}, None),
        ("has(steps.a.output) || has(steps.b.output.x)", {"a", "b"}, None),
        ("input.l.map(a, steps.c.output + a)", {"c"}, None),
        ("input.steps.a.output", set(), Path(None, ("steps", "a", "output"))),
        ("input.l[0]", set(), None),
    ],
)
def test_what_it_refers_to(source: str, steps: set[str], path: Path | None) -> None:
    expression = Expression.compile(source, "f")
    assert expression.steps == steps
    assert expression.path == path


@given(st.text(alphabet="input.steps[]()'\"\\?:+-*/%<>=!&|,{} 0123456789abr\n", max_size=80))
def test_any_source_has_a_value_or_an_error_of_ours(source: str) -> None:
    try:
        value(source)
    except MeshError as error:
        assert error.reason in ("EXPRESSION_INVALID", "EXPRESSION_FAILED")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values, json_values)
def test_equality_is_that_of_json(left: Any, right: Any) -> None:
    input = {"a": left, "b": right}
    assert value("input", input) == input
    assert value("input.a == input.a", input)
    assert value("input.a == input.b", input) == value("input.b == input.a", input)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63) + 1, 2**63 - 1))
def test_numbers_compare_as_numbers(double: float, integer: int) -> None:
    assert value(f"input < {integer}", double) == (double < integer)
    assert value(f"input == {integer}", double) == (double == integer)
    assert value(f"input == {integer}", float(integer)) == (float(integer) == integer)
    if math.isfinite(double) and double:
        assert value("input / input == 1", double)

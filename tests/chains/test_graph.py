"""Chains as graphs: what is refused, what comes next, what each step gets."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bxmesh.agent.v1.chain_run_pb2 import RunState
from bxmesh.registry.v1.chain_pb2 import Chain, ChainStep
from bxmesh.server.chains.graph import ChainGraph
from bxmesh.server.chains.progress import next_steps
from bxmesh.server.chains.references import FunctionReference
from bxmesh.server.errors import MeshError

COMPLETED = RunState.RUN_STATE_COMPLETED
FAILED = RunState.RUN_STATE_FAILED
SKIPPED = RunState.RUN_STATE_SKIPPED
RUNNING = RunState.RUN_STATE_RUNNING


def step(
    step_id: str, *after: str, gets: Mapping[str, str] | None = None, **more: Any
) -> ChainStep:
    call = more if more.keys() & {"function", "capability"} else {"agent": "a", **more}
    return ChainStep(step_id=step_id, after=after, input_mapping=gets, **call)


def graph(
    *steps: ChainStep, output: Mapping[str, str] | None = None, depth: int = 200
) -> ChainGraph:
    return ChainGraph.of(Chain(steps=steps, output_mapping=output), max_depth=depth)


def refused(*steps: ChainStep, output: Mapping[str, str] | None = None, depth: int = 200) -> Any:
    with pytest.raises(MeshError) as caught:
        graph(*steps, output=output, depth=depth)
    assert caught.value.code.name == "INVALID_ARGUMENT"
    [(field, description)] = caught.value.field_violations
    return caught.value.reason, field, description


def test_the_order_respects_after() -> None:
    chain = graph(step("c", "b"), step("b", "a"), step("a"))
    assert list(chain.steps) == ["a", "b", "c"]
    assert chain.last == "c"


@pytest.mark.parametrize(
    ("steps", "reason", "field", "says"),
    [
        ((step("a"), step("a")), "STEP_DUPLICATE", "chain.steps[1].step_id", '"a"'),
        ((step("a", "x"),), "STEP_UNKNOWN", "chain.steps[0].after[0]", '"x"'),
        ((step("a", "a"),), "CHAIN_CYCLIC", "chain.steps", "a → a"),
        ((step("a", "b"), step("b", "a")), "CHAIN_CYCLIC", "chain.steps", "a → b → a"),
        (
            (step("a"), step("b"), step("c", "a", "b")),
            "INPUT_AMBIGUOUS",
            "chain.steps[2].input_mapping",
            '"a", "b"',
        ),
        ((step("a"), step("b")), "OUTPUT_AMBIGUOUS", "chain.output_mapping", '"a", "b"'),
        (
            (step("a", gets={"x": "1 +"}),),
            "EXPRESSION_INVALID",
            'chain.steps[0].input_mapping["x"]',
            "ends too early",
        ),
        (
            (step("a", gets={"a": "1", "a.b": "2", "ab": "3"}),),
            "MAPPING_CONFLICT",
            'chain.steps[0].input_mapping["a.b"]',
            '"a"',
        ),
        (
            (step("a", gets={"a..b": "1"}),),
            "MAPPING_INVALID",
            'chain.steps[0].input_mapping["a..b"]',
            "dots",
        ),
        (
            (step("a", gets={".".join("a" * 60): "1"}),),
            "MAPPING_INVALID",
            'chain.steps[0].input_mapping["' + ".".join("a" * 60) + '"]',
            "16 names",
        ),
        (
            (step("a"), step("b"), step("c", "a", gets={"x": "steps.b.output"})),
            "STEP_NOT_BEFORE",
            'chain.steps[2].input_mapping["x"]',
            '"b"',
        ),
        (
            (step("a", condition="steps.a.output == 1"),),
            "STEP_NOT_BEFORE",
            "chain.steps[0].condition",
            '"a"',
        ),
        (
            (step("a", condition="has(steps.z.output)"),),
            "STEP_UNKNOWN",
            "chain.steps[0].condition",
            '"z"',
        ),
        (
            (step("a", function="Not A Name@"),),
            "FUNCTION_REFERENCE_INVALID",
            "chain.steps[0].function",
            "name@version",
        ),
        (
            tuple(
                step(f"s{n}", gets={f"f{m}": "'" + "x" * 1000 + "'" for m in range(10)})
                for n in range(8)
            ),
            "CHAIN_TOO_LARGE",
            "chain",
            "65,536",
        ),
    ],
)
def test_what_is_wrong_is_named(
    steps: tuple[ChainStep, ...], reason: str, field: str, says: str
) -> None:
    found_reason, found_field, description = refused(*steps)
    assert (found_reason, found_field) == (reason, field)
    assert says in description


def test_a_mapped_output_is_checked_too() -> None:
    steps = (step("a"), step("b"))
    assert refused(*steps, output={"x": "steps.c.output"})[0] == "STEP_UNKNOWN"
    assert refused(*steps, output={"x": "1", "x.y": "1"})[:2] == (
        "MAPPING_CONFLICT",
        'chain.output_mapping["x.y"]',
    )


def test_a_chain_may_be_as_deep_as_it_may() -> None:
    steps = [step("s0")] + [step(f"s{n}", f"s{n - 1}") for n in range(1, 10)]
    assert len(graph(*steps, depth=10).steps) == 10
    reason, _, description = refused(*steps, depth=9)
    assert reason == "CHAIN_TOO_DEEP"
    assert "10 steps" in description


def test_expressions_reach_all_that_has_ended_before() -> None:
    chain = graph(
        step("a"),
        step("b-1", "a"),
        step("c", "b-1", gets={"x.y": "steps.a.output.n + 1", "x.z": 'steps["b-1"].output'}),
        output={"all": "[steps.a.output.n, steps.c.output]"},
    )
    outputs = {"a": {"n": 1}, "b-1": "two", "c": 3}
    assert chain.input_of("a", {"q": 0}, {}) == {"q": 0}
    assert chain.input_of("b-1", {}, outputs) == {"n": 1}
    assert chain.input_of("c", {}, outputs) == {"x": {"y": 2, "z": "two"}}
    assert chain.output_of({}, outputs) == {"all": [1, 3]}


def test_a_step_without_an_output_gives_null_as_a_whole_and_is_absent_in_expressions() -> None:
    chain = graph(
        step("a", condition="input.n > 3"),
        step("b", "a"),
        step("c", "b", gets={"x": "has(steps.a.output) ? steps.a.output : 'none'"}),
        step("d", "c", gets={"x": "steps.a.output"}),
    )
    assert chain.holds("a", {"n": 4.0}, {})
    assert not chain.holds("a", {"n": 3}, {})
    assert chain.holds("b", {}, {})
    assert chain.input_of("b", {}, {}) is None
    assert chain.input_of("c", {}, {}) == {"x": "none"}
    assert chain.output_of({}, {}) is None
    with pytest.raises(MeshError) as caught:
        chain.input_of("d", {}, {})
    assert caught.value.reason == "EXPRESSION_FAILED"
    assert 'chain.steps[3].input_mapping["x"]' in caught.value.message
    assert "'a' has no output" in caught.value.message


def test_steps_that_do_not_wait_for_each_other_are_ready_together() -> None:
    chain = graph(step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c", gets={"x": "1"}))
    assert next_steps(chain, {}).ready == ("a",)
    assert next_steps(chain, {"a": RUNNING}).ready == ()
    assert next_steps(chain, {"a": COMPLETED}).ready == ("b", "c")
    assert next_steps(chain, {"a": COMPLETED, "b": COMPLETED, "c": RUNNING}).ready == ()
    done = dict.fromkeys("abcd", COMPLETED)
    assert not next_steps(chain, done | {"d": RUNNING}).ended
    assert next_steps(chain, done).ended


@pytest.mark.parametrize("state", [FAILED, RunState.RUN_STATE_TIMED_OUT])
def test_a_failure_skips_all_that_follow_and_only_that(state: RunState.ValueType) -> None:
    chain = graph(
        step("a"), step("b", "a"), step("c", "b"), step("d"), step("e", "c", "d", gets={"x": "1"})
    )
    following = next_steps(chain, {"a": state})
    assert following.skip == ("b", "c", "e")
    assert following.ready == ("d",)
    assert following.failed == ("a",)
    states = {"a": state, "b": SKIPPED, "d": COMPLETED}
    assert next_steps(chain, states).skip == ("c", "e")
    assert next_steps(chain, states | {"c": SKIPPED, "e": SKIPPED}).ended


def test_a_step_that_may_fail_blocks_nothing() -> None:
    chain = graph(step("a", allow_failure=True), step("b", "a"))
    assert next_steps(chain, {"a": FAILED}).ready == ("b",)
    assert next_steps(chain, {"a": FAILED}).failed == ()
    assert next_steps(chain, {"a": RunState.RUN_STATE_CANCELLED}).skip == ("b",)


def test_a_step_left_out_by_its_condition_blocks_nothing() -> None:
    chain = graph(step("a"), step("b", "a", condition="false"), step("c", "b"))
    assert next_steps(chain, {"a": COMPLETED, "b": SKIPPED}).ready == ("c",)
    assert next_steps(chain, {"a": FAILED, "b": SKIPPED}).skip == ("c",)


def test_function_references() -> None:
    assert FunctionReference.parse("f.g", "x") == FunctionReference("f.g")
    assert FunctionReference.parse("f@1.2.3", "x") == FunctionReference("f", "1.2.3")
    assert str(FunctionReference.parse("f@stable", "x")) == "f@stable"
    assert FunctionReference.parse("f@sha256:" + "0" * 64, "x").version.startswith("sha256:")
    for text in ("", "@", "f@", "F", "f@@1", "f g", "f@a b", "a" * 129, "f@\n"):
        with pytest.raises(MeshError, match="name@version"):
            FunctionReference.parse(text, "x")


@st.composite
def dags(draw: st.DrawFn) -> dict[str, list[str]]:
    """Steps by name, in any order, each with what it waits for."""
    count = draw(st.integers(2, 20))
    after = {
        f"s{n}": [f"s{m}" for m in draw(st.sets(st.integers(0, n - 1), max_size=4))] if n else []
        for n in range(count)
    }
    return {name: after[name] for name in draw(st.permutations(sorted(after)))}


def built(after: dict[str, list[str]]) -> list[ChainStep]:
    return [step(name, *before, gets={"x": "1"}) for name, before in after.items()]


@given(dags())
def test_any_graph_without_cycles_has_an_order(after: dict[str, list[str]]) -> None:
    chain = graph(*built(after), output={"x": "1"})
    place = {name: index for index, name in enumerate(chain.steps)}
    assert place.keys() == after.keys()
    assert all(place[b] < place[name] for name, before in after.items() for b in before)
    # Run to its end, every step is ready once.
    states: dict[str, RunState.ValueType] = {}
    while not (following := next_steps(chain, states)).ended:
        assert following.ready
        assert not following.skip
        states |= dict.fromkeys(following.ready, COMPLETED)
    assert states.keys() == after.keys()


@given(dags(), st.data())
def test_any_edge_back_is_found(after: dict[str, list[str]], data: st.DataObject) -> None:
    waiting = [name for name in after if after[name]]
    if not waiting:
        return
    late = data.draw(st.sampled_from(waiting))
    early = data.draw(st.sampled_from(after[late]))
    after[early] = [*after[early], late]
    reason, _, description = refused(*built(after), output={"x": "1"})
    assert reason == "CHAIN_CYCLIC"
    cycle = description.removeprefix("wait for each other: ").split(" → ")
    assert cycle[0] == cycle[-1]
    assert all(before in after[name] for before, name in pairwise(cycle))


@given(dags(), st.data())
def test_any_failures_end_the_run(after: dict[str, list[str]], data: st.DataObject) -> None:
    chain = graph(*built(after), output={"x": "1"})
    states: dict[str, RunState.ValueType] = {}
    while not (following := next_steps(chain, states)).ended:
        assert following.ready or following.skip
        states |= dict.fromkeys(following.skip, SKIPPED)
        for name in following.ready:
            states[name] = data.draw(st.sampled_from([COMPLETED, FAILED, SKIPPED]))
    for name, before in after.items():
        if any(states[b] == FAILED for b in before):
            assert states[name] == SKIPPED


def test_a_mapping_is_bounded_as_a_whole() -> None:
    one = "size(input.l.map(a, input.l.map(b, a))) > 0"
    few = graph(step("a", gets={"x": one}))
    assert few.input_of("a", {"l": [1.0] * 150}, {}) == {"x": True}
    many = graph(step("a", gets={f"x{n}": one for n in range(64)}))
    with pytest.raises(MeshError, match="steps"):
        many.input_of("a", {"l": [1.0] * 150}, {})
    copies = graph(step("a", gets={f"x{n}": "input.t" for n in range(64)}))
    with pytest.raises(MeshError, match="larger than"):
        copies.input_of("a", {"t": "x" * 100_000}, {})
    deep: Any = 1.0
    for _ in range(28):
        deep = [deep]
    assert graph(step("a", gets={"x.y": "input"})).input_of("a", deep, {}) == {"x": {"y": deep}}
    with pytest.raises(MeshError, match="levels deep"):
        graph(step("a", gets={"x.y.z": "input"})).input_of("a", deep, {})

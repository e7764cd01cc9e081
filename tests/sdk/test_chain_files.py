"""Chains in files."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format

from bxmesh.client import AsyncMesh, Chain, ChainStep, InvalidInput, RetryPolicy
from tests.sdk.agents import soon
from tests.sdk.test_chains import f

__all__ = ["f"]

YAML = """\
steps:
  - step_id: score
    function: {f}.add
    inputs: {{a: input.n, b: 10}}
    timeout: 1.5
    retry: {{max_attempts: 3, initial_backoff: 0.01}}
  - step_id: large
    function: {f}.echo
    after: score
    condition: steps.score.output.sum > 11
    inputs: {{way: "'long'", "of.all": "[1, 2.5, true]"}}
    allow_failure: true
outputs:
  total: steps.score.output.sum
  large: has(steps.large.output)
input_schema: {{type: object, required: [n]}}
timeout: 60
"""


async def test_yaml_and_json(mesh: AsyncMesh, f: str, tmp_path: Path) -> None:
    chain = Chain.parse(YAML.format(f=f))
    score, large = chain.steps
    assert score.inputs == {"a": "input.n", "b": "10"}
    assert (score.timeout, chain.timeout) == (1.5, 60.0)
    assert score.retry == RetryPolicy(max_attempts=3, initial_backoff=0.01)
    assert (large.after, large.allow_failure) == (("score",), True)
    assert chain.input_schema == {"type": "object", "required": ["n"]}
    assert Chain.parse(chain.to_yaml()) == chain
    assert Chain.from_message(chain.to_message()) == chain
    file = tmp_path / "chain.json"
    file.write_text(json_format.MessageToJson(chain.to_message()))
    assert Chain.read(file) == chain
    assert await mesh.chains.run(file, {"n": 1}) == {"large": False, "total": 11}
    run = await mesh.chains.start(file, {"n": 2})
    run = await soon(mesh.chains.wait(run.run_id))
    assert run.value == {"large": True, "total": 12}
    assert run.steps[1].input == {"of": {"all": [1, 2.5, True]}, "way": "long"}


def test_schemas_are_kept() -> None:
    chain = Chain([], input_schema="google.protobuf.Struct", output_schema={"maximum": 1})
    assert Chain.from_message(chain.to_message()) == chain
    assert Chain.parse(chain.to_yaml()) == chain


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names and values"),
        ("steps: [a]", "names and values in place of 'a'"),
        ("steps: {a: 1}", "steps"),
        ("steps: [{step_id: a, functoin: b}]", "functoin"),
        ("steps: [{step_id: a, function: b, agent: c}]", "oneof"),
        ("steps: [{step_id: a, timeout: soon}]", "timeout"),
        ("steps: [{step_id: a, timeout: .nan}]", "has no chain"),
        ("steps: [{step_id: a, inputs: [1]}]", "input_mapping"),
        ("steps: [{step_id: a, retry: 3}]", "in place of '3'"),
        ("steps: [", "has no chain"),
        ("&a [*a]", "names and values"),
        ("[" * 1000, "has no chain"),
    ],
)
def test_what_is_no_chain_says_why(text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Chain.parse(text)
    assert says in refused.value.message
    assert refused.value.reason == "CHAIN_UNREADABLE"


def test_files_and_steps_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        Chain.read(tmp_path / "none.yaml")
    for step in (ChainStep("a"), ChainStep("a", function="f", agent="b")):
        with pytest.raises(InvalidInput, match="give it a function, a capability or an agent"):
            Chain([step]).to_message()

"""Chains of stored functions and agents over real gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value
from redis.asyncio import Redis

from bxmesh.agent.v1 import chain_run_pb2 as pb
from bxmesh.agent.v1.chain_service_pb2_grpc import ChainServiceStub
from bxmesh.client import Agent, AsyncMesh, TaskContext, task
from bxmesh.client.errors import from_status
from bxmesh.registry.v1 import chain_pb2
from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy
from tests.functions.mesh import Caller, World, objects, refused
from tests.functions.mesh import world as run_world

COMPLETED = pb.RUN_STATE_COMPLETED
FAILED = pb.RUN_STATE_FAILED
CANCELLED = pb.RUN_STATE_CANCELLED
SKIPPED = pb.RUN_STATE_SKIPPED
TIMED_OUT = pb.RUN_STATE_TIMED_OUT
RUNNING = pb.RUN_STATE_RUNNING


def value(content: Any) -> Value:
    made = Value()
    json_format.ParseDict(content, made)
    return made


def step(step_id: str, *after: str, **fields: Any) -> chain_pb2.ChainStep:
    return chain_pb2.ChainStep(step_id=step_id, after=after, **fields)


def chain(*steps: chain_pb2.ChainStep, **fields: Any) -> chain_pb2.Chain:
    return chain_pb2.Chain(steps=steps, **fields)


class Doubler(Agent):
    """Doubles, for steps that ask for what it can and for steps that ask for it by name."""

    @task("test.double")
    async def double(self, context: TaskContext) -> dict[str, int]:
        return {"n": context.parameters["n"] * 2}

    @task("chain.step")
    async def step(self, context: TaskContext) -> dict[str, int]:
        return {"n": context.parameters["n"] * 2}


class Chains:
    """The chain service as one identity sees it."""

    def __init__(self, caller: Caller) -> None:
        self.channel = caller.channel
        self.stub: Any = ChainServiceStub(caller.channel)
        self.metadata = caller.metadata

    async def start(self, chain: chain_pb2.Chain, content: Any = None, **fields: Any) -> str:
        answer = await self.stub.StartChain(
            pb.StartChainRequest(chain=chain, input=value(content), **fields),
            metadata=self.metadata,
        )
        run_id: str = answer.run.run_id
        return run_id

    async def get(self, run_id: str) -> pb.ChainRun:
        answer = await self.stub.GetChain(pb.GetChainRequest(run_id=run_id), metadata=self.metadata)
        run: pb.ChainRun = answer.run
        return run

    async def watch(self, run_id: str, after: int = 0) -> list[pb.WatchChainResponse]:
        return [
            change
            async for change in self.stub.WatchChain(
                pb.WatchChainRequest(run_id=run_id, after_revision=after), metadata=self.metadata
            )
        ]

    async def run(self, chain: chain_pb2.Chain, content: Any = None) -> pb.ChainRun:
        """Runs a chain to its end."""
        changes = await self.watch(await self.start(chain, content))
        return changes[-1].run

    async def cancel(self, run_id: str) -> pb.ChainRun:
        answer = await self.stub.CancelChain(
            pb.CancelChainRequest(run_id=run_id), metadata=self.metadata
        )
        run: pb.ChainRun = answer.run
        return run


@pytest.fixture
async def chains(admin: Caller) -> Chains:
    """Chains, and functions to make them of."""
    await admin.create(
        "math.add",
        "def main(a, b=1):\n    return {'sum': a + b}\n",
        input_schema=objects(["a"], a={"type": "number"}, b={"type": "number"}),
        output_schema=objects(["sum"], sum={"type": "number"}),
    )
    await admin.create("test.echo", "def main(**fields):\n    return fields\n")
    await admin.create("test.fail", "def main(**fields):\n    raise ValueError('as asked')\n")
    await admin.create(
        "test.sleep",
        "import asyncio\n\nasync def main(seconds):\n    await asyncio.sleep(seconds)\n    return {}\n",
        is_async=True,
        allowed_imports=["asyncio"],
    )
    return Chains(admin)


def states(run: pb.ChainRun) -> dict[str, str]:
    return {s.step_id: pb.RunState.Name(s.state)[10:].lower() for s in run.steps}


async def test_steps_run_one_after_another(chains: Chains) -> None:
    run = await chains.run(
        chain(
            step("first", function="math.add", input_mapping={"a": "input.n"}),
            step(
                "second",
                "first",
                function="math.add",
                input_mapping={"a": "steps.first.output.sum", "b": "10"},
            ),
            output_mapping={
                "total": "steps.second.output.sum",
                "half.way": "steps.first.output.sum",
            },
        ),
        {"n": 1},
    )
    assert run.state == COMPLETED, run.error
    assert json_format.MessageToDict(run.output) == {"total": 12, "half": {"way": 2}}
    assert states(run) == {"first": "completed", "second": "completed"}
    assert run.steps[0].end_time.ToNanoseconds() <= run.steps[1].start_time.ToNanoseconds()
    assert run.steps[1].input.struct_value["a"] == 2
    assert run.owner == "admin"


async def test_steps_that_wait_for_nobody_run_at_the_same_time(chains: Chains) -> None:
    run = await chains.run(
        chain(
            step("a", function="test.sleep"),
            step("b", function="test.sleep"),
            step("end", "a", "b", function="test.echo", input_mapping={"done": "true"}),
        ),
        {"seconds": 0.5},
    )
    assert run.state == COMPLETED, run.error
    a, b, _ = run.steps
    assert a.start_time.ToNanoseconds() < b.end_time.ToNanoseconds()
    assert b.start_time.ToNanoseconds() < a.end_time.ToNanoseconds()


async def test_conditions_leave_steps_out(chains: Chains) -> None:
    both = chain(
        step("small", function="test.echo", condition="input.n < 10"),
        step("large", function="test.echo", condition="input.n >= 10"),
        step(
            "end",
            "small",
            "large",
            function="test.echo",
            input_mapping={"large": "has(steps.large.output)"},
        ),
    )
    for n, left_out in ((1, "large"), (10, "small")):
        run = await chains.run(both, {"n": n})
        assert run.state == COMPLETED, run.error
        assert states(run)[left_out] == "skipped"
        assert run.output.struct_value["large"] == (n == 10)


async def test_a_step_that_fails_ends_the_chain_and_says_why(chains: Chains) -> None:
    run = await chains.run(
        chain(
            step("bad", function="test.fail"),
            step("next", "bad", function="test.echo"),
        ),
        {},
    )
    assert run.state == FAILED
    assert states(run) == {"bad": "failed", "next": "skipped"}
    error = from_status(run.error)
    assert error.reason == "FUNCTION_FAILED"
    assert "bad" in error.message
    assert "as asked" in error.message


async def test_a_step_that_may_fail_does_not(chains: Chains) -> None:
    run = await chains.run(
        chain(
            step("bad", function="test.fail", allow_failure=True),
            step(
                "next",
                "bad",
                function="test.echo",
                input_mapping={"there": "has(steps.bad.output)"},
            ),
        ),
        {},
    )
    assert run.state == COMPLETED
    assert run.output.struct_value["there"] is False


async def test_steps_are_tried_again(chains: Chains) -> None:
    policy = RetryPolicy(max_attempts=3, initial_backoff=Duration(nanos=1_000_000))
    run = await chains.run(chain(step("bad", function="test.fail", retry_policy=policy)), {})
    assert run.state == FAILED
    assert run.steps[0].attempts == 3
    policy.non_retryable_reasons.append("FUNCTION_FAILED")
    run = await chains.run(chain(step("bad", function="test.fail", retry_policy=policy)), {})
    assert run.steps[0].attempts == 1


async def test_steps_and_chains_run_out_of_time(chains: Chains) -> None:
    run = await chains.run(
        chain(step("slow", function="test.sleep", timeout=Duration(nanos=200_000_000))),
        {"seconds": 20},
    )
    assert (run.state, run.steps[0].state) == (TIMED_OUT, TIMED_OUT)
    run = await chains.run(
        chain(step("slow", function="test.sleep"), timeout=Duration(nanos=300_000_000)),
        {"seconds": 20},
    )
    assert (run.state, run.steps[0].state) == (TIMED_OUT, CANCELLED)
    assert from_status(run.error).reason == "CHAIN_TIMED_OUT"


async def test_a_run_can_be_cancelled(chains: Chains) -> None:
    run_id = await chains.start(
        chain(step("slow", function="test.sleep"), step("next", "slow", function="test.echo")),
        {"seconds": 20},
    )
    await until(chains, run_id, lambda run: run.steps[0].state == RUNNING)
    run = await chains.cancel(run_id)
    assert (run.state, states(run)) == (CANCELLED, {"slow": "cancelled", "next": "skipped"})
    assert await chains.cancel(run_id) == run
    assert (await chains.watch(run_id))[-1].run == run


async def test_a_watch_tells_every_step_and_can_be_resumed(chains: Chains) -> None:
    run_id = await chains.start(
        chain(
            step("a", function="test.echo"),
            step("b", "a", function="test.echo"),
            step("c", "b", function="test.echo"),
        ),
        {},
    )
    changes = await chains.watch(run_id)
    assert changes[0].HasField("run")
    assert changes[-1].run.state == COMPLETED
    revisions = [change.revision for change in changes]
    assert revisions == sorted(revisions)
    last = {c.step.step_id: c.step.state for c in changes if c.HasField("step")}
    seen = {s.step_id: s.state for s in changes[0].run.steps} | last
    assert set(seen.values()) == {COMPLETED}
    again = await chains.watch(run_id, after=revisions[-1])
    assert [c.WhichOneof("change") for c in again] == ["run"]


@pytest.mark.parametrize(
    ("steps", "field", "reason"),
    [
        (
            [step("a", "b", function="test.echo"), step("b", "a", function="test.echo")],
            "chain.steps",
            "CHAIN_CYCLIC",
        ),
        ([step("a", function="no.such")], "chain.steps[0].function", "TOOL_UNKNOWN"),
        ([step("a", function="test.echo@9.9.9")], "chain.steps[0].function", "TOOL_UNKNOWN"),
        ([step("a", "x", function="test.echo")], "chain.steps[0].after[0]", "STEP_UNKNOWN"),
        (
            [step("a", function="test.echo", condition="1 +")],
            "chain.steps[0].condition",
            "EXPRESSION_INVALID",
        ),
        (
            [
                step("a", function="math.add", input_mapping={"a": "1"}),
                step("b", "a", function="math.add"),
            ],
            "chain.steps[1]",
            "SCHEMAS_DO_NOT_FIT",
        ),
    ],
)
async def test_chains_that_cannot_run_are_named(
    chains: Chains, steps: list[chain_pb2.ChainStep], field: str, reason: str
) -> None:
    error = await refused(chains.start(chain(*steps), {}))
    assert error.reason == reason
    assert error.field_violations[0][0] == field


async def test_inputs_must_fit(chains: Chains) -> None:
    wanted = chain(
        step("a", function="test.echo"), input_schema=objects(["n"], n={"type": "integer"})
    )
    error = await refused(chains.start(wanted, {"n": "x"}))
    assert (error.reason, error.field_violations[0][0]) == ("SCHEMA_MISMATCH", "input.n")
    assert (await chains.run(wanted, {"n": 1})).state == COMPLETED


async def test_others_do_not_see_a_run(world: World, chains: Chains) -> None:
    alice = await world.caller(
        "alice", "task_assign", "task_read", "function_execute", "function_read"
    )
    run_id = await chains.start(chain(step("a", function="test.echo")), {})
    other = Chains(alice)
    assert (await refused(other.get(run_id))).reason == "RUN_NOT_FOUND"
    assert (await refused(other.cancel(run_id))).reason == "RUN_NOT_FOUND"
    page = await other.stub.ListChains(pb.ListChainsRequest(), metadata=other.metadata)
    assert not page.runs
    page = await chains.stub.ListChains(pb.ListChainsRequest(), metadata=chains.metadata)
    assert [run.run_id for run in page.runs] == [run_id]


async def test_a_run_may_do_no_more_than_its_owner(world: World, admin: Caller) -> None:
    await admin.create("test.all", "def main(**fields):\n    return fields\n", visibility=3)
    alice = await world.caller("alice", "task_assign", "task_read", "function_read")
    run = await Chains(alice).run(chain(step("a", function="test.all")), {})
    assert run.state == FAILED
    assert from_status(run.error).reason == "PERMISSION_MISSING"


async def test_agents_do_steps(world: World, chains: Chains, admin: Caller) -> None:
    key = admin.metadata[0][1].removeprefix("Bearer ")
    async with (
        AsyncMesh(world.server.address, api_key=key) as mesh,
        Doubler("doubler").running(mesh),
    ):
        run = await chains.run(
            chain(
                step("one", capability="test.double"),
                step("two", "one", agent="doubler"),
            ),
            {"n": 3},
        )
    assert run.state == COMPLETED, run.error
    assert run.output.struct_value["n"] == 12
    assert [s.agent_id for s in run.steps] == ["doubler", "doubler"]


async def test_a_run_goes_on_after_a_restart_and_repeats_nothing(
    redis: Redis, shared_valkey: str, tmp_path: Any
) -> None:
    folder = tmp_path / "state"
    async with run_world(shared_valkey, folder, drain_grace=0.1) as first:
        admin = first.admin
        await admin.create("test.echo", "def main(**fields):\n    return fields\n")
        await admin.create(
            "test.sleep",
            "import asyncio\n\nasync def main(seconds):\n    await asyncio.sleep(seconds)\n    return {}\n",
            is_async=True,
            allowed_imports=["asyncio"],
        )
        chains = Chains(admin)
        run_id = await chains.start(
            chain(
                step("a", function="test.echo"),
                step("b", "a", function="test.sleep"),
                step("c", "b", function="test.echo"),
            ),
            {"seconds": 1.5},
        )
        before = await until(chains, run_id, lambda run: run.steps[1].state == RUNNING)
    async with run_world(shared_valkey, folder) as second:
        chains = Chains(second.admin)
        run = (await chains.watch(run_id))[-1].run
    assert run.state == COMPLETED, run.error
    assert run.steps[0] == before.steps[0]


async def until(chains: Chains, run_id: str, holds: Any) -> pb.ChainRun:
    for _ in range(200):
        run = await chains.get(run_id)
        if holds(run):
            return run
        await asyncio.sleep(0.05)
    raise AssertionError(run)


@pytest.mark.parametrize("options", [{"max_open_runs": 2}])
async def test_nobody_has_all_the_room(world: World, chains: Chains) -> None:
    slow = chain(step("slow", function="test.sleep"))
    runs = [await chains.start(slow, {"seconds": 20}) for _ in range(2)]
    assert (await refused(chains.start(slow, {"seconds": 20}))).reason == "TOO_MANY_RUNS"
    alice = Chains(
        await world.caller(
            "alice", "task_assign", "task_read", "function_execute", "function_write"
        )
    )
    await Caller(chains.channel, alice.metadata).create(
        "alice.echo", "def main():\n    return {}\n"
    )
    assert (await alice.run(chain(step("a", function="alice.echo")), {})).state == COMPLETED
    for run_id in runs:
        await chains.cancel(run_id)
    await chains.cancel(await chains.start(slow, {"seconds": 20}))


async def test_a_number_that_json_does_not_have_is_refused(chains: Chains) -> None:
    request = pb.StartChainRequest(chain=chain(step("a", function="test.echo")))
    request.input.number_value = float("nan")
    error = await refused(chains.stub.StartChain(request, metadata=chains.metadata))
    assert error.field_violations[0][0] == "input"

"""What callers may try that mean harm: nobody else may notice, and they are told what is wrong."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import grpc
import protovalidate
import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from redis.asyncio import Redis

from bxmesh.agent.v1 import chain_run_pb2, function_pb2, state_pb2
from bxmesh.agent.v1.chain_service_pb2_grpc import ChainServiceStub
from bxmesh.client.errors import from_rpc_error, from_status
from bxmesh.registry.v1 import agent_definition_pb2 as pb
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.security.v1 import credential_pb2
from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL
from bxmesh.server.interceptors.validation import refuse_invalid
from bxmesh.server.json_schemas import SchemaError, find_misfit
from bxmesh.server.pages import token_of
from bxmesh.server.streams import queue
from tests.functions.mesh import (
    COMPLETED,
    FAILED,
    PENDING,
    Caller,
    World,
    refused,
    schema,
    struct,
)
from tests.functions.mesh import world as run_world
from tests.functions.test_chains import Chains, chain, step
from tests.functions.test_durable import FAIL, end_of, look, retries

SECONDS = 20.0
NOTHING = "def main(**fields):\n    return 1\n"
SLEEP = "import asyncio\n\nasync def main():\n    await asyncio.sleep(0.3)\n"
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
    definition = pb.AgentDefinition(definition_id="it", output_schema=bad)
    error = await refused(
        admin.registry.CreateAgentDefinition(
            pb.CreateAgentDefinitionRequest(definition=definition),
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


async def test_nothing_is_stored_that_cannot_be_read(admin: Caller) -> None:
    large = "y" * (3 << 20)
    error = await refused(
        admin.create("test.it", "def main(x): pass\n", example_input=struct(x=large))
    )
    assert (error.reason, error.code) == ("TOO_LARGE", grpc.StatusCode.INVALID_ARGUMENT)
    definition = pb.AgentDefinition(definition_id="it")
    definition.model.extra.update({"x": large})
    error = await refused(
        admin.registry.CreateAgentDefinition(
            pb.CreateAgentDefinitionRequest(definition=definition), metadata=admin.metadata
        )
    )
    assert error.reason == "TOO_LARGE"


async def test_a_run_stays_as_large_as_a_message(admin: Caller) -> None:
    await admin.create("test.it", NOTHING)
    steps = [step(f"s{n}", function="test.it", input_mapping={"x": "input"}) for n in range(40)]
    chains = Chains(admin)
    run = await chains.run(chain(*steps, output_mapping={"n": "1"}), "y" * (1 << 20))
    assert run.state == chain_run_pb2.RUN_STATE_FAILED
    reasons = {from_status(each.error).reason for each in run.steps if each.HasField("error")}
    assert reasons == {"INPUT_INVALID"}
    assert run.ByteSize() < 4 << 20


async def test_large_executions_are_listed_in_pages(admin: Caller) -> None:
    await admin.create(
        "test.it",
        "def main():\n    return 'x' * 1_000_000\n",
        limits=function_pb2.FunctionLimits(max_output_bytes=2 << 20),
    )
    wanted = [(await admin.execute("test.it")).execution_id for _ in range(5)]
    request = function_pb2.ListExecutionsRequest(page_size=1000)
    found: list[str] = []
    while True:
        answer = await admin.stub.ListExecutions(request, metadata=admin.metadata)
        found += [execution.execution_id for execution in answer.executions]
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert found == wanted[::-1]


async def test_names_that_cannot_be_are_not_found(
    redis: Redis, shared_valkey: str, database_url: str
) -> None:
    async with run_world(shared_valkey, database_url=database_url) as world:
        admin = world.admin
        await admin.create("test.it", NOTHING)
        stub, metadata = admin.stub, admin.metadata
        for call in (
            stub.GetExecution(
                function_pb2.GetExecutionRequest(execution_id="a\0"), metadata=metadata
            ),
            stub.GetFunction(
                function_pb2.GetFunctionRequest(name="test.it", version="a\0"), metadata=metadata
            ),
            ChainServiceStub(admin.channel).GetChain(
                chain_run_pb2.GetChainRequest(run_id="a\0"), metadata=metadata
            ),
        ):
            assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND
        executions = function_pb2.ListExecutionsRequest()
        executions.page_token = token_of(executions, "a\0")
        versions = pb.ListAgentDefinitionVersionsRequest(definition_id="it")
        versions.page_token = token_of(versions, "9999999999")
        for call in (
            stub.ListExecutions(executions, metadata=metadata),
            admin.registry.ListAgentDefinitionVersions(versions, metadata=metadata),
        ):
            assert (await refused(call)).reason == "PAGE_TOKEN_INVALID"


async def test_work_ends_with_the_token_that_began_it(world: World) -> None:
    caller = await world.caller(
        "alice", "function_write", "function_execute", "function_read", "registry_read"
    )
    await caller.create(
        "test.it",
        "import asyncio\nimport mesh\n\n"
        "async def main():\n    await asyncio.sleep(1)\n    return await mesh.discover('a.b')\n",
        is_async=True,
        allowed_imports=["asyncio"],
        host_functions=["mesh.discover"],
    )
    issued = await world.security.IssueToken(
        credential_pb2.IssueTokenRequest(), metadata=caller.metadata
    )
    by_token = Caller(world.channel, (("authorization", f"Bearer {issued.token}"),))
    running = asyncio.create_task(by_token.execute("test.it"))
    await asyncio.sleep(0.3)
    await world.security.RevokeToken(
        credential_pb2.RevokeTokenRequest(token_id=issued.token_id), metadata=caller.metadata
    )
    execution = await running
    assert execution.state == FAILED
    assert "TOKEN_REVOKED" in execution.error.message
    assert (await caller.execute("test.it")).state == COMPLETED


async def test_work_does_not_run_other_code_under_the_same_version(world: World) -> None:
    owner, caller = await world.caller("bob"), await world.caller("alice")
    await owner.create("test.it", FAIL, visibility=VISIBILITY_ALL)
    policy = retries(20)
    policy.initial_backoff.FromMilliseconds(500)
    policy.max_backoff.FromMilliseconds(500)
    begun = await caller.execute(
        "test.it", version="1.0.0", durable=True, detach=True, retry_policy=policy
    )
    await asyncio.sleep(0.3)
    await owner.stub.DeleteFunction(
        function_pb2.DeleteFunctionRequest(name="test.it"), metadata=owner.metadata
    )
    await owner.create("test.it", NOTHING, visibility=VISIBILITY_ALL, version="1.0.0")
    assert (await end_of(caller, begun.execution_id)).state == FAILED


async def test_an_alias_that_is_gone_keeps_no_version(admin: Caller) -> None:
    await admin.create("test.it", NOTHING, aliases=["beta"])
    await admin.create("test.it", "def main():\n    return 2\n")
    rule = pb.MessageRule(message_type="x", call=pb.ToolReference(function="test.it@beta"))
    await admin.registry.CreateAgentDefinition(
        pb.CreateAgentDefinitionRequest(
            definition=pb.AgentDefinition(definition_id="it", rules=[rule])
        ),
        metadata=admin.metadata,
    )
    await admin.registry.SetAgentDefinitionState(
        pb.SetAgentDefinitionStateRequest(definition_id="it", state=pb.DEFINITION_STATE_ACTIVE),
        metadata=admin.metadata,
    )
    deletion = function_pb2.DeleteFunctionRequest(name="test.it", version="1.0.0")
    error = await refused(admin.stub.DeleteFunction(deletion, metadata=admin.metadata))
    assert error.reason == "FUNCTION_IN_USE"
    await admin.stub.UpdateFunctionAlias(
        function_pb2.UpdateFunctionAliasRequest(name="test.it", alias="beta"),
        metadata=admin.metadata,
    )
    await admin.stub.DeleteFunction(deletion, metadata=admin.metadata)


async def test_a_repeated_request_is_answered_after_its_function(admin: Caller) -> None:
    await admin.create("test.it", NOTHING)
    first = await admin.execute("test.it", request_id="r1")
    await admin.stub.DeleteFunction(
        function_pb2.DeleteFunctionRequest(name="test.it"), metadata=admin.metadata
    )
    again = await admin.execute("test.it", request_id="r1")
    assert again.execution_id == first.execution_id
    assert again.output == first.output


async def test_servers_share_a_directory(redis: Redis, shared_valkey: str, short_dir: Path) -> None:
    async with run_world(shared_valkey, short_dir) as one:
        left = one.server.settings.run_dir / "inside-4194304-00000000.sock"
        left.touch()
        admin_listen = f"unix:{short_dir}/other"
        async with run_world(shared_valkey, short_dir, admin_listen=admin_listen) as other:
            assert not left.exists()
            for world in (one, other):
                await world.admin.create(
                    "test.it",
                    "import mesh\n\nasync def main():\n    return await mesh.discover('a.b')\n",
                    is_async=True,
                    host_functions=["mesh.discover"],
                )
                assert (await world.admin.execute("test.it")).state == COMPLETED
    assert not list(one.server.settings.run_dir.glob("inside-*"))


async def test_nobody_waits_behind_all_that_another_began(redis: Redis, shared_valkey: str) -> None:
    async with run_world(
        shared_valkey, function_workers=1, function_sessions=1, function_queue=20
    ) as world:
        busy, other = await world.caller("bob"), await world.caller("carol")
        await busy.create("test.it", SLEEP, is_async=True, allowed_imports=["asyncio"])
        await other.create("test.other", NOTHING)
        waiting = [asyncio.create_task(busy.execute("test.it")) for _ in range(20)]
        await asyncio.sleep(0.2)
        assert (await other.execute("test.other")).state == COMPLETED
        assert sum(not each.done() for each in waiting) > 5
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        reasons = {
            from_rpc_error(answer).reason
            for answer in answers
            if isinstance(answer, grpc.aio.AioRpcError)
        }
        assert reasons == {"TOO_MANY_EXECUTIONS"}


async def test_an_execution_that_redis_has_lost_ends(
    world: World, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_YOUNG_SECONDS", 0.0)
    admin = world.admin
    await admin.create("test.it", SLEEP, is_async=True, allowed_imports=["asyncio"])
    # More than a server takes.
    begun = [await admin.execute("test.it", durable=True, detach=True) for _ in range(100)]
    assert (await look(admin, begun[-1].execution_id)).state == PENDING
    queues = [key async for key in redis.scan_iter("bxmesh:{work:functions}*")]
    await redis.delete(*queues)
    execution = await look(admin, begun[-1].execution_id)
    assert execution.state == FAILED
    assert from_status(execution.error).reason == "EXECUTION_LOST"


async def test_many_small_values_keep_nobody_waiting() -> None:
    number = Value(number_value=1.5)
    numbers = Value(list_value=ListValue(values=[number] * 300_000))
    large = Struct(fields={"x": numbers})
    definition = pb.AgentDefinition(definition_id="it")
    definition.capabilities.add(name="a.b").input_schema.json_schema.CopyFrom(large)
    validator = protovalidate.Validator()
    for message in (
        function_pb2.ExecuteFunctionRequest(name="test.it", input=large),
        chain_run_pb2.StartChainRequest(definition_id="it", input=numbers),
        pb.CreateAgentDefinitionRequest(definition=definition),
        # That it is there is a rule, which still holds.
        state_pb2.UpdateStateRequest(agent_id="a", update=state_pb2.MaskedUpdate(value=large)),
    ):
        before = message.SerializeToString(deterministic=True)
        began = time.monotonic()
        refuse_invalid(validator, message)
        assert time.monotonic() - began < 1.0
        assert message.SerializeToString(deterministic=True) == before

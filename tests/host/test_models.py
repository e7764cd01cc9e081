"""Definitions with a model: models that answer from Python, and a server that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from bxmesh.client import AsyncMesh, BxmeshError, DefinitionLimits, ModelSettings, Tool
from bxmesh.client.host import Host
from tests.host.conftest import become
from tests.host.openai_server import OpenAIServer, serving
from tests.host.test_host import Slow, active, add, capability, slow
from tests.host.worlds import called, done, failed, host, live
from tests.sdk.agents import name, soon

__all__ = ["add", "slow"]

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 1}},
    "required": ["x"],
    "additionalProperties": False,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


def returned(messages: list[ModelMessage]) -> list[Any]:
    """What tools have returned to a model."""
    return [
        part.content
        for message in messages
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    ]


async def test_a_model_answers_and_calls_functions(mesh: AsyncMesh, add: str) -> None:
    seen: list[AgentInfo] = []

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(info)
        if not (found := returned(messages)):
            return ModelResponse(parts=[ToolCallPart("test-add", {"a": 1, "b": 2})])
        return ModelResponse(parts=[TextPart(f"It is {found[0]['sum']['value']}.")])

    offer = capability("model")
    unique = await active(
        mesh,
        "model",
        model=ModelSettings("local:adder", temperature=0.1, max_tokens=50, extra={"seed": 7}),
        system_prompt="Add what you are given.",
        tools=[Tool(function=add)],
        capabilities=[offer],
    )
    async with host(mesh, unique, models={"local:adder": FunctionModel(model)}) as running:
        await live(mesh, unique)
        reply = await mesh.request(unique, "question", "What is 1 and 2?")
        assert (reply.type, reply.payload) == ("question.reply", "It is 3.")
        assert await done(mesh, offer, {"a": 1}) == "It is 3."
        (tool,) = seen[0].function_tools
        assert (tool.name, tool.description) == ("test-add", "Calls test.add.")
        assert seen[0].model_settings == {"temperature": 0.1, "max_tokens": 50, "seed": 7}
        assert seen[0].instructions == "The request is of the type question."
        figures = called(running, unique)
        assert (figures.messages, figures.tasks, figures.failed) == (1, 1, 0)
        assert (figures.tool_calls, figures.cache_hits) == (2, 1)
        assert figures.input_tokens > 0
        assert figures.output_tokens > 0


async def test_an_answer_has_the_schema_that_was_promised(mesh: AsyncMesh) -> None:
    answers: Iterator[dict[str, Any]] = iter([{"x": 0}, {"x": "one"}, {"x": 3}])

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        (tool,) = info.output_tools
        answer = next(answers, {"x": -1})
        return ModelResponse(parts=[ToolCallPart(tool.name, answer)])

    settings = ModelSettings("local:model")
    unique = await active(mesh, "output", model=settings, output_schema=POINT)
    listing = await active(
        mesh,
        "listing",
        model=ModelSettings("local:test"),
        output_schema={
            "type": "array",
            "items": {"$ref": "#/$defs/point"},
            "$defs": {"point": POINT},
        },
    )
    models = {"local:model": FunctionModel(model), "local:test": TestModel()}
    async with host(mesh, unique, listing, models=models):
        await live(mesh, unique)
        await live(mesh, listing)
        assert (await mesh.request(unique, "point")).payload == {"x": 3}
        with pytest.raises(BxmeshError, match="has no answer that fits") as invalid:
            await mesh.request(unique, "point")
        assert invalid.value.reason == "OUTPUT_INVALID"
        assert (await mesh.request(listing, "points")).payload == [{"x": 1}]


async def test_a_model_calls_agents_and_hears_of_failures(mesh: AsyncMesh, slow: Slow) -> None:
    slow.go.set()
    heard: list[Any] = []

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if not (found := returned(messages)):
            calls = [
                ToolCallPart(tool.name, {"parameters": {"n": 1}}) for tool in info.function_tools
            ]
            return ModelResponse(parts=calls)
        heard[:] = found
        return ModelResponse(parts=[TextPart("heard")])

    offer = capability("caller")
    unique = await active(
        mesh,
        "caller",
        model=ModelSettings("local:caller"),
        tools=[Tool(capability="test.slow"), Tool(capability="test.nobody")],
        capabilities=[offer],
        max_chain_depth=1,
    )
    async with host(mesh, unique, models=lambda _: FunctionModel(model)):
        assert await done(mesh, offer) == "heard"
        child = (await soon(slow.begun.get())).task
        assert (child.depth, (await mesh.task(child.parent_task_id)).task_type) == (1, offer)
        assert heard[0] == {"did": {"n": 1}}
        assert heard[1]["reason"] == "CAPABILITY_MISSING"
        await mesh.definitions.update(unique, max_chain_depth=0)
        await mesh.definitions.activate(unique)
        await live(mesh, unique, definition_version="2")
        assert (await mesh.request(unique, "go")).payload == "heard"
        assert [one["reason"] for one in heard] == ["DEPTH_LIMIT", "DEPTH_LIMIT"]


async def test_limits_are_kept(mesh: AsyncMesh, add: str) -> None:
    def greedy(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[ToolCallPart("test-add", {"a": 1})])

    async def idle(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        await asyncio.sleep(60)
        raise AssertionError

    models = {"local:greedy": FunctionModel(greedy), "local:idle": FunctionModel(idle)}
    names = {
        reason: await active(
            mesh,
            "limits",
            model=ModelSettings(model),
            tools=[Tool(function=add)],
            limits=limits,
        )
        for reason, model, limits in (
            ("TOOL_LIMIT", "local:greedy", DefinitionLimits(max_tool_calls=3)),
            ("TOKEN_LIMIT", "local:greedy", DefinitionLimits(max_tokens=100)),
            ("HANDLER_TIMEOUT", "local:idle", DefinitionLimits(timeout=0.2)),
        )
    }
    async with host(mesh, *names.values(), models=models) as running:
        for reason, unique in names.items():
            await live(mesh, unique)
            with pytest.raises(BxmeshError) as over:
                await mesh.request(unique, "go", "on", mode="direct")
            assert over.value.reason == reason
        assert called(running, names["TOOL_LIMIT"]).tool_calls == 3


async def test_a_server_that_speaks_openai(
    mesh: AsyncMesh, add: str, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-others")
    monkeypatch.setenv("BXMESH_MODEL_KEY_127_0_0_1", "for-this-server")
    names = [
        await active(
            mesh,
            "openai",
            model=ModelSettings("openai:small", server.url, temperature=0.2, top_p=0.5),
            system_prompt="Use tools.",
            tools=[Tool(function=add)],
        )
        for _ in range(2)
    ]
    async with host(mesh, *names) as running:
        for unique in names:
            await live(mesh, unique)
            server.calls("test-add", a=20, b=3)
            server.says("It is 23.")
            assert (await mesh.request(unique, "ask", {"q": 1})).payload == "It is 23."
        first, second = server.asked[:2]
        assert (first["model"], first["temperature"], first["top_p"]) == ("small", 0.2, 0.5)
        assert first["messages"][0] == {"role": "system", "content": "Use tools."}
        assert first["messages"][-1] == {"role": "user", "content": '{"q": 1}'}
        told = json.loads(second["messages"][-1]["content"])
        assert told == {"sum": {"value": 23}, "parts": [20, 3]}
        assert set(server.keys) == {"Bearer for-this-server"}
        assert server.connections == 1
        figures = called(running, names[0])
        assert (figures.input_tokens, figures.output_tokens) == (20, 10)


async def test_models_that_fail_say_why(
    mesh: AsyncMesh, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    async def failing(settings: ModelSettings, **options: Any) -> BxmeshError:
        unique = await active(mesh, "failing", model=settings)
        async with host(mesh, unique, **options):
            await live(mesh, unique)
            with pytest.raises(BxmeshError) as failure:
                await mesh.request(unique, "go", "on", mode="direct")
        return failure.value

    server.refuses(401, "Incorrect API key provided: sk-secret")
    refused = await failing(ModelSettings("openai:small", server.url))
    assert (refused.reason, "sk-secret" in refused.message) == ("MODEL_KEY_REFUSED", False)
    server.refuses(400, "unknown model")
    assert (await failing(ModelSettings("openai:small", server.url))).reason == "MODEL_REJECTED"
    away = await failing(ModelSettings("openai:small", "http://127.0.0.1:9/v1"))
    assert (away.reason, away.code.name) == ("MODEL_UNAVAILABLE", "UNAVAILABLE")
    no_key = await failing(ModelSettings("openai:gpt-5"))
    assert (no_key.reason, "OPENAI_API_KEY" in no_key.message) == ("MODEL_NOT_CONFIGURED", True)
    elsewhere = await failing(
        ModelSettings("openai:small", server.url), servers=["https://models.example/v1"]
    )
    assert elsewhere.reason == "MODEL_NOT_CONFIGURED"
    unknown = await failing(ModelSettings("nobody:model"))
    assert unknown.reason == "MODEL_NOT_CONFIGURED"


async def test_tasks_whose_model_is_away_come_again(mesh: AsyncMesh, server: OpenAIServer) -> None:
    offer = capability("again")
    settings = ModelSettings("openai:small", server.url)
    unique = await active(mesh, "again", model=settings, capabilities=[offer])
    # The client of OpenAI tries three times by itself.
    for _ in range(3):
        server.refuses(503, "overloaded")
    server.says("at last")
    async with host(mesh, unique):
        assert await done(mesh, offer) == "at last"


async def test_tools_that_are_gone(mesh: AsyncMesh) -> None:
    function = f"test.{name('gone').replace('-', '_')}"
    await mesh.functions.create(function, "def main():\n    return 1\n")
    offer = capability("unknown")
    unique = await active(
        mesh,
        "unknown",
        model=ModelSettings("local:test"),
        tools=[Tool(function=function)],
        capabilities=[offer],
    )
    low: AsyncMesh = await become(
        mesh,
        name("host"),
        *("agent_register", "message_receive", "message_send", "registry_read", "task_execute"),
        *("function_read", "function_execute"),
    )
    # Another identity does not see the function.
    async with low, host(low, unique, models={"local:test": TestModel()}):
        task = await failed(mesh, offer)
        assert task.error is not None
        assert task.error.reason == "TOOL_UNKNOWN"


def test_a_host_must_run_something() -> None:
    with pytest.raises(BxmeshError, match="1 is the least"):
        Host(None, most=0)  # type: ignore[arg-type]


async def test_without_the_extra(mesh: AsyncMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    unique = await active(mesh, "extra", model=ModelSettings("openai:small"))
    async with host(mesh, unique):
        await live(mesh, unique)
        monkeypatch.setitem(sys.modules, "pydantic_ai", None)
        with pytest.raises(BxmeshError, match=r"pip install 'bxmesh\[host\]'") as missing:
            await mesh.request(unique, "go")
        assert missing.value.reason == "EXTRA_MISSING"


def test_hosts_are_light_until_a_model_is_asked() -> None:
    heavy = "{'pydantic_ai', 'openai', 'jsonschema', 'yaml'}"
    code = f"import sys, bxmesh.client.host; sys.exit({heavy} & sys.modules.keys() or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

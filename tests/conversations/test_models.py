"""Language models in conversations: lent by hosts, and by definition, over a whole mesh."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from bxmesh.client import AsyncMesh, BxmeshError, DefinitionLimits, ModelSettings, Tool
from bxmesh.client.conversations import Conversation, ConversationEvent, Participant, Turn
from bxmesh.client.host import Host
from bxmesh.security.v1 import policy_pb2
from bxmesh.server.embedded import EmbeddedMesh
from tests.host.conftest import mesh, served
from tests.host.openai_server import OpenAIServer, Raw, Stream, error, serving
from tests.host.test_host import active, add
from tests.host.worlds import called, host, live, until
from tests.sdk.agents import soon
from tests.sdk.conftest import client, start_mesh

__all__ = ["add", "mesh", "served"]

FOUR = "Two and two.\nAnswer: four\nConfidence: 0.9"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        server.script = lambda asked: FOUR
        yield server


@asynccontextmanager
async def lending(mesh: AsyncMesh, lent: dict[str, str], **options: Any) -> AsyncIterator[Host]:
    """A host that runs no definition and lends models; it is there when the block begins."""
    async with host(mesh, "nothing", lent=lent, **options) as running:
        await live(mesh, f"models-{running.name}")
        yield running


def reasons(conversation: Conversation) -> dict[str, str]:
    """Why there is no answer, by who has none."""
    return {one.participant_id: one.error.reason for one in conversation.turns if one.error}


def turn_of(conversation: Conversation, name: str) -> Turn:
    (turn,) = (one for one in conversation.turns if one.participant_id == name)
    return turn


def text_of(asked: dict[str, Any]) -> str:
    return "\n".join(f"{message['content']}" for message in asked["messages"])


async def test_default_participants_differ(mesh: AsyncMesh, server: OpenAIServer) -> None:
    async with lending(mesh, {"openai:small": server.url}) as running:
        found = await soon(mesh.conversations.hold("What is 2 and 2?", agents=4))
    assert (found.state, found.value) == ("completed", "four")
    assert found.outcome.confidence == pytest.approx(0.9)
    assert [one.personality for one in found.participants] == [
        "analytical",
        "creative",
        "critical",
        "factual",
    ]
    told = {one["temperature"]: text_of(one) for one in server.asked}
    assert set(told) == {0.2, 0.9, 0.5, 0.0}
    assert "reason step by step" in told[0.2]
    assert "other ways than the obvious" in told[0.9]
    assert all("What is 2 and 2?" in text for text in told.values())
    for turn in found.turns:
        assert (turn.model, turn.input_tokens, turn.output_tokens) == ("small", 10, 5)
    figures = called(running, f"models-{running.name}")
    assert (figures.tasks, figures.failed) == (4, 0)
    assert (figures.input_tokens, figures.output_tokens) == (40, 20)


async def test_what_a_model_writes_is_heard_while_it_writes(
    mesh: AsyncMesh, server: OpenAIServer
) -> None:
    server.script = lambda asked: Stream(("It ", "is ", "so.\n"), stalls=True)
    events: list[ConversationEvent] = []
    async with lending(mesh, {"openai:small": server.url}):
        async with asyncio.timeout(30):
            async for event in mesh.conversations.stream("Is it so?", agents=1):
                events.append(event)
                if event.delta is not None:
                    # It goes on only when this has come: the answer is not there yet.
                    server.go_on.set()
    kinds = [event.kind for event in events]
    first, answered = kinds.index("delta"), kinds.index("answered")
    assert first < answered
    assert "delta" not in kinds[answered:]
    written = "".join(event.delta.text for event in events if event.delta is not None)
    assert "It is so.\n".startswith(written)
    turn = events[answered].answered
    assert turn is not None
    assert turn.text == "It is so.\n"


async def test_models_of_pydantic_ai_with_streams_and_without(mesh: AsyncMesh) -> None:
    settings: list[Any] = []

    def whole(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        settings.append(info.model_settings)
        return ModelResponse(parts=[TextPart(FOUR)])

    async def pieces(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        settings.append(info.model_settings)
        yield "Two and two.\n"
        yield "Answer: four"

    models = {
        "local:whole": FunctionModel(whole),
        "local:pieces": FunctionModel(stream_function=pieces),
        "local:test": TestModel(custom_output_text="Answer: five"),
    }
    asked = [
        Participant(name, model=ModelSettings(f"local:{name}", temperature=0.3))
        for name in ("whole", "pieces", "test")
    ]
    async with lending(mesh, dict.fromkeys(models, ""), models=models):
        found = await soon(mesh.conversations.hold("What is 2 and 2?", participants=asked))
    assert reasons(found) == {}
    assert found.value == "four"
    assert {one.participant_id: one.answer for one in found.turns} == {
        "whole": "four",
        "pieces": "four",
        "test": "five",
    }
    assert settings == [{"temperature": 0.3}] * 2
    assert all(one.input_tokens and one.output_tokens and one.model for one in found.turns)


HOSTILE: dict[str, tuple[Any, str]] = {
    "html": (Raw(b"<html>Bad gateway</html>", "text/html"), "OUTPUT_INVALID"),
    "no-json": (Raw(b"{no json"), "OUTPUT_INVALID"),
    "list": (Raw(b"[1, 2, 3]"), "OUTPUT_INVALID"),
    "empty": (Stream(()), "OUTPUT_INVALID"),
    "no-json-event": (Raw(b"data: {no json\n\n", "text/event-stream"), "OUTPUT_INVALID"),
    "wrong-event": (
        Raw(b'data: {"choices": 7}\n\ndata: [1]\n\n', "text/event-stream"),
        "OUTPUT_INVALID",
    ),
    "no-event": (Raw(b"\xff\xfe\x00" * 1000, "text/event-stream"), "OUTPUT_INVALID"),
    "endless": (Stream(("x" * 100_000,) * 30), "OUTPUT_INVALID"),
    "breaks": (Stream(("It is", " so"), breaks=True), "MODEL_UNAVAILABLE"),
    "key": (error(401, "Incorrect key: sk-secret"), "MODEL_KEY_REFUSED"),
    "rejects": (error(400, "no such model"), "MODEL_REJECTED"),
}


async def test_who_fails_is_left_out_with_a_reason(mesh: AsyncMesh, server: OpenAIServer) -> None:
    server.script = lambda asked: HOSTILE.get(asked["model"], (FOUR, ""))[0]
    names = [*HOSTILE, *(f"good-{number}" for number in range(len(HOSTILE) + 1))]
    lent = {f"openai:{name}": server.url for name in names}
    asked = [Participant(name, model=f"openai:{name}") for name in names]
    async with lending(mesh, lent) as running:
        found = await soon(
            mesh.conversations.hold("What is 2 and 2?", participants=asked, turns=2), 120
        )
    assert (found.state, found.value) == ("completed", "four")
    assert reasons(found) == {name: reason for name, (_, reason) in HOSTILE.items()}
    assert {one.turn for one in found.turns if one.error is None} == {1, 2}
    assert called(running, f"models-{running.name}").failed >= len(HOSTILE)
    assert "sk-secret" not in f"{[one.error for one in found.turns]}"
    # What costs its tokens twice, or does not get better, is asked for once.
    for name in ("html", "wrong-event", "endless", "rejects", "key"):
        assert [one["model"] for one in server.asked].count(name) == 1


async def test_who_stalls_is_not_waited_for(mesh: AsyncMesh, server: OpenAIServer) -> None:
    stalled = Stream(("It is",), stalls=True)
    server.script = lambda asked: stalled if asked["model"] == "stalls" else FOUR
    names = ("good-1", "good-2", "stalls")
    asked = [Participant(name, model=f"openai:{name}") for name in names]
    async with lending(mesh, {f"openai:{name}": server.url for name in names}) as running:
        # What is imported on the first question takes its time.
        assert (await soon(mesh.conversations.hold("Ready?", agents=1))).value == "four"
        found = await soon(
            mesh.conversations.hold(
                "What is 2 and 2?", participants=asked, turns=2, max_answer_duration=10.0
            )
        )
        assert (found.state, found.value) == ("completed", "four")
        assert reasons(found) == {"stalls": "ANSWER_TIMED_OUT"}

        async def stopped() -> bool:
            return called(running, f"models-{running.name}").failed == 1

        # The host does not wait for it either.
        await until(stopped)
    assert not server.go_on.is_set()


async def test_a_provider_that_is_busy_is_asked_again(
    mesh: AsyncMesh, server: OpenAIServer
) -> None:
    server.script = None
    # The client of OpenAI tries three times by itself, and then the task comes again.
    busy = error(429, "slow down", ("Retry-After", "0"))
    server.answers = [busy, busy, busy, error(500, "oh"), FOUR]
    async with lending(mesh, {"openai:small": server.url}):
        found = await soon(mesh.conversations.hold("What is 2 and 2?", agents=1), 60)
    assert found.value == "four"
    assert len(server.asked) == 5


async def test_strange_texts_and_figures_do_no_harm(mesh: AsyncMesh, server: OpenAIServer) -> None:
    texts = {
        "nul": "A\x00B\nAnswer: four\x00",
        "half": "\ud800 Answer\nAnswer: four",
        "long": "x" * 200_000 + "\nAnswer: four",
    }
    server.script = lambda asked: Stream((texts[asked["model"]],), model="m" * 5000)
    lent = {f"openai:{name}": server.url for name in texts}
    asked = [Participant(name, model=f"openai:{name}") for name in texts]
    async with lending(mesh, lent):
        found = await soon(mesh.conversations.hold("What is 2 and 2?", participants=asked))
    assert reasons(found) == {}
    assert turn_of(found, "half").text == "? Answer\nAnswer: four"
    assert len(turn_of(found, "long").text) == 65_536
    assert turn_of(found, "long").answer == "four"
    assert {one.model for one in found.turns} == {"m" * 256}


async def test_hosts_lend_what_they_say_and_nothing_else(
    mesh: AsyncMesh, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-others")
    monkeypatch.setenv("BXMESH_MODEL_KEY_127_0_0_1", "for-this-server")
    with serving() as elsewhere:
        elsewhere.script = lambda asked: FOUR
        wanted = {
            "other": ModelSettings("openai:large"),
            "elsewhere": ModelSettings("openai:small", elsewhere.url),
            "default-elsewhere": ModelSettings("", elsewhere.url),
            "body": ModelSettings("openai:small", extra={"extra_body": {"model": "large"}}),
            "headers": ModelSettings("openai:small", extra={"extra_headers": {"Host": "x"}}),
        }
        allowed = {
            "lent": ModelSettings("openai:small", server.url, extra={"seed": 7}),
            "default": ModelSettings(""),
            **{f"more-{number}": ModelSettings("openai:small") for number in range(4)},
        }
        asked = [Participant(name, model=one) for name, one in (wanted | allowed).items()]
        async with lending(mesh, {"openai:small": server.url}):
            found = await soon(mesh.conversations.hold("What is 2 and 2?", participants=asked))
        assert reasons(found) == dict.fromkeys(wanted, "MODEL_NOT_LENT")
        assert elsewhere.connections == 0
    assert found.value == "four"
    assert {one["model"] for one in server.asked} == {"small"}
    assert sorted(one.get("seed", 0) for one in server.asked) == [0, 0, 0, 0, 0, 7]
    assert set(server.keys) == {"Bearer for-this-server"}


async def test_definitions_take_part(mesh: AsyncMesh, add: str, server: OpenAIServer) -> None:
    point = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    with_tools = await active(
        mesh,
        "tools",
        model=ModelSettings("openai:tools", server.url),
        system_prompt="Use tools.",
        tools=[Tool(function=add)],
    )
    with_schemas = await active(
        mesh,
        "schemas",
        model=ModelSettings("openai:schemas", server.url),
        input_schema=point,
        output_schema=point,
    )
    spent = await active(
        mesh,
        "spent",
        model=ModelSettings("openai:spent", server.url),
        limits=DefinitionLimits(max_tokens=10),
    )

    def script(asked: dict[str, Any]) -> Any:
        if asked["model"] != "tools" or asked["messages"][-1]["role"] == "tool":
            return "It adds up.\nAnswer: 4\nConfidence: 1"
        function = {"name": "test-add", "arguments": '{"a": 2, "b": 2}'}
        call = {"index": 0, "id": "call", "type": "function", "function": function}
        delta = {"role": "assistant", "content": None, "tool_calls": [call]}
        chunks = [
            {"delta": delta, "finish_reason": None, "index": 0},
            {"delta": {}, "finish_reason": "tool_calls", "index": 0},
        ]
        lines = [
            {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "small"}
            | {"choices": [one]}
            for one in chunks
        ]
        body = "".join(f"data: {json.dumps(one)}\n\n" for one in lines) + "data: [DONE]\n\n"
        return Raw(body.encode(), "text/event-stream")

    server.script = script
    names = (with_tools, with_schemas, spent)
    async with host(mesh, *names) as running:
        for one in names:
            await live(mesh, one)
        found = await soon(
            mesh.conversations.hold(
                "What is 2 and 2?", participants=[f"definition:{one}" for one in names]
            )
        )
        assert called(running, with_tools).tool_calls == 1
    assert reasons(found) == {spent: "TOKEN_LIMIT"}
    assert [turn_of(found, one).answer for one in names[:2]] == ["4", "4"]
    (last,) = (one for one in server.asked if one["messages"][-1]["role"] == "tool")
    assert last["messages"][0] == {"role": "system", "content": "Use tools."}
    assert json.loads(last["messages"][-1]["content"])["sum"] == {"value": 4}


async def test_no_further_turn_begins_when_the_tokens_are_used(
    mesh: AsyncMesh, server: OpenAIServer
) -> None:
    async with lending(mesh, {"openai:small": server.url}):
        found = await soon(mesh.conversations.hold("Go on?", agents=2, turns=10, max_tokens=50))
    # Thirty in each turn.
    assert {one.turn for one in found.turns} == {1, 2}


async def test_models_judge_and_rank_and_answer_with_data(
    mesh: AsyncMesh, server: OpenAIServer
) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}

    def script(asked: dict[str, Any]) -> str:
        text = text_of(asked)
        if "Choice:" in text:
            return "The second.\nChoice: 2"
        if "Ranking:" in text:
            return "Ranking: 2, 1"
        if "JSON Schema" in text:
            return 'Answer: ```json\n{"x": 4}\n```\nConfidence: 1'
        return f"Answer: {asked['temperature']}\nConfidence: 1"

    server.script = script
    async with lending(mesh, {"openai:small": server.url}):
        judged, ranked, structured = await soon(
            asyncio.gather(
                mesh.conversations.hold("Which?", agents=2, method="judge", judge="model:"),
                mesh.conversations.hold("Which?", agents=2, method="ranked"),
                mesh.conversations.hold(
                    "Which?", agents=2, method="structured", answer_schema=schema
                ),
            )
        )
    assert reasons(judged) == reasons(ranked) == reasons(structured) == {}
    assert judged.outcome.method == "judge"
    assert judged.value in ("0.2", "0.9")
    assert ranked.value in ("0.2", "0.9")
    assert structured.value == {"x": 4}


@pytest.mark.parametrize("echo", [False, True])
async def test_what_is_asked_and_answered_is_in_no_log(
    mesh: AsyncMesh,
    served: EmbeddedMesh,
    server: OpenAIServer,
    caplog: pytest.LogCaptureFixture,
    echo: bool,
) -> None:
    marker = f"marker-{'echoed' if echo else 'said'}"
    answers = [FOUR + marker, error(400, f"I refuse {marker}"), error(500, marker)]
    if echo:
        answers += [Raw(marker.encode()), Raw(f'data: "{marker}'.encode(), "text/event-stream")]
    server.script = lambda asked: answers[int(asked["model"])]
    lent = {f"openai:{number}": server.url for number in range(len(answers))}
    asked = [Participant(model=model) for model in lent]
    with caplog.at_level(logging.INFO):
        async with lending(mesh, lent):
            found = await soon(
                mesh.conversations.hold(
                    marker, participants=asked, title="A title", max_answer_duration=5.0, quorum=1
                ),
                60,
            )
    assert found.done
    assert any(marker in text_of(one) for one in server.asked)
    assert caplog.records
    assert marker not in caplog.text
    assert marker not in served.log_path.read_text()


async def test_secrets_do_not_reach_providers(server: OpenAIServer) -> None:
    policy = policy_pb2.Policy()
    policy.data_rules.add(
        name="cards", detector=policy_pb2.DETECTOR_CARD, action=policy_pb2.DATA_ACTION_REDACT
    )
    policy.data_rules.add(
        name="mail", detector=policy_pb2.DETECTOR_EMAIL, action=policy_pb2.DATA_ACTION_BLOCK
    )
    with start_mesh() as lone:
        async with client(lone) as mesh:
            await mesh.security.call(policy_pb2.ApplyPolicyRequest(policy=policy))
            async with lending(mesh, {"openai:small": server.url}):
                found = await soon(mesh.conversations.hold("Is 4539148803436467 a card?", agents=1))
                assert found.value == "four"
                (asked,) = server.asked
                assert "4539148803436467" not in json.dumps(asked)
                assert "card?" in text_of(asked)
                with pytest.raises(BxmeshError) as blocked:
                    await mesh.conversations.hold("Who is jane.roe@example.org?", agents=1)
                assert blocked.value.code.name == "PERMISSION_DENIED"
                assert len(server.asked) == 1

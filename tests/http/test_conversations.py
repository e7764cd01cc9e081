"""Conversations over HTTP: begun, followed, continued, found, cleaned up."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from bxmesh.client import AsyncMesh
from bxmesh.client.conversations import AgentAnswer
from bxmesh.server.embedded import EmbeddedMesh
from tests.conversations.talk import taking_part
from tests.http.gateways import problem
from tests.http.keys import admin_key


def says(text: str) -> Any:
    return lambda question: AgentAnswer(text=text, confidence=0.9).model_dump()


def question(*agents: str, message: str = "Which one is it?") -> dict[str, Any]:
    return {"message": message, "participants": [{"agent_id": name} for name in agents]}


async def frames(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream, with what names them."""
    found = []
    name = place = ""
    async for line in response.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "id":
            place = value
        elif key == "data":
            event = json.loads(value)
            assert event["type"] == name
            assert name == "error" or event["revision"] == int(place)
            found.append((name, event))
    return found


async def test_chat(http: httpx.AsyncClient, agents: AsyncMesh) -> None:
    async with taking_part(agents, http_a=says("red"), http_b=says("red")):
        answer = await http.post("/chat", json=question("http-a", "http-b"))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["state"], told["consensus"]["text"]) == ("completed", "red")
    assert [turn["text"] for turn in told["turns"]] == ["red", "red"]
    again = await http.get(answer.headers["location"])
    assert again.json()["turns"] == told["turns"]
    recent = (await http.get("/conversations/recent", params={"page_size": 5})).json()
    assert told["conversation_id"] in [one["conversation_id"] for one in recent["conversations"]]
    assert (await http.get("/statistics")).json()["total_conversations"] >= 1


async def test_an_idempotency_key_begins_one(http: httpx.AsyncClient, agents: AsyncMesh) -> None:
    headers = {"idempotency-key": "the-same"}
    async with taking_part(agents, http_once=says("one")):
        body = {**question("http-once"), "wait": 0}
        told = [(await http.post("/chat", json=body, headers=headers)).json() for _ in range(2)]
    assert told[0]["conversation_id"] == told[1]["conversation_id"]


async def test_a_stream_and_its_resumption(http: httpx.AsyncClient, agents: AsyncMesh) -> None:
    async with taking_part(agents, http_s=says("blue")):
        async with http.stream("POST", "/stream/new", json=question("http-s")) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = await frames(response)
        names = [name for name, _ in events]
        assert names[0] == "conversation_started"
        assert names[-1] == "conversation_ended"
        assert {"agent_response", "consensus_update"} <= set(names)
        name = events[0][1]["conversation_id"]
        after = str(events[1][1]["revision"])
        async with http.stream(
            "POST", f"/stream/{name}", headers={"last-event-id": after}
        ) as response:
            assert [one for one, _ in await frames(response)] == names[2:]
        async with http.stream("POST", f"/stream/{name}", json={"message": "Sure?"}) as response:
            further = await frames(response)
    assert further[-1][0] == "conversation_ended"
    texts = [turn["text"] for turn in further[-1][1]["conversation"]["turns"]]
    assert texts.count("blue") == 2


async def test_unknown_conversations(http: httpx.AsyncClient) -> None:
    answer = await http.get("/conversations/nobodys")
    problem(answer, 404, answer.json()["reason"])
    answer = await http.post("/stream/nobodys")
    problem(answer, 404, answer.json()["reason"])


async def test_search_export_and_cleanup(http: httpx.AsyncClient, agents: AsyncMesh) -> None:
    async with taking_part(agents, http_x=says("xenon")):
        told = (await http.post("/chat", json=question("http-x", message="A noble gas?"))).json()
    found = (await http.post("/conversations/search", json={"query": "xenon"})).json()
    assert told["conversation_id"] in [
        one["conversation"]["conversation_id"] for one in found["results"]
    ]
    export = await http.get("/admin/export")
    lines = [json.loads(line) for line in export.text.splitlines()]
    assert told["turns"] in [line["conversation"]["turns"] for line in lines]
    assert all(line["resume_token"] for line in lines)
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    body = {"begun_before": later, "validate_only": True}
    counted = (await http.post("/admin/cleanup", json=body)).json()
    assert counted["conversations"] >= 1
    assert (await http.get(f"/conversations/{told['conversation_id']}")).status_code == 200


async def until_ended(socket: ClientConnection) -> list[dict[str, Any]]:
    events = []
    while not events or events[-1]["type"] not in ("conversation_ended", "error"):
        events.append(json.loads(await socket.recv()))
    return events


async def test_a_web_socket(url: str, http_mesh: EmbeddedMesh, agents: AsyncMesh) -> None:
    key = admin_key(http_mesh)
    place = url.replace("http", "ws") + "/ws/new"
    async with taking_part(agents, http_w=says("green")):
        async with connect(place, subprotocols=["bxmesh.v1", f"bxmesh.bearer.{key}"]) as socket:  # type: ignore[list-item]
            assert socket.subprotocol == "bxmesh.v1"
            await socket.send('{"type": "nonsense"}')
            assert json.loads(await socket.recv())["problem"]["status"] == 400
            await socket.send(json.dumps({"type": "begin", **question("http-w")}))
            names = [event["type"] for event in await until_ended(socket)]
            assert {"agent_response", "consensus_update"} <= set(names)
            await socket.send('{"type": "message", "message": "Sure?"}')
            assert (await until_ended(socket))[-1]["type"] == "conversation_ended"


async def test_a_web_socket_says_who_it_is_first(url: str, http_mesh: EmbeddedMesh) -> None:
    place = url.replace("http", "ws") + "/ws/nobodys"
    for token, status in ((admin_key(http_mesh), 404), ("wrong", 401)):
        async with connect(place) as socket:
            await socket.send(json.dumps({"type": "authenticate", "token": token}))
            assert (await until_ended(socket))[-1]["problem"]["status"] == status

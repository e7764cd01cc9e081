"""The health of language models, as those that conversations ask show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from google.protobuf.duration_pb2 import Duration

from bxmesh.client import AsyncMesh, ModelSettings
from bxmesh.client.conversations import Participant
from bxmesh.health.v1 import health_pb2 as pb
from bxmesh.health.v1.health_service_pb2_grpc import HealthServiceStub
from bxmesh.security.v1 import policy_pb2
from bxmesh.server.embedded import EmbeddedMesh
from tests.conversations.embedding_server import DIMENSION, embedding_server
from tests.conversations.test_models import FOUR, lending
from tests.host.openai_server import OpenAIServer, error, serving
from tests.http.gateways import gateway, http_client
from tests.http.keys import admin_key, make_key
from tests.sdk.agents import soon
from tests.sdk.conftest import client, start_mesh

HEALTHY, DEGRADED, UNHEALTHY = (
    pb.HEALTH_STATE_HEALTHY,
    pb.HEALTH_STATE_DEGRADED,
    pb.HEALTH_STATE_UNHEALTHY,
)
SECRET = "hush-hush"
QUESTION = "What is two and two?"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        server.script = lambda body: FOUR
        yield server


@pytest.fixture
def lone() -> Iterator[EmbeddedMesh]:
    """A mesh on which nobody else talks."""
    with start_mesh() as mesh:
        yield mesh


async def health(mesh: AsyncMesh) -> pb.GetHealthResponse:
    """The health of all that is known."""
    connection = mesh._connection
    stub = HealthServiceStub(connection.channel)
    answer: pb.GetHealthResponse = await connection.unary(stub.GetHealth, pb.GetHealthRequest())
    return answer


async def when(
    mesh: AsyncMesh, fits: Callable[[pb.ComponentHealth], bool], name: str = "model_providers"
) -> pb.ComponentHealth:
    """A component when it is so: an answer may be a second old."""
    while True:
        found = next(one for one in (await health(mesh)).components if one.name == name)
        if fits(found):
            return found


def asked() -> list[Participant]:
    return [Participant("small", model=ModelSettings("openai:small"))]


async def ask(mesh: AsyncMesh) -> str:
    """Asks the model; returns how that ends."""
    return (await soon(mesh.conversations.hold(QUESTION, participants=asked()))).state


async def test_what_models_did(lone: EmbeddedMesh, server: OpenAIServer) -> None:
    async with client(lone) as mesh, lending(mesh, {"openai:small": server.url}):
        idle = await when(mesh, lambda one: one.details["hosted_agents"] == "1")
        assert (idle.state, idle.details["answers"]) == (HEALTHY, "0")
        assert server.asked == []

        server.script = lambda body: error(401, f"the key {SECRET} is wrong")
        assert await ask(mesh) == "failed"
        failing = await when(mesh, lambda one: one.details["failures"] == "1")
        assert failing.state == UNHEALTHY
        assert "openai:small (MODEL_KEY_REFUSED, 1)" in failing.message
        assert failing.remedy

        server.script = lambda body: FOUR
        assert await ask(mesh) == "completed"
        mixed = await when(mesh, lambda one: one.details["answers"] == "1")
        assert mixed.state == DEGRADED
        assert "1 of 2" in mixed.message
        for one in (failing, mixed):
            assert SECRET not in str(one)
            assert QUESTION not in str(one)


async def test_a_model_whose_circuit_is_open(lone: EmbeddedMesh, server: OpenAIServer) -> None:
    breaker = policy_pb2.CircuitBreaker(
        target="*/*", failure_threshold=1, success_threshold=1, open_duration=Duration(seconds=3600)
    )
    policy = policy_pb2.Policy(circuit_breakers=[breaker])
    async with client(lone) as mesh, lending(mesh, {"openai:small": server.url}) as host:
        await mesh.security.call(policy_pb2.ApplyPolicyRequest(policy=policy))
        assert await ask(mesh) == "completed"
        server.script = lambda body: error(500, "no")
        # Its task waits for the circuit.
        begun = await mesh.conversations.start(QUESTION, participants=asked())
        opened = await when(mesh, lambda one: one.details["open_circuits"] != "0")
        assert opened.state == DEGRADED
        assert f"agent/models-{host.name}" in opened.message
        await mesh.conversations.cancel(begun.conversation_id)


async def test_nothing_secret_is_told() -> None:
    with embedding_server() as embeddings:
        settings = {
            "BXMESH_EMBEDDING_URL": embeddings.url.replace("//", f"//somebody:{SECRET}@"),
            "BXMESH_EMBEDDING_MODEL": "small",
            "BXMESH_EMBEDDING_DIMENSION": str(DIMENSION),
            "BXMESH_EMBEDDING_KEY": SECRET,
            "BXMESH_QDRANT_URL": f"http://somebody:{SECRET}@127.0.0.1:1",
            "BXMESH_QDRANT_KEY": SECRET,
            "NO_PROXY": "127.0.0.1",
        }
        with start_mesh(**settings) as running:
            async with client(running) as mesh:
                vectors = await when(mesh, lambda one: one.state == UNHEALTHY, "vector_store")
                assert "refused" in vectors.message
                told = await health(mesh)
            assert SECRET not in str(told)
            states = {one.name: one.state for one in told.components}
            assert states["embedding_model"] == HEALTHY
            assert told.state == UNHEALTHY
            key = await make_key(running, "looker", roles=["reader"])
            async with gateway(running) as url:
                for who, may in ((admin_key(running), True), (key, False)):
                    async with http_client(url, who) as http:
                        answer = await http.get("/health/detailed")
                    assert SECRET not in answer.text
                    shown = {one["name"]: one for one in answer.json()["components"]}
                    assert shown["vector_store"]["state"] == "unhealthy"
                    assert shown["embedding_model"]["state"] == "healthy"
                    assert bool(shown["embedding_model"]["details"]) is may
                    assert shown.keys() == states.keys()
        assert embeddings.texts == []

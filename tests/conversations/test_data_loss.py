"""What the data-loss policy lets nobody send leaves for no provider, wherever in a conversation it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.conversations import Question
from bxmesh.client.errors import InvalidInput
from bxmesh.security.v1 import policy_pb2
from bxmesh.server.conversations.archive.embedding.guarded import GuardedEmbedder
from bxmesh.server.conversations.archive.embedding.http import HttpEmbedder
from bxmesh.server.conversations.archive.embedding.protocol import EmbeddingError
from bxmesh.server.security.data_loss import DataGuard
from bxmesh.server.security.events import IGNORED
from tests.conversations.embedding_server import DIMENSION, EmbeddingServer, embedding_server
from tests.conversations.talk import Talk, spec, taking_part
from tests.conversations.test_models import lending
from tests.host.openai_server import OpenAIServer, serving
from tests.processes import until
from tests.sdk.conftest import client, start_mesh
from tests.security.test_data_loss import Policy

CARD = "4539148803436467"
MAIL = "jane.roe@example.org"


@pytest.fixture
def embeddings() -> Iterator[EmbeddingServer]:
    with embedding_server() as server:
        yield server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


def policy() -> policy_pb2.Policy:
    policy = policy_pb2.Policy()
    policy.data_rules.add(
        name="cards", detector=policy_pb2.DETECTOR_CARD, action=policy_pb2.DATA_ACTION_REDACT
    )
    policy.data_rules.add(
        name="mail", detector=policy_pb2.DETECTOR_EMAIL, action=policy_pb2.DATA_ACTION_BLOCK
    )
    return policy


def environment(embeddings: EmbeddingServer) -> dict[str, str]:
    return {
        "BXMESH_EMBEDDING_URL": embeddings.url,
        "BXMESH_EMBEDDING_MODEL": "small",
        "BXMESH_EMBEDDING_DIMENSION": f"{DIMENSION}",
    }


def learnt(server: OpenAIServer, embeddings: EmbeddingServer) -> str:
    """All that providers came to know."""
    return json.dumps([server.asked, embeddings.texts])


def by_model(name: str) -> pb.Participant:
    participant = pb.Participant(participant_id=name, instructions=f"The card of {name} is {CARD}.")
    participant.model.model = "openai:small"
    return participant


async def test_cards_are_taken_out_of_all_that_providers_learn(
    server: OpenAIServer, embeddings: EmbeddingServer
) -> None:
    def answer(asked: dict[str, object]) -> str:
        return "Choice: 1" if "Choice" in json.dumps(asked) else "Answer: a kitten"

    def clerk(question: Question) -> str:
        return f"a cat with {CARD}" if question.turn == 1 else f"a dog with {CARD}"

    server.script = answer
    wanted = spec("clerk", turns=2, message=f"Whose is {CARD}?")
    wanted.participants.append(by_model("writer"))
    wanted.consensus.method = pb.CONSENSUS_METHOD_JUDGE
    wanted.consensus.judge.CopyFrom(by_model("judge"))
    with start_mesh(**environment(embeddings)) as mesh:
        async with (
            client(mesh) as caller,
            taking_part(caller, clerk=clerk) as voices,
            lending(caller, {"openai:small": server.url}),
        ):
            await caller.security.call(policy_pb2.ApplyPolicyRequest(policy=policy()))
            talk = Talk(caller)
            held = await talk.hold(wanted)
            # What was said is kept as it was said.
            assert any(CARD in turn.text for turn in held.turns)
            await until(lambda: any("Whose is" in text for text in embeddings.texts))
            await until(lambda: any("a dog with" in text for text in embeddings.texts))
            request = archive_pb.SearchConversationsRequest(query=f"kitten {CARD}")
            found = await talk.call("SearchConversations", request)
            assert found.results
            assert not found.degraded
    assert held.state == pb.CONVERSATION_STATE_COMPLETED
    told = learnt(server, embeddings)
    # The question, the instructions, what was said before, and what the judge chooses from.
    for words in (
        "Whose is",
        "The card of writer",
        "The card of judge",
        "a cat with",
        "a dog with",
    ):
        assert words in json.dumps(server.asked)
    assert "kitten [" in json.dumps(embeddings.texts)
    assert CARD not in told
    assert CARD not in json.dumps([one.model_dump() for one in voices["clerk"].asked])


async def test_what_must_not_go_at_all_leaves_out_whom_it_would_be_told(
    server: OpenAIServer, embeddings: EmbeddingServer
) -> None:
    server.script = lambda asked: "Answer: a kitten"
    wanted = spec("clerk", turns=2)
    wanted.participants.append(by_model("writer"))
    wanted.consensus.quorum = 1
    with start_mesh(**environment(embeddings)) as mesh:
        async with (
            client(mesh) as caller,
            taking_part(caller, clerk=lambda question: f"a cat of {MAIL}"),
            lending(caller, {"openai:small": server.url}),
        ):
            await caller.security.call(policy_pb2.ApplyPolicyRequest(policy=policy()))
            talk = Talk(caller)
            held = await talk.hold(wanted)
            await until(lambda: any("kitten" in text for text in embeddings.texts))
            search = archive_pb.SearchConversationsRequest(query=f"kitten {MAIL}")
            assert (await talk.call("SearchConversations", search)).degraded
            search.mode = archive_pb.SEARCH_MODE_MEANING
            with pytest.raises(InvalidInput, match="policy"):
                await talk.call("SearchConversations", search)
            # Others do not have to do without.
            search.query = "kitten"
            assert (await talk.call("SearchConversations", search)).results
    # Who is blocked by what he said himself is told of it too.
    left_out = {turn.participant_id: turn for turn in held.turns if turn.turn == 2}
    assert left_out.keys() == {"clerk", "writer"}
    assert all("policy" in turn.error.message for turn in left_out.values())
    assert server.asked
    assert MAIL not in learnt(server, embeddings)


async def test_what_stands_across_two_pieces_is_no_way_out(embeddings: EmbeddingServer) -> None:
    source = Policy()
    source.rule(policy_pb2.DATA_ACTION_REDACT)
    embedder = GuardedEmbedder(
        HttpEmbedder(embeddings.url, "small", DIMENSION), DataGuard(source, IGNORED)
    )
    try:
        with pytest.raises(EmbeddingError) as refused:
            await embedder.embed([f"a cat with {CARD[:9]}", f"{CARD[9:]}, and a dog"])
        assert refused.value.refused
        assert not embeddings.texts
        assert (await embedder.embed([f"a cat with {CARD}", "a dog"])).shape == (2, DIMENSION)
        assert CARD not in "".join(embeddings.texts)
        assert len(embeddings.texts) == 2
    finally:
        await embedder.close()

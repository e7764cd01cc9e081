"""Who sees and changes which conversation, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from google.protobuf import json_format

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client import AsyncMesh
from bxmesh.client.errors import (
    BxmeshError,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL
from tests.conversations.talk import Talk, spec, taking_part
from tests.host.conftest import become, mesh, served

__all__ = ["mesh", "served"]

PERMISSIONS = ("conversation_read", "conversation_write", "task_assign", "task_read")


@pytest.fixture
async def stranger(mesh: AsyncMesh) -> AsyncIterator[Talk]:
    """Somebody who may hold conversations."""
    async with await become(mesh, f"stranger-{uuid4().hex[:8]}", *PERMISSIONS) as other:
        yield Talk(other)


async def test_others_see_only_what_is_shared(mesh: AsyncMesh, stranger: Talk) -> None:
    talk, ended = Talk(mesh), archive_pb.ConversationFilter()
    async with taking_part(mesh, one=lambda question: "of zyzzyva beetles"):
        own = await talk.hold(spec("one"))
        shared = await talk.hold(spec("one", visibility=VISIBILITY_ALL))
    ended.end_time.GetCurrentTime()
    name = own.conversation_id
    for method, request in (
        ("GetConversation", archive_pb.GetConversationRequest(conversation_id=name)),
        ("CancelConversation", pb.CancelConversationRequest(conversation_id=name)),
        ("DeleteConversation", archive_pb.DeleteConversationRequest(conversation_id=name)),
        (
            "SendConversationMessage",
            pb.SendConversationMessageRequest(conversation_id=name, message="and?"),
        ),
    ):
        with pytest.raises(NotFound, match=name):
            await stranger.call(method, request)
    with pytest.raises(NotFound):
        [event async for event in stranger.events(conversation_id=name)]
    # What is shared is seen, and no more.
    name = shared.conversation_id
    seen = [event async for event in stranger.events(conversation_id=name)]
    assert seen[-1].ended.consensus.text == "of zyzzyva beetles"
    request = pb.SendConversationMessageRequest(conversation_id=name, message="and?")
    with pytest.raises(PermissionDenied):
        await stranger.call("SendConversationMessage", request)
    listed = await stranger.call("ListConversations", archive_pb.ListConversationsRequest())
    assert own.conversation_id not in {one.conversation_id for one in listed.conversations}
    search = archive_pb.SearchConversationsRequest(query="zyzzyva")
    found = await stranger.call("SearchConversations", search)
    assert {one.conversation.conversation_id for one in found.results} == {name}
    purge = archive_pb.PurgeConversationsRequest(filter=ended)
    with pytest.raises(PermissionDenied):
        await stranger.call("PurgeConversations", purge)


async def test_an_owner_speaks_with_its_own_rights(mesh: AsyncMesh, stranger: Talk) -> None:
    async with taking_part(mesh, one=lambda question: "A"):
        held = await stranger.hold(spec("one"))
        assert held.state == pb.CONVERSATION_STATE_COMPLETED
        # Without the right to assign tasks nobody is asked, and that is said.
        async with await become(
            mesh, f"mute-{uuid4().hex[:8]}", "conversation_read", "conversation_write"
        ) as mute:
            failed = await Talk(mute).hold(spec("one"))
    assert failed.state == pb.CONVERSATION_STATE_FAILED
    assert failed.turns[0].error.code == 7


@pytest.mark.parametrize(
    ("wanted", "place"),
    [
        ({"message": ""}, "message"),
        ({"turns": 101}, "turns"),
        ({"numberOfAgents": 65}, "number_of_agents"),
        ({"participants": [{}]}, "source"),
        ({"participants": [{"agentId": "a/b"}]}, "agent_id"),
        ({"participants": [{"agentId": "a", "participantId": "x"}] * 2}, "participant_id"),
        ({"consensus": {"method": "CONSENSUS_METHOD_JUDGE"}}, "judge"),
        ({"consensus": {"method": "CONSENSUS_METHOD_STRUCTURED"}}, "answer_schema"),
        (
            {
                "consensus": {
                    "method": "CONSENSUS_METHOD_STRUCTURED",
                    "answerSchema": {"type": "nonsense"},
                }
            },
            "answer_schema",
        ),
        ({"consensus": {"quorum": 4}, "numberOfAgents": 3}, "quorum"),
        ({"consensus": {"stopConfidence": 1.5}}, "stop_confidence"),
        ({"budget": {"maxDuration": "86401s"}}, "max_duration"),
        ({"bundleIds": ["sha256:0"]}, "bundle_ids"),
    ],
)
async def test_what_cannot_be_held_is_refused_by_name(
    mesh: AsyncMesh, wanted: dict[str, object], place: str
) -> None:
    request = pb.StartConversationRequest()
    json_format.ParseDict({"message": "Which?", **wanted}, request.spec)
    with pytest.raises(InvalidInput) as refusal:
        await Talk(mesh).call("StartConversation", request)
    assert any(place in field for field, _ in refusal.value.field_violations)


async def test_one_round_at_a_time(mesh: AsyncMesh) -> None:
    go_on = asyncio.Event()

    async def wait(question: object) -> str:
        await go_on.wait()
        return "A"

    talk = Talk(mesh)
    async with taking_part(mesh, one=wait):
        held = await talk.hold(spec("one"), detach=True)
        name = held.conversation_id
        again = pb.SendConversationMessageRequest(conversation_id=name, message="and?")
        with pytest.raises(FailedPrecondition, match="under way"):
            await talk.call("SendConversationMessage", again)
        delete = archive_pb.DeleteConversationRequest(conversation_id=name)
        with pytest.raises(FailedPrecondition):
            await talk.call("DeleteConversation", delete)
        go_on.set()
        [*_, last] = [event async for event in talk.events(conversation_id=name)]
        assert last.HasField("ended")
        # Of many who continue at once one does.
        answers = await asyncio.gather(
            *(talk.call("SendConversationMessage", again) for _ in range(5)),
            return_exceptions=True,
        )
        refused = [one for one in answers if isinstance(one, BaseException)]
        assert len(refused) == 4
        assert all(isinstance(one, FailedPrecondition) for one in refused)
        following = talk.events(conversation_id=name, after_revision=last.revision)
        [*_, last] = [event async for event in following]
        assert len(last.ended.turns) == 3
        await talk.call("DeleteConversation", delete)
        with pytest.raises(NotFound):
            [event async for event in talk.events(conversation_id=name)]


async def test_a_revision_that_has_not_come(mesh: AsyncMesh) -> None:
    talk = Talk(mesh)
    async with taking_part(mesh, one=lambda question: "A"):
        held = await talk.hold(spec("one"))
    request = pb.StreamConversationRequest(
        conversation_id=held.conversation_id, after_revision=held.revision + 1
    )
    call = talk.stub.StreamConversation(request, metadata=talk.mesh._connection.metadata)
    with pytest.raises(Exception, match="no revision"):
        [response async for response in call]


async def test_nobody_has_all_the_room(mesh: AsyncMesh, stranger: Talk) -> None:
    go_on = asyncio.Event()

    async def wait(question: object) -> str:
        await go_on.wait()
        return "A"

    async with taking_part(mesh, patient=wait):
        started = await asyncio.gather(
            *(stranger.hold(spec("patient"), detach=True) for _ in range(200)),
            return_exceptions=True,
        )
        assert not [one for one in started if isinstance(one, BxmeshError)]
        with pytest.raises(ResourceExhausted, match="have not ended"):
            await stranger.hold(spec("patient"))
        go_on.set()
        async with asyncio.timeout(100):
            for one in started:
                assert not isinstance(one, BaseException)
                events = stranger.events(conversation_id=one.conversation_id)
                [*_, last] = [event async for event in events]
                assert last.ended.state == pb.CONVERSATION_STATE_COMPLETED


async def test_repetitions_at_once_are_one(mesh: AsyncMesh) -> None:
    talk = Talk(mesh)
    async with taking_part(mesh, one=lambda question: question.message) as voices:
        for _ in range(5):
            same = uuid4().hex
            held = await asyncio.gather(
                *(talk.hold(spec("one"), request_id=same, detach=True) for _ in range(8))
            )
            assert len({one.conversation_id for one in held}) == 1
        name = held[0].conversation_id
        [*_, first] = [event async for event in talk.events(conversation_id=name)]
        again = pb.SendConversationMessageRequest(
            conversation_id=name, message="and?", request_id=uuid4().hex
        )
        await asyncio.gather(*(talk.call("SendConversationMessage", again) for _ in range(8)))
        # Whoever follows from the beginning sees both rounds.
        events = [event async for event in talk.events(conversation_id=name)]
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds.count("started") == kinds.count("ended") == 2
        assert events[-1].ended.consensus.text == "and?"
        assert events[-1].revision > first.revision
        assert len(voices["one"].asked) == 6

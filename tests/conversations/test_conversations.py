"""Conversations on a real server, with agents whose answers are scripted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client import AsyncMesh
from bxmesh.client.conversations import AgentAnswer, Question
from tests.conversations.talk import Talk, spec, taking_part
from tests.host.conftest import mesh, served

__all__ = ["mesh", "served"]

COMPLETED = pb.CONVERSATION_STATE_COMPLETED
FAILED = pb.CONVERSATION_STATE_FAILED


def says(text: str, confidence: float | None = None) -> Any:
    return lambda question: AgentAnswer(text=text, confidence=confidence).model_dump()


async def test_the_majority_agrees(mesh: AsyncMesh) -> None:
    async with taking_part(
        mesh, yes_1=says("Yes.", 0.9), yes_2=says("yes", 0.7), no_1=says("No", 1.0)
    ):
        found = await Talk(mesh).hold(spec("yes_1", "yes_2", "no_1"))
    assert found.state == COMPLETED
    assert found.consensus.text.lower().startswith("yes")
    assert list(found.consensus.groups[0].participant_ids) == ["yes_1", "yes_2"]
    assert found.consensus.groups[0].share == pytest.approx(2 / 3)
    assert {turn.participant_id: turn.text for turn in found.turns} == {
        "yes_1": "Yes.",
        "yes_2": "yes",
        "no_1": "No",
    }


async def test_later_turns_see_what_was_said(mesh: AsyncMesh) -> None:
    def follower(question: Question) -> Any:
        if not question.earlier:
            return "five"
        return next(one.text for one in question.earlier if one.participant_id == "leader")

    async with taking_part(mesh, leader=says("four"), follower=follower) as voices:
        found = await Talk(mesh).hold(spec("leader", "follower", turns=2))
    assert found.consensus.turn == 2
    assert found.consensus.text == "four"
    assert found.consensus.groups[0].share == 1
    asked = voices["follower"].asked
    assert [(one.turn, len(one.earlier)) for one in asked] == [(1, 0), (2, 2)]


async def test_who_fails_is_left_out_and_the_rest_go_on(mesh: AsyncMesh) -> None:
    async with taking_part(
        mesh, one=says("A"), two=says("A"), broken=lambda question: ValueError("no idea")
    ) as voices:
        found = await Talk(mesh).hold(spec("one", "two", "broken", turns=2))
    assert found.state == COMPLETED
    assert found.consensus.text == "A"
    failed = [turn for turn in found.turns if turn.HasField("error")]
    assert [turn.participant_id for turn in failed] == ["broken"]
    assert {one.turn for one in voices["broken"].asked} == {1}
    assert [len(voices[name].asked) for name in ("one", "two")] == [2, 2]


async def test_below_the_quorum_it_fails(mesh: AsyncMesh) -> None:
    async with taking_part(mesh, one=says("A"), broken=lambda question: ValueError("no idea")):
        found = await Talk(mesh).hold(spec("one", "broken", "nobody", turns=3))
    assert found.state == FAILED
    [info] = [detail for detail in found.error.details if detail.type_url.endswith("ErrorInfo")]
    assert b"NO_QUORUM" in info.value
    assert {turn.turn for turn in found.turns} == {1}


async def test_what_is_written_streams(mesh: AsyncMesh) -> None:
    go_on = asyncio.Event()

    def writer(question: Question) -> Any:
        async def write(context: Any) -> str:
            for piece in ("It ", "is ", "so"):
                await context.progress(0, text=piece)
            await go_on.wait()
            return "It is so"

        return write

    written, kinds = "", []
    async with taking_part(mesh, writer=writer, other=says("It is so")):
        async for event in Talk(mesh).events(spec=spec("writer", "other")):
            kinds.append(event.WhichOneof("event"))
            if event.HasField("delta"):
                assert event.delta.participant_id == "writer"
                written += event.delta.text
                if written == "It is so":
                    go_on.set()
            if event.HasField("ended"):
                ended = event.ended
    assert written == "It is so"
    assert kinds[0] == "started"
    assert kinds[-3:] == ["consensus", "turn_ended", "ended"]
    assert ended.consensus.text == "It is so"
    # What is attached later need not know how it was written.
    again = [event async for event in Talk(mesh).events(conversation_id=ended.conversation_id)]
    assert [event.WhichOneof("event") for event in again] == [
        "started",
        "answered",
        "answered",
        "consensus",
        "turn_ended",
        "ended",
    ]
    late = Talk(mesh).events(
        conversation_id=ended.conversation_id, after_revision=again[-2].revision
    )
    assert [event.WhichOneof("event") async for event in late] == ["ended"]


async def test_ranked_goes_by_second_choices(mesh: AsyncMesh) -> None:
    order = {
        "a1": ["A", "B", "C"],
        "a2": ["A", "B", "C"],
        "b1": ["B", "C", "A"],
        "b2": ["B", "C", "A"],
        "c1": ["C", "B", "A"],
    }

    def voter(name: str) -> Any:
        def script(question: Question) -> Any:
            if question.kind == "answer":
                return order[name][0]
            texts = question.candidates
            return {"ranking": [texts.index(text) for text in order[name]]}

        return script

    settings = pb.ConsensusSettings(method=pb.CONSENSUS_METHOD_RANKED)
    async with taking_part(mesh, **{name: voter(name) for name in order}):
        found = await Talk(mesh).hold(spec(*order, consensus=settings))
    # C goes first, and whoever wanted C prefers B.
    assert found.consensus.text == "B"


async def test_a_judge_decides(mesh: AsyncMesh) -> None:
    settings = pb.ConsensusSettings(
        method=pb.CONSENSUS_METHOD_JUDGE, judge=pb.Participant(agent_id="wise")
    )

    def judge(question: Question) -> Any:
        assert question.kind == "judge"
        return {"choice": question.candidates.index("42"), "text": "It is known."}

    async with taking_part(mesh, one=says("41"), two=says("41"), three=says("42"), wise=judge):
        found = await Talk(mesh).hold(spec("one", "two", "three", consensus=settings))
    assert found.consensus.text == "42"
    assert found.consensus.method == pb.CONSENSUS_METHOD_JUDGE


async def test_a_judge_hears_which_part_is_tied(mesh: AsyncMesh) -> None:
    settings = pb.ConsensusSettings(
        method=pb.CONSENSUS_METHOD_STRUCTURED, judge=pb.Participant(agent_id="wise")
    )
    settings.answer_schema["type"] = "object"

    def says_lattice(lattice: str) -> Any:
        return lambda question: {"answer": {"lattice": lattice, "domains": 2}}

    def judge(question: Question) -> Any:
        assert "Which?" in question.message
        assert "lattice" in question.message
        return {"choice": question.candidates.index("cubic")}

    async with taking_part(
        mesh, one=says_lattice("tetragonal"), two=says_lattice("cubic"), wise=judge
    ):
        found = await Talk(mesh).hold(spec("one", "two", consensus=settings))
    assert found.consensus.tie_break == "judge"
    assert dict(found.consensus.answer.struct_value) == {"lattice": "cubic", "domains": 2}


async def test_a_judge_that_is_away_leaves_ties_to_the_first(mesh: AsyncMesh) -> None:
    settings = pb.ConsensusSettings(judge=pb.Participant(agent_id="nobody"))
    async with taking_part(mesh, one=says("A"), two=says("B")):
        found = await Talk(mesh).hold(spec("one", "two", consensus=settings))
    assert found.state == COMPLETED
    assert found.consensus.text == "A"
    assert found.consensus.tie_break == "first_stable"


async def test_numbers_have_a_median(mesh: AsyncMesh) -> None:
    settings = pb.ConsensusSettings(method=pb.CONSENSUS_METHOD_NUMERIC)
    async with taking_part(
        mesh,
        one=lambda question: 1.9,
        two=says("about 2.1 Å"),
        three=lambda question: {"answer": 2.0},
    ):
        found = await Talk(mesh).hold(spec("one", "two", "three", consensus=settings))
    assert found.consensus.answer.number_value == pytest.approx(2.0)
    assert found.consensus.HasField("spread")


async def test_it_stops_when_it_is_sure_enough(mesh: AsyncMesh) -> None:
    settings = pb.ConsensusSettings(stop_confidence=0.8)
    async with taking_part(mesh, one=says("A", 0.9), two=says("A", 0.9)):
        found = await Talk(mesh).hold(spec("one", "two", consensus=settings, turns=5))
    assert found.consensus.turn == 1


async def test_who_is_late_is_left_out(mesh: AsyncMesh) -> None:
    async def sleep(question: Question) -> str:
        await asyncio.sleep(60)
        return "late"

    wanted = spec("one", "two", "slow")
    wanted.budget.max_answer_duration.FromMilliseconds(700)
    async with taking_part(mesh, one=says("A"), two=says("A"), slow=sleep):
        found = await Talk(mesh).hold(wanted)
    assert found.state == COMPLETED
    [late] = [turn for turn in found.turns if turn.participant_id == "slow"]
    assert late.error.code == 4


async def test_out_of_time_it_says_what_there_is(mesh: AsyncMesh) -> None:
    async def sleep(question: Question) -> str:
        await asyncio.sleep(60)
        return "late"

    wanted = spec("one", "two", "slow", turns=9)
    wanted.budget.max_duration.FromMilliseconds(1500)
    async with taking_part(mesh, one=says("A"), two=says("A"), slow=sleep):
        found = await Talk(mesh).hold(wanted)
        assert found.state == COMPLETED
        assert found.consensus.text == "A"
        # What nobody waits for any more is not worked on.
        async for task in mesh.tasks(task_type="conversation.answer", agent_id="slow"):
            final = await mesh.wait_for_task(task.task_id)
            assert final.state in ("cancelled", "timed_out")


async def test_cancelling(mesh: AsyncMesh) -> None:
    began = asyncio.Event()
    stopped = asyncio.Event()

    async def sleep(question: Question) -> str:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return "late"

    talk = Talk(mesh)
    async with taking_part(mesh, slow=sleep):
        held = await talk.hold(spec("slow"), detach=True)
        assert held.state == pb.CONVERSATION_STATE_PENDING
        await began.wait()
        request = pb.CancelConversationRequest(conversation_id=held.conversation_id)
        answer = await talk.call("CancelConversation", request)
        assert answer.conversation.state == pb.CONVERSATION_STATE_CANCELLED
        await stopped.wait()
        again = await talk.call("CancelConversation", request)
        assert again.conversation.revision == answer.conversation.revision
    kinds = [
        event.WhichOneof("event")
        async for event in talk.events(conversation_id=held.conversation_id)
    ]
    assert kinds == ["started", "ended"]


async def test_continuing(mesh: AsyncMesh) -> None:
    def script(question: Question) -> str:
        return f"{len(question.earlier)} before {question.message}"

    talk = Talk(mesh)
    async with taking_part(mesh, one=script, two=script):
        first = await talk.hold(spec("one", "two", message="first"))
        request = pb.SendConversationMessageRequest(
            request_id="again", conversation_id=first.conversation_id, message="second"
        )
        for _ in range(2):
            answer = await talk.call("SendConversationMessage", request)
        assert answer.conversation.conversation_id == first.conversation_id
        events = talk.events(conversation_id=first.conversation_id, after_revision=first.revision)
        ended = [event async for event in events][-1].ended
    assert ended.consensus.text == "3 before second"
    assert [(turn.turn, turn.participant_id) for turn in ended.turns if turn.turn == 2] == [(2, "")]
    assert {turn.participant_id for turn in ended.turns if turn.turn == 3} == {"one", "two"}
    assert len(ended.turns) == 5


async def test_the_same_request_is_the_same_conversation(mesh: AsyncMesh) -> None:
    talk = Talk(mesh)
    async with taking_part(mesh, one=says("A")) as voices:
        found = [await talk.hold(spec("one"), request_id="once") for _ in range(3)]
        assert len(voices["one"].asked) == 1
    assert len({one.conversation_id for one in found}) == 1
    assert all(one.state == COMPLETED for one in found)

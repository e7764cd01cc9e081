"""Holding conversations as durable work: what was said is written down before anything else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.agent.v1.conversation_work_pb2 import ConversationWork
from bxmesh.client.conversations.question import AgentAnswer, Kind, Question
from bxmesh.server.agent_calls import AgentCalls
from bxmesh.server.conversations.archive import Archive
from bxmesh.server.conversations.asking import Ask, Asker
from bxmesh.server.conversations.beginning import first_turn
from bxmesh.server.conversations.consensus import (
    Answer,
    Candidate,
    Verdict,
    consensus,
)
from bxmesh.server.conversations.events import OvertakenError, Story, fold
from bxmesh.server.conversations.mesh import ConversationMesh
from bxmesh.server.conversations.participants import instructions_of, judge_of, weight_of
from bxmesh.server.conversations.states import ENDED
from bxmesh.server.conversations.transcript import earlier_than
from bxmesh.server.errors import MeshError, deadline_exceeded, internal, resource_exhausted
from bxmesh.server.json_values import Json, NotJsonError, json_fields, json_of, value_of
from bxmesh.server.security.on_behalf import Deputy
from bxmesh.server.streams import WorkContext
from bxmesh.server.streams.ending import end_tasks

__all__ = ["ConversationRunner"]

_log = logging.getLogger(__name__)

_ROUND_SECONDS = 3600.0
_ANSWER_SECONDS = 600.0
_MARGIN_SECONDS = 60.0
# All of a conversation is read in one message.
_MOST_BYTES = 3 << 20
# Data are compared with one another.
_MOST_ANSWER_BYTES = 64 << 10
_SAVE_AGAIN_SECONDS = (0.2, 10.0)
_OVERTAKEN_SECONDS = 0.2


class ConversationRunner:
    """Holds rounds of conversations from where they stand to their end."""

    def __init__(self, mesh: ConversationMesh, deputy: Deputy) -> None:
        """Takes what calls the mesh for owners."""
        self._mesh = mesh
        self._deputy = deputy

    async def execute(self, context: WorkContext) -> Message | None:
        """Handles one item: a round, of which some may have been said before."""
        work = ConversationWork()
        context.item.payload.Unpack(work)
        while True:
            story = fold(await self._mesh.log.all(work.conversation_id))
            # Whoever looks after conversations ends what nobody tells any more. And one that ended may
            # have been continued before its item came to be settled.
            if story is None or first_turn(story.conversation) != work.first_turn:
                return None
            try:
                if story.conversation.state in ENDED:
                    await _save(self._mesh.archive, story.conversation)
                else:
                    await self._hold(context, work, story)
            except OvertakenError:
                # It was cancelled. Or somebody held the round whose lease has ended, or Redis has
                # written what it did not come to confirm: then it goes on from there.
                await asyncio.sleep(_OVERTAKEN_SECONDS)
            else:
                return None

    async def _hold(self, context: WorkContext, work: ConversationWork, story: Story) -> None:
        mesh, conversation = self._mesh, story.conversation
        seconds = _seconds(conversation.spec.budget.max_duration, _ROUND_SECONDS)
        metadata = await self._deputy.metadata(work.caller, seconds + _MARGIN_SECONDS)
        asker = Asker(
            AgentCalls(self._deputy.channel, metadata),
            mesh.data,
            conversation.owner,
            lambda: context.cancelled or round_.over,
        )
        round_ = _Round(mesh, conversation, story.left, story.began, work, asker, seconds)
        await round_.go()


@dataclass
class _Round:
    """One round under way."""

    mesh: ConversationMesh
    conversation: pb.Conversation
    left: dict[str, str]
    began: float
    work: ConversationWork
    asker: Asker
    seconds: float
    over: bool = False
    """Whether what is still asked is not wanted any more."""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    pieces: dict[str, list[int]] = field(default_factory=dict)
    """The revisions of what is being written, by who writes it."""

    def __post_init__(self) -> None:
        self.settings = self.conversation.spec.consensus
        self.places = {
            one.participant_id: str(place)
            for place, one in enumerate(self.conversation.participants)
        }
        judge = judge_of(self.conversation.spec)
        self.judge = None if judge is None else _AskedJudge(self, judge)

    async def go(self) -> None:
        """Goes on to the end."""
        self.conversation.state = pb.CONVERSATION_STATE_RUNNING
        time_left = max(0.0, min(self.seconds, self.began + self.seconds - time.time()))
        turns = asyncio.create_task(self._turns())
        try:
            await asyncio.wait([turns], timeout=time_left)
            in_time = turns.done()
            self.over = True
        finally:
            await end_tasks(turns)
        await self._end(turns.result() if in_time else await self._late())

    async def _late(self) -> MeshError | None:
        """Makes of what was said what can be made of it; returns why that is nothing."""
        late = deadline_exceeded(
            f"The conversation took longer than {self.seconds:g} seconds.",
            reason="CONVERSATION_TIMED_OUT",
        )
        turn = max((one.turn for one in self.conversation.turns), default=0)
        if turn > max(self.conversation.consensus.turn, self.work.first_turn - 1):
            # There is no time left to ask a judge.
            self.judge = None
            try:
                outcome = await self._agree(turn, ballots=False)
            except MeshError as error:
                _log.info("what was said in time comes to nothing: %s", error.reason)
            else:
                self.conversation.consensus.CopyFrom(outcome)
                await self._write(pb.ConversationEvent(consensus=outcome))
        return None if self.conversation.HasField("consensus") else late

    async def _turns(self) -> MeshError | None:
        """Holds the turns; returns why there is no consensus."""
        for turn in range(self.work.first_turn, self.work.last_turn + 1):
            if self.conversation.consensus.turn >= turn:
                # It was reached before this was taken up again.
                if self._enough(self.conversation.consensus):
                    break
                continue
            await self._ask_all(turn)
            try:
                outcome = await self._agree(turn)
            except MeshError as error:
                if turn == self.work.last_turn or len(self._present()) < self._quorum():
                    return error
                await self._write(pb.ConversationEvent(turn_ended=turn))
                continue
            self.conversation.consensus.CopyFrom(outcome)
            await self._write(
                pb.ConversationEvent(consensus=outcome), pb.ConversationEvent(turn_ended=turn)
            )
            if self._enough(outcome):
                break
            if turn < self.work.last_turn:
                await self._save_between()
        return None

    def _enough(self, outcome: pb.Consensus) -> bool:
        """Whether there is no need or no means for another turn."""
        spec = self.conversation.spec
        if spec.consensus.stop_confidence and outcome.confidence >= spec.consensus.stop_confidence:
            return True
        if self.conversation.ByteSize() > _MOST_BYTES:
            return True
        return bool(spec.budget.max_tokens) and self._tokens() >= spec.budget.max_tokens

    def _tokens(self) -> int:
        return sum(turn.input_tokens + turn.output_tokens for turn in self.conversation.turns)

    def _present(self) -> list[pb.Participant]:
        return [
            one for one in self.conversation.participants if one.participant_id not in self.left
        ]

    def _quorum(self) -> int:
        return self.settings.quorum or len(self.conversation.participants) // 2 + 1

    async def _ask_all(self, turn: int) -> None:
        answered = {one.participant_id for one in self.conversation.turns if one.turn == turn}
        asked = [
            asyncio.create_task(self._ask(turn, one))
            for one in self._present()
            if one.participant_id not in answered
        ]
        try:
            await asyncio.gather(*asked)
        finally:
            await end_tasks(*asked)

    async def _ask(self, turn: int, participant: pb.Participant) -> None:
        name = participant.participant_id
        said = pb.Turn(turn=turn, participant_id=name)
        said.start_time.GetCurrentTime()
        pieces = self.pieces.setdefault(name, [])

        async def hear(text: str) -> None:
            delta = pb.TextDelta(turn=turn, participant_id=name, text=text)
            # What is not told now is in the answer: Redis being away is no failure of who writes.
            with contextlib.suppress(MeshError):
                pieces.extend(await self._write(pb.ConversationEvent(delta=delta)))

        try:
            answer = await self.asker.ask(self._question(turn, participant), hear)
            _fill(said, answer)
            if self.conversation.ByteSize() + said.ByteSize() > _MOST_BYTES + (_MOST_BYTES >> 3):
                raise resource_exhausted(
                    f"The conversation would be larger than {_MOST_BYTES} bytes.",
                    retry_after=0.0,
                    reason="CONVERSATION_FULL",
                    subject=self.conversation.conversation_id,
                )
        except MeshError as error:
            said = pb.Turn(turn=turn, participant_id=name, start_time=said.start_time)
            said.error.CopyFrom(error.to_status())
            # As it was asked: nothing answered that would name itself.
            said.model = participant.model.model
        said.end_time.GetCurrentTime()
        events = [pb.ConversationEvent(answered=said)]
        if said.HasField("error"):
            gone = pb.ParticipantLeft(participant_id=name, reason=said.error)
            events.append(pb.ConversationEvent(left=gone))
            self.left[name] = said.error.message
        self.conversation.turns.append(said)
        await self._write(*events)
        # What was written piece by piece is in the answer.
        await self.mesh.log.drop(self.conversation.conversation_id, self.pieces.pop(name, ()))

    def _question(
        self,
        turn: int,
        participant: pb.Participant,
        kind: Kind = "answer",
        candidates: Sequence[str] = (),
        message: str = "",
    ) -> Ask:
        spec = self.conversation.spec
        name = participant.participant_id
        method = pb.ConsensusMethod.Name(self.settings.method).removeprefix("CONSENSUS_METHOD_")
        schema = self.settings.answer_schema
        question = Question(
            kind=kind,
            conversation_id=self.conversation.conversation_id,
            participant_id=name,
            turn=turn,
            message=message or self.work.message,
            instructions=instructions_of(participant),
            earlier=earlier_than(self.conversation.turns, turn if kind == "answer" else turn + 1),
            candidates=list(candidates),
            bundle_ids=list(spec.bundle_ids),
            method=method.lower() if self.settings.method else "majority",
            answer_schema=json_fields(schema) if self.settings.HasField("answer_schema") else None,
        )
        seconds = min(self.seconds, _seconds(spec.budget.max_answer_duration, _ANSWER_SECONDS))
        place = self.places.get(name, "") if kind != "judge" else ""
        request_id = f"{self.conversation.conversation_id}:{turn}:{kind}:{place}"
        return Ask(participant, question, request_id, seconds)

    async def _agree(self, turn: int, *, ballots: bool = True) -> pb.Consensus:
        answers = self._answers(turn)
        if ballots and self.settings.method == pb.CONSENSUS_METHOD_RANKED:
            answers = await self._with_ballots(turn, answers)
        outcome = await consensus(
            answers,
            self.settings,
            participants=[one.participant_id for one in self.conversation.participants],
            question=self.work.message,
            earlier=[self._answers(before) for before in range(self.work.first_turn, turn)],
            judge=self.judge,
            meaning=self.mesh.archive.meaning,
        )
        return outcome.to_message(turn)

    def _answers(self, turn: int) -> list[Answer]:
        by_name = {one.participant_id: one for one in self.conversation.participants}
        return [
            Answer(
                said.participant_id,
                said.text,
                json_of(said.answer) if said.HasField("answer") else None,
                said.confidence if said.HasField("confidence") else None,
                weight_of(by_name[said.participant_id]),
                evidence=list(said.evidence),
            )
            for said in self.conversation.turns
            if said.turn == turn and said.participant_id in by_name and not said.HasField("error")
        ]

    async def _with_ballots(self, turn: int, answers: list[Answer]) -> list[Answer]:
        """Asks those who have answered to put all answers in order; who does not keeps its own."""
        texts = [answer.text for answer in answers]
        by_name = {one.participant_id: one for one in self.conversation.participants}

        async def ballot(answer: Answer) -> Answer:
            ask = self._question(turn, by_name[answer.participant_id], "rank", texts)
            try:
                order = (await self.asker.ask(ask)).ranking
            except MeshError as error:
                _log.info("%s does not rank: %s", answer.participant_id, error.reason)
                return answer
            places = [place for place in dict.fromkeys(order) if 0 <= place < len(answers)]
            ranking = [answers[place].participant_id for place in places]
            return Answer(
                answer.participant_id,
                answer.text,
                answer.value,
                answer.confidence,
                answer.weight,
                ranking,
                answer.evidence,
            )

        return list(await asyncio.gather(*map(ballot, answers)))

    async def _end(self, problem: MeshError | None) -> None:
        conversation = self.conversation
        conversation.end_time.GetCurrentTime()
        if problem is None:
            conversation.state = pb.CONVERSATION_STATE_COMPLETED
        else:
            conversation.state = pb.CONVERSATION_STATE_FAILED
            conversation.error.CopyFrom(problem.to_status())
        # Whoever hears of the end may continue, or delete it, at once.
        ended = pb.Conversation()
        ended.CopyFrom(conversation)
        ended.revision += 1
        ended.update_time.CopyFrom(ended.end_time)
        await _save(self.mesh.archive, ended)
        await self._write(pb.ConversationEvent(ended=ended))

    async def _write(self, *events: pb.ConversationEvent) -> list[int]:
        """Writes what has happened, for all to hear; returns the revisions. What changes the
        conversation is in it already."""
        async with self.writing:
            conversation = self.conversation
            revision = conversation.revision
            for number, event in enumerate(events, revision + 1):
                event.conversation_id = conversation.conversation_id
                event.revision = number
                event.event_time.GetCurrentTime()
            await self.mesh.log.append(events)
            conversation.revision = revision + len(events)
            conversation.update_time.CopyFrom(events[-1].event_time)
        await self.mesh.bell.ring(conversation.conversation_id)
        return [event.revision for event in events]

    async def _save_between(self) -> None:
        try:
            await self.mesh.archive.save(self.conversation)
        except MeshError as error:
            # The working memory has it; at the end it must be saved.
            _log.warning("a turn is not archived yet: %s", error.message)


class _AskedJudge:
    """A judge that is asked like the participants."""

    def __init__(self, round_: _Round, participant: pb.Participant) -> None:
        self._round = round_
        self._participant = participant
        self._calls = 0

    async def decide(self, question: str, candidates: Sequence[Candidate]) -> Verdict:
        """Returns which candidate the judge chooses. Raises MeshError without an answer."""
        self._calls += 1
        turn = max((one.turn for one in self._round.conversation.turns), default=1)
        ask = self._round._question(
            turn,
            self._participant,
            "judge",
            [candidate.text for candidate in candidates],
            question,
        )
        ask = Ask(ask.participant, ask.question, f"{ask.request_id}:{self._calls}", ask.seconds)
        answer = await self._round.asker.ask(ask)
        if answer.choice is None or not 0 <= answer.choice < len(candidates):
            raise internal("The judge chose none of the answers.", reason="ANSWER_INVALID")
        return Verdict(answer.choice, answer.text)


def _fill(said: pb.Turn, answer: AgentAnswer) -> None:
    said.text = answer.text
    if answer.answer is not None:
        try:
            said.answer.CopyFrom(value_of(answer.answer, _MOST_ANSWER_BYTES))
        except NotJsonError as error:
            raise internal(f"The answer is no data: {error}", reason="ANSWER_INVALID") from None
        said.text = said.text or _words(answer.answer)
    if answer.confidence is not None:
        said.confidence = answer.confidence
    said.evidence.extend(answer.evidence)
    said.model = answer.model
    said.input_tokens, said.output_tokens = answer.input_tokens, answer.output_tokens
    if not said.text.strip():
        raise internal("The answer is empty.", reason="ANSWER_INVALID")


def _words(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _seconds(duration: Duration, otherwise: float) -> float:
    return min(duration.ToNanoseconds() / 1e9, 86400.0) or otherwise


async def _save(archive: Archive, conversation: pb.Conversation) -> None:
    """Saves until it is saved: as long as this holds the round, nobody else does."""
    pause, longest = _SAVE_AGAIN_SECONDS
    while True:
        try:
            await archive.save(conversation)
            return
        except MeshError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            _log.warning("a conversation is not archived yet: %s", error.message)
        await asyncio.sleep(pause)
        pause = min(longest, 2 * pause)

"""Asking one participant, as the conversation's owner would: a task for an agent."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
from google.protobuf import json_format

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.agent.v1 import message_pb2, task_pb2
from bxmesh.client.conversations.question import ASKED, FINAL, LANGUAGE_MODEL, AgentAnswer, Question
from bxmesh.server.agent_calls import AgentCalls, mesh_error, result_of
from bxmesh.server.errors import MeshError, deadline_exceeded, internal
from bxmesh.server.security.data_loss import DataGuard

__all__ = ["Ask", "Asker", "inspected"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to one participant."""

    participant: pb.Participant
    question: Question
    request_id: str
    """The same for the same question, so that a conversation that is taken up again finds its task."""
    seconds: float
    """How long the answer may take."""


class Asker:
    """Asks participants for the owner of a conversation."""

    def __init__(
        self,
        calls: AgentCalls,
        data: DataGuard,
        owner: str,
        unwanted: Callable[[], bool],
    ) -> None:
        """`unwanted` says whether what is cancelled is cancelled for good."""
        self._calls = calls
        self._data = data
        self._owner = owner
        self._unwanted = unwanted

    async def ask(
        self, ask: Ask, hear: Callable[[str], Awaitable[None]] | None = None
    ) -> AgentAnswer:
        """Returns the answer; `hear` is told what is written of it on the way.

        Raises MeshError with why there is none.
        """
        spec = task_pb2.TaskSpec(
            task_type=ASKED,
            description=f"Turn {ask.question.turn} of a conversation.",
            parameters=await inspected(self._data, self._owner, ask.participant, _parameters(ask)),
        )
        spec.retry_policy.non_retryable_reasons.extend(FINAL)
        spec.timeout.FromMilliseconds(max(1, int(ask.seconds * 1000)))
        match ask.participant.WhichOneof("source"):
            case "agent_id":
                spec.agent_id = ask.participant.agent_id
            case "definition_id":
                # The first agent of a definition is named like it.
                spec.agent_id = ask.participant.definition_id
            case "capability":
                spec.required_capabilities.append(ask.participant.capability)
            case _:
                spec.required_capabilities.append(LANGUAGE_MODEL)

        heard = 0

        async def follow(task: task_pb2.Task) -> None:
            # Other changes of a task bring its last progress again.
            nonlocal heard
            reported = task.progress.update_time.ToNanoseconds()
            if hear is not None and task.progress.text and reported != heard:
                heard = reported
                await hear(task.progress.text)

        try:
            task = await self._calls.done(
                task_pb2.AssignTaskRequest(request_id=ask.request_id, spec=spec),
                unwanted=self._unwanted,
                why="its conversation has ended",
                hear=follow,
            )
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error) from error
        if task.state != task_pb2.TASK_STATE_COMPLETED:
            failure = MeshError.from_status(task.error)
            if task.state == task_pb2.TASK_STATE_TIMED_OUT:
                failure = deadline_exceeded(failure.message, reason="ANSWER_TIMED_OUT")
            raise failure
        try:
            return AgentAnswer.of(result_of(task))
        except ValueError as problem:
            raise internal(
                f"{task.agent_id} has no answer: {problem}", reason="ANSWER_INVALID"
            ) from None


async def inspected(
    data: DataGuard, owner: str, participant: pb.Participant, parameters: str
) -> message_pb2.Payload:
    """Returns what may go to a participant, without what the data-loss policy takes out.

    Raises MeshError PERMISSION_DENIED or FAILED_PRECONDITION for what may not go.
    """
    envelope = message_pb2.Envelope(
        sender=owner,
        recipient=participant.participant_id,
        message_type=ASKED,
        payload=message_pb2.Payload(json=message_pb2.JsonPayload(json=parameters)),
    )
    verdict = await data.inspect(envelope, owner)
    if verdict.quarantine is not None:
        raise verdict.quarantine
    return verdict.envelope.payload


def _parameters(ask: Ask) -> str:
    question = ask.question
    if ask.participant.WhichOneof("source") == "model":
        model = json_format.MessageToDict(ask.participant.model, preserving_proto_field_name=True)
        question = question.model_copy(update={"model": model})
    return json.dumps(question.model_dump(exclude_defaults=True), ensure_ascii=False)

"""The way back: a message that answers another goes to whoever waits for it, or to a mailbox."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf import any_pb2

from bxmesh.agent.v1 import message_pb2
from bxmesh.server.agent.deliveries import envelope_of
from bxmesh.server.agent.mesh import AgentMesh
from bxmesh.server.agent.posting import finished, post, quarantine, require_small
from bxmesh.server.errors import MeshError, invalid_argument
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.entries import HeldEntry
from bxmesh.server.streams.mailbox_scripts import ANSWER
from bxmesh.server.streams.mailboxes import MESSAGE
from bxmesh.work.v1 import work_pb2

__all__ = ["answer_of", "answer_waiting", "reply_to_delivery", "wait_for_answer"]


async def reply_to_delivery(
    mesh: AgentMesh, identity: str, held: HeldEntry, reply: message_pb2.Envelope
) -> any_pb2.Any | None:
    """Sends the answer to a message that is about to be acknowledged.

    Returns it packed when whoever sent the message waits for it: then it is the outcome. Otherwise
    it is in a mailbox when this returns, under a name that makes a repetition harmless; whoever
    signs an answer chooses that name. Raises MeshError PERMISSION_DENIED, FAILED_PRECONDITION or
    INVALID_ARGUMENT for an answer that may not go.
    """
    if held.item.kind != MESSAGE:
        return None
    request = envelope_of(held)
    name = f"reply:{held.item.item_id}"
    reply = await mesh.signatures.open(reply, identity, name)
    names = {
        "sender": request.recipient,
        "recipient": request.reply_to or request.sender,
        "correlation_id": request.message_id,
    }
    if reply.HasField("signature"):
        _require_signed(reply, names)
    else:
        for field, value in names.items():
            setattr(reply, field, value)
        reply.conversation_id = reply.conversation_id or request.conversation_id
        reply.message_id = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
    reply = finished(reply)
    require_small(reply)
    if reply.recipient != request.sender:
        # Whoever asks must not let others say what it may not say itself.
        mesh.rules.check(reply.sender, reply.recipient, reply.message_type)
    verdict = await mesh.data.inspect(reply, identity)
    reply = verdict.envelope
    if verdict.quarantine is not None:
        await quarantine(mesh, reply, identity, verdict.quarantine, once=True)
        raise verdict.quarantine
    if held.item.reply_to:
        packed = any_pb2.Any()
        packed.Pack(reply)
        return packed
    if not await answer_waiting(mesh, reply) and await mesh.directory.find(reply.recipient):
        await post(mesh, reply, identity, once=True)
    return None


def _require_signed(reply: message_pb2.Envelope, names: Mapping[str, str]) -> None:
    for name, value in names.items():
        if getattr(reply, name) != value:
            raise invalid_argument(
                f"reply.signature.envelope.{name}",
                f"the answer to this message must have {value!r}",
            )


class _Waiter(NamedTuple):
    channel: str
    item_id: str
    answers: str

    def encode(self) -> str:
        return "\n".join(self)


async def wait_for_answer(
    mesh: AgentMesh, request: message_pb2.Envelope, item_id: str, channel: str, seconds: float
) -> None:
    """Notes that this server waits for the answer to a message of an agent."""
    waiter = _Waiter(channel, item_id, request.recipient)
    with redis_errors():
        await mesh.redis.set(
            mesh.mailboxes.keys.waiter(request.sender, request.message_id),
            waiter.encode(),
            px=max(1, int(seconds * 1000)),
        )


async def answer_waiting(mesh: AgentMesh, reply: message_pb2.Envelope) -> bool:
    """Gives an answer to whoever waits for it; False when nobody does."""
    if not reply.correlation_id:
        return False
    keys = mesh.mailboxes.keys
    key = keys.waiter(reply.recipient, reply.correlation_id)
    with redis_errors():
        found: Any = await mesh.redis.get(key)
    if found is None:
        return False
    try:
        waiter = _Waiter(*found.decode().split("\n"))
    except (TypeError, UnicodeDecodeError):
        return False
    if waiter.answers != reply.sender:
        return False
    outcome = work_pb2.WorkOutcome(item_id=waiter.item_id)
    outcome.result.Pack(reply)
    event = work_pb2.WorkEvent(item_id=waiter.item_id, outcome=outcome)
    with redis_errors():
        answered = await mesh.mailboxes.queue.scripts.call(
            ANSWER,
            [key, keys.outcome(waiter.item_id)],
            [
                found,
                outcome.SerializeToString(),
                int(mesh.mailboxes.options.outcome_lifetime * 1000),
                waiter.channel,
                event.SerializeToString(),
            ],
        )
    return bool(answered)


def answer_of(outcome: work_pb2.WorkOutcome) -> message_pb2.Envelope:
    """The answer in an outcome; raises the MeshError that it holds instead."""
    if outcome.status.code:
        raise MeshError.from_status(outcome.status)
    reply = message_pb2.Envelope()
    outcome.result.Unpack(reply)
    return reply

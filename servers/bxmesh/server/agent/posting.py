"""Checking messages, and putting them on their way."""

from __future__ import annotations

import time
import uuid

from bxmesh.agent.v1 import message_pb2
from bxmesh.server import telemetry
from bxmesh.server.agent.mesh import AgentMesh
from bxmesh.server.errors import (
    MeshError,
    deadline_exceeded,
    invalid_argument,
    not_found,
    permission_denied,
)
from bxmesh.server.streams import Ticket
from bxmesh.server.streams.mailboxes import MEDIUM, MESSAGE, SharedAllowance
from bxmesh.work.v1 import work_pb2

__all__ = [
    "accept",
    "deadline_of",
    "finished",
    "named_by_sender",
    "post",
    "post_direct",
    "quarantine",
    "require_recipient",
    "require_small",
    "unknown_recipient",
]

MOST_ENVELOPE_BYTES = 1 << 20

_SEND = "/bxmesh.agent.v1.AgentService/SendMessage"


async def accept(
    mesh: AgentMesh, envelope: message_pb2.Envelope, identity: str, request_id: str
) -> message_pb2.Envelope:
    """Returns a message as it goes on its way; raises MeshError for one that may not.

    The sender is never believed: it is an agent that the caller registered, or the caller.
    """
    once = f"{identity}:{request_id}" if request_id else ""
    accepted = message_pb2.Envelope()
    accepted.CopyFrom(await mesh.signatures.open(envelope, identity, once))
    require_small(accepted)
    accepted.sender = await _sender(mesh, accepted.sender, identity)
    if not accepted.message_id:
        # A repeated request gets the same name, and so is one message.
        accepted.message_id = (
            str(uuid.uuid5(uuid.NAMESPACE_OID, f"{identity}\0{request_id}"))
            if request_id
            else str(uuid.uuid4())
        )
    expires = deadline_of(accepted)
    if expires is not None and expires <= time.time():
        raise deadline_exceeded("The message has expired already.", reason="MESSAGE_EXPIRED")
    return finished(accepted)


def named_by_sender(
    request: message_pb2.SendMessageRequest | message_pb2.BroadcastMessageRequest,
) -> bool:
    """Whether a message would have the same name if it were sent once more."""
    message = request.envelope
    return bool(request.request_id or message.message_id) or message.HasField("signature")


def require_small(envelope: message_pb2.Envelope) -> None:
    """Raises MeshError INVALID_ARGUMENT (PAYLOAD_TOO_LARGE) for more than a message may have."""
    # In a signature it is once more.
    size = envelope.ByteSize() - envelope.signature.ByteSize()
    if size > MOST_ENVELOPE_BYTES:
        raise invalid_argument(
            "envelope.payload",
            f"the message has {size} bytes, {MOST_ENVELOPE_BYTES} are the most;"
            " upload a bundle and send its name",
            reason="PAYLOAD_TOO_LARGE",
        )


def finished(envelope: message_pb2.Envelope) -> message_pb2.Envelope:
    """Fills in what the server says of every message."""
    envelope.priority = envelope.priority or message_pb2.PRIORITY_MEDIUM
    envelope.create_time.GetCurrentTime()
    if not envelope.trace_context:
        telemetry.inject(envelope.trace_context)
    return envelope


def deadline_of(envelope: message_pb2.Envelope) -> float | None:
    """When a message is pointless, in Unix seconds."""
    if not envelope.HasField("expire_time"):
        return None
    return envelope.expire_time.seconds + envelope.expire_time.nanos / 1e9


async def _sender(mesh: AgentMesh, sender: str, identity: str) -> str:
    if sender in ("", identity):
        return identity
    agent = await mesh.directory.find(sender)
    if agent is not None and agent.identity == identity:
        return sender
    raise permission_denied(
        f"{identity} may not send as {sender}: no agent of that name is registered by it.",
        reason="SENDER_FORGED",
        sender=sender,
    )


async def require_recipient(mesh: AgentMesh, agent_id: str) -> bool:
    """Whether an agent lives; raises MeshError INVALID_ARGUMENT without a name."""
    if not agent_id:
        raise invalid_argument(
            "envelope.recipient", "name the agent; BroadcastMessage sends to many"
        )
    return await mesh.directory.find(agent_id) is not None


def unknown_recipient(agent_id: str, *, may_hold: bool) -> Exception:
    """The error for a recipient that does not live."""
    remedy = " Set hold_for_recipient to keep the message for it." if may_hold else ""
    return not_found(
        f"No agent called {agent_id} is alive.{remedy}",
        reason="AGENT_NOT_FOUND",
        agent_id=agent_id,
    )


async def post(
    mesh: AgentMesh,
    envelope: message_pb2.Envelope,
    identity: str,
    *,
    once: bool,
    item_id: str = "",
    reply_to: str = "",
    deadline: float | None = None,
) -> Ticket:
    """Puts a message into its recipient's mailbox; with `once` its name is remembered, so that it is
    one message however often it is sent."""
    limits = [each for each in (deadline_of(envelope), deadline) if each is not None]
    resource = f"agent/{envelope.recipient}"
    with mesh.quotas.telling(identity, _SEND, resource=resource):
        ticket = await mesh.mailboxes.put(
            envelope.recipient,
            MESSAGE,
            envelope,
            priority=envelope.priority or MEDIUM,
            item_id=item_id,
            request_id=_name(envelope, identity) if once else "",
            reply_to=reply_to,
            deadline=min(limits, default=None),
            identity=identity,
            shared=await _allowance(mesh, envelope.recipient),
        )
    if not ticket.repeated:
        mesh.activity.accepted(envelope)
    return ticket


async def _allowance(mesh: AgentMesh, agent_id: str) -> SharedAllowance | None:
    """How much may wait in all mailboxes of whoever has this one; None for any number."""
    if not mesh.quotas.bounds("max_queued_messages"):
        return None
    owner = await mesh.directory.owner(agent_id)
    allowance = mesh.quotas.allowance("max_queued_messages", owner)
    if allowance is None:
        return None
    return SharedAllowance(allowance, lambda: mesh.directory.owned_by(owner))


async def quarantine(
    mesh: AgentMesh, envelope: message_pb2.Envelope, identity: str, error: MeshError, *, once: bool
) -> None:
    """Holds a message back from its recipient's mailbox; whoever may can list and release it."""
    await mesh.mailboxes.hold_back(
        envelope.recipient,
        MESSAGE,
        envelope,
        error,
        priority=envelope.priority or MEDIUM,
        request_id=_name(envelope, identity) if once else "",
        identity=identity,
    )


def _name(envelope: message_pb2.Envelope, identity: str) -> str:
    return f"{identity}:message:{envelope.recipient}:{envelope.message_id}"


async def post_direct(mesh: AgentMesh, envelope: message_pb2.Envelope) -> int:
    """Hands a message to whoever is connected now; returns how many got it."""
    direct = work_pb2.DirectMessage(
        agent_id=envelope.recipient, envelope=envelope.SerializeToString()
    )
    receivers = await mesh.mailboxes.tell(envelope.recipient, work_pb2.Notice(direct=direct))
    mesh.activity.accepted(envelope, receivers)
    return receivers
